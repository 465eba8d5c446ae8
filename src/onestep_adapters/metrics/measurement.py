"""Metrics of images: one function measures a set of samples, another the reference sets that give the numbers a scale.

Every comparison is between as many samples as there are held-out images, since every distance here depends
on the count: ``repeats`` independent draws of that many give a mean and a standard error. The error is that
of drawing samples; all rows share the held-out images, so *their* noise is common to the rows and cancels in
comparisons.

The references pass through the same function:

- *floor*: disjoint subsets of the training split, real against real. No generator is expected to do better.
- *moments*: a Gaussian with the mean and covariance of the training split; and, where there are labels, a
  mixture of one such Gaussian per class. A metric that they pass does not test a generator.
- *resampled*: training images drawn with replacement, as a generator that memorises the training set draws them.
"""

import math
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from onestep_adapters.devices import generator_on
from onestep_adapters.metrics.classifier import Classifier
from onestep_adapters.metrics.frechet import frechet_distance
from onestep_adapters.metrics.manifold import manifold_metrics, nearest_neighbour_accuracy, nearest_training_distance
from onestep_core.errors import ConfigError
from onestep_core.fields.divergences import energy_distance, sliced_wasserstein


def _finite(_: object, attribute: "attrs.Attribute[float | None]", value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"expected a finite {attribute.name}, got {value}: a row that diverged has metrics=None")


@attrs.frozen
class Estimate:
    """A number and its standard error over independent draws; ``None`` for a single draw."""

    mean: float = attrs.field(validator=_finite)
    se: float | None = attrs.field(default=None, validator=_finite)


@attrs.frozen
class Measurement:
    """All metrics of one set of samples.

    Attributes:
        metrics: an :class:`Estimate` for each metric, by name, such as ``"density"``.
        histogram: share of the samples in each predicted class.
        held_out_histogram: the same for the held-out images.
        held_out_nearest: 5 % quantile of the held-out images' distance to the nearest training image.
        count: samples in a draw, and held-out images.
        repeats: independent draws.
    """

    metrics: Mapping[str, Estimate]
    histogram: tuple[float, ...]
    held_out_histogram: tuple[float, ...]
    held_out_nearest: float
    count: int
    repeats: int


@attrs.frozen(eq=False)
class ImageSplits:
    """The images that samples are compared with: the training split, and a held-out split that nobody trained on.

    Attributes:
        train: ``[n, channel, height, width]``.
        held_out: ``[m, channel, height, width]``: validation for choices, test for the report, once.
        train_labels: classes, ``[n]``; with them the class-conditional Gaussian is a reference too.
        name: of the held-out split, as a report prints it.

    Raises:
        ConfigError: for splits of different image sizes, labels of another length, or fewer training than
            held-out images.

    Example:
        >>> splits = ImageSplits(torch.zeros(9, 1, 8, 8), torch.zeros(3, 1, 8, 8), name="test")
        >>> len(splits.held_out)
        3
    """

    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    name: str = "validation"

    def __attrs_post_init__(self) -> None:
        """Compare the shapes of the two splits and of the labels."""
        if self.train.ndim != 4 or self.train.shape[1:] != self.held_out.shape[1:]:
            raise ConfigError(
                f"expected two splits of images [n, channel, height, width] of one size; got "
                f"{list(self.train.shape)} and {list(self.held_out.shape)}"
            )
        if self.train_labels is not None and self.train_labels.shape != self.train.shape[:1]:
            raise ConfigError(
                f"expected one label per training image, {list(self.train.shape[:1])}; got "
                f"{list(self.train_labels.shape)}"
            )
        if len(self.train) < len(self.held_out):
            raise ConfigError(
                f"the floor compares as many training images as there are held-out ones; got {len(self.train)} "
                f"and {len(self.held_out)}: hold out fewer"
            )


@torch.no_grad()
def measure(
    samples: Tensor,
    labels: Tensor | None = None,
    *,
    splits: ImageSplits,
    classifier: Classifier,
    generator: torch.Generator | None = None,
    repeats: int = 5,
    k: int = 5,
    directions: int = 128,
    own: Tensor | None = None,
) -> Measurement:
    """Every metric of one set of images, against the held-out split at equal counts.

    The samples are shuffled and cut into ``repeats`` draws, each as large as the held-out split. Distances
    are in pixels, except ``energy_features`` and ``frechet_features``.

    Args:
        samples: as the sampler gives them, ``[N, channel, height, width]`` with ``N`` at least ``repeats``
            times the number of held-out images.
        labels: the classes that a conditional sampler was given, ``[N]``; adds ``label_agreement``.
        splits: training and held-out images.
        classifier: trained on the same training split.
        generator: of the shuffle and of the directions, on any device; torch's default one where ``None``. The same
            seed for all rows makes them comparable.
        repeats: independent draws.
        k: neighbour that sets the radius in precision, recall, density and coverage.
        directions: of the sliced Wasserstein distance.
        own: where samples are training images, their rows in the training split, which are left out of the
            distance to the nearest training image, ``[N]``.

    Raises:
        ConfigError: for too few samples, another image size, labels of another length, or samples that are
            not finite (it says how many).

    Example:
        >>> from onestep_adapters.metrics import train_classifier
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(60) % 2
        >>> images = 0.1 * torch.randn(60, 1, 4, 4, generator=g) + labels[:, None, None, None]
        >>> train, held_out = (images[:40], labels[:40]), (images[40:], labels[40:])
        >>> settings = {"validation_images": held_out[0], "validation_labels": held_out[1]}
        >>> classifier = train_classifier(*train, **settings, steps=20)
        >>> splits = ImageSplits(train[0], held_out[0], train[1])
        >>> found = measure(train[0], splits=splits, classifier=classifier, generator=g, repeats=2)
        >>> found.metrics["nearest_training"]
        Estimate(mean=0.0, se=0.0)
    """
    count, shape = len(splits.held_out), splits.held_out.shape[1:]
    _check_samples(samples, labels, own, count, repeats, shape)
    device = splits.held_out.device
    local = new_generator(generator)
    unit = torch.nn.functional.normalize(
        torch.randn(directions, shape.numel(), generator=local, dtype=torch.float64, device=local.device), dim=1
    ).to(device)
    draws = torch.randperm(len(samples), generator=local, device=local.device)
    draws = draws[: repeats * count].view(repeats, count)
    held_out, train = splits.held_out.flatten(1).double(), splits.train.flatten(1).double()
    held_out_features = classifier.features(splits.held_out).double()
    held_out_histogram = _histogram(classifier, splits.held_out)
    results: dict[str, list[float]] = {}
    histogram = torch.zeros(classifier.classes, dtype=torch.float64)
    for rows in draws:
        images = samples[rows.to(samples.device)].detach().to(device)
        flat, features = images.flatten(1).double(), classifier.features(images).double()
        shares = _histogram(classifier, images)
        histogram += shares.cpu() / repeats
        near = manifold_metrics(held_out, flat, k=k)
        own_rows = None if own is None else own[rows.to(own.device)].to(device)
        numbers: dict[str, Tensor] = {
            "neighbour_accuracy": nearest_neighbour_accuracy(held_out, flat),
            "density": near.density,
            "coverage": near.coverage,
            "precision": near.precision,
            "recall": near.recall,
            "energy_features": energy_distance(features, held_out_features),
            "frechet_features": frechet_distance(features, held_out_features),
            "energy_pixels": energy_distance(flat, held_out),
            "frechet_pixels": frechet_distance(flat, held_out),
            "sliced_pixels": sliced_wasserstein(flat, held_out, directions=unit),
            "class_variation": 0.5 * (shares - held_out_histogram).abs().sum(),
            "nearest_training": nearest_training_distance(flat, train, own=own_rows)[0],
        }
        if labels is not None:
            asked = labels[rows.to(labels.device)].to(device)
            numbers["label_agreement"] = (classifier.predict(images) == asked).double().mean()
        for name, number in numbers.items():
            results.setdefault(name, []).append(float(number))
    return Measurement(
        metrics={name: estimate(values) for name, values in results.items()},
        histogram=tuple(histogram.tolist()),
        held_out_histogram=tuple(held_out_histogram.tolist()),
        held_out_nearest=float(nearest_training_distance(held_out, train)[0]),
        count=count,
        repeats=repeats,
    )


def new_generator(generator: torch.Generator | None) -> torch.Generator:
    """A generator on the device of ``generator`` (the CPU where ``None``), seeded by one draw from it.

    Example:
        >>> one, other = (new_generator(torch.Generator().manual_seed(0)) for _ in range(2))
        >>> one.initial_seed() == other.initial_seed()
        True
    """
    device = device_of(generator)
    return generator_on(device, int(torch.randint(2**62, (), generator=generator, device=device)))


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws; the CPU where ``None``."""
    return torch.device("cpu") if generator is None else generator.device


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error of independent values.

    Example:
        >>> estimate([1.0, 3.0])
        Estimate(mean=2.0, se=1.0)
    """
    x = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(x.mean()), float(x.std() / len(values) ** 0.5) if len(values) > 1 else None)


def gaussian_like(data: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """``count`` draws of the Gaussian with the mean and the covariance of ``data``, in its shape and dtype.

    ``mean + e^T (x - mean) / sqrt(n - 1)`` with ``e ~ N(0, I_n)``: exact for a singular covariance.

    Args:
        data: ``[n, *shape]``, at least two.
        count: draws.
        generator: of ``e``, on any device.

    Raises:
        ConfigError: for fewer than two data points.

    Example:
        >>> gaussian_like(torch.ones(5, 2), 3).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    if len(data) < 2:
        raise ConfigError(f"a covariance needs at least two points, got {len(data)}")
    flat = data.detach().flatten(1).double()
    mean = flat.mean(0)
    noise = torch.randn(count, len(flat), generator=generator, dtype=torch.float64, device=device_of(generator))
    noise = noise.to(flat.device)
    drawn = mean + noise @ (flat - mean) / (len(flat) - 1) ** 0.5
    return drawn.to(data.dtype).view(count, *data.shape[1:])


def class_gaussians_like(
    data: Tensor, labels: Tensor, count: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """``count`` draws of a mixture with one Gaussian per class, and their classes, ``[count]``.

    Classes come with their frequency in ``labels``; within one, see :func:`gaussian_like`.

    Example:
        >>> x, labels = torch.tensor([[0.0], [0.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> drawn, classes = class_gaussians_like(x, labels, 50)
        >>> bool((drawn[:, 0] == 5.0 * classes).all())
        True
    """
    rows = torch.randint(len(labels), (count,), generator=generator, device=device_of(generator))
    asked = labels[rows.to(labels.device)]
    drawn = data.new_empty(count, *data.shape[1:])
    for label in labels.unique():
        rows = asked == label
        drawn[rows] = gaussian_like(data[labels == label], int(rows.sum()), generator=generator)
    return drawn, asked


def measure_references(
    *,
    splits: ImageSplits,
    classifier: Classifier,
    generator: torch.Generator | None = None,
    repeats: int = 5,
    k: int = 5,
    directions: int = 128,
) -> dict[str, Measurement]:
    """``floor``, ``resampled``, ``moments`` and, with labels, ``class moments``, each by :func:`measure`.

    The floor has as many draws as disjoint subsets of the training split allow, at most ``repeats``. Resampled are
    training images drawn with replacement, as from a generator that memorises the training set.
    """
    count = len(splits.held_out)
    device = device_of(generator)
    seed = int(torch.randint(2**62, (), generator=generator, device=device))

    def measured(images: Tensor, repeats: int, own: Tensor | None = None, labels: Tensor | None = None) -> Measurement:
        return measure(
            images, labels, splits=splits, classifier=classifier, generator=generator_on(device, seed),
            repeats=repeats, k=k, directions=directions, own=own,
        )  # fmt: skip

    every = torch.arange(len(splits.train), device=splits.train.device)
    drawing = generator_on(device, seed + 1)
    moments = gaussian_like(splits.train, repeats * count, generator=drawing)
    again = torch.randint(len(every), (repeats * count,), generator=generator_on(device, seed + 2), device=device)
    again = again.to(every.device)
    asked = None if splits.train_labels is None else splits.train_labels[again]
    rows = {
        "floor": measured(splits.train, min(repeats, len(splits.train) // count), every, splits.train_labels),
        "resampled": measured(splits.train[again], repeats, None, asked),
        "moments": measured(moments, repeats),
    }
    if splits.train_labels is not None:
        images, labels = class_gaussians_like(splits.train, splits.train_labels, repeats * count, generator=drawing)
        rows["class moments"] = measured(images, repeats, None, labels)
    return rows


def _histogram(classifier: Classifier, images: Tensor) -> Tensor:
    counts = torch.bincount(classifier.predict(images), minlength=classifier.classes)
    return counts.double() / len(images)


def _check_samples(
    samples: Tensor, labels: Tensor | None, own: Tensor | None, count: int, repeats: int, shape: torch.Size
) -> None:
    if samples.shape[1:] != shape:
        raise ConfigError(f"expected samples of shape [N, {', '.join(map(str, shape))}], got {list(samples.shape)}")
    if repeats < 1 or len(samples) < repeats * count:
        raise ConfigError(
            f"{repeats} draws of as many samples as held-out images ({count}) need {max(repeats, 1) * count} "
            f"samples, got {len(samples)}: generate more, or lower repeats"
        )
    for name, values in (("label", labels), ("training row (own)", own)):
        if values is not None and values.shape != samples.shape[:1]:
            raise ConfigError(f"expected one {name} per sample, [{len(samples)}], got {list(values.shape)}")
    broken = int((~samples.flatten(1).isfinite()).any(1).sum())
    if broken:
        raise ConfigError(
            f"{broken} of {len(samples)} samples hold NaN or infinity: the sampler diverged; give the row "
            "metrics=None, or train it with other options"
        )
