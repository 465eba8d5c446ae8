"""All metrics of a set of images, against held-out images.

Every comparison is between as many samples as there are held-out images, since every distance here depends
on the count: ``repeats`` independent draws of that many give a mean and a standard error. The error is that
of drawing samples; all rows share the held-out images, so *their* noise is common to the rows and cancels in
comparisons.
"""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from onestep_adapters.metrics.classifier import Classifier
from onestep_adapters.metrics.estimates import Estimate, estimate, new_generator
from onestep_adapters.metrics.frechet import frechet_distance
from onestep_adapters.metrics.kernel_distance import kernel_distance
from onestep_adapters.metrics.manifold import manifold_metrics, nearest_neighbour_accuracy, nearest_training_distance
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError
from onestep_core.fields.divergences import energy_distance, sliced_wasserstein


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
    classifier: Classifier | None,
    generator: torch.Generator | None = None,
    repeats: int = 5,
    k: int = 5,
    directions: int = 128,
    own: Tensor | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
    track: Track = untracked,
) -> Measurement:
    """Every metric of one set of images, against the held-out split at equal counts.

    The samples are shuffled and cut into ``repeats`` draws, each as large as the held-out split. Distances
    are in pixels, except ``energy_features`` and ``frechet_features``. Without a classifier these two, and the metrics
    of classes, are left out. The metrics named ``encoder_*`` are those in the features of ``encode``.

    Args:
        samples: as the sampler gives them, ``[N, channel, height, width]`` with ``N`` at least ``repeats``
            times the number of held-out images.
        labels: the classes that a conditional sampler was given, ``[N]``; adds ``label_agreement``.
        splits: training and held-out images.
        classifier: trained on the same training split; ``None`` for images without classes.
        generator: of the shuffle and of the directions, on any device; torch's default one where ``None``. The same
            seed for all rows makes them comparable.
        repeats: independent draws.
        k: neighbour that sets the radius in precision, recall, density and coverage.
        directions: of the sliced Wasserstein distance.
        own: where samples are training images, their rows in the training split, which are left out of the
            distance to the nearest training image, ``[N]``.
        encode: an encoder's vector for each image, ``[n, channel, height, width] -> [n, feature]``; ``None``: the
            metrics in its features are left out.
        track: shows how many draws are measured.

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
    if not isinstance(splits, ImageSplits):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(splits).__name__} as splits: expected ImageSplits(train, held_out)")
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
    held_out_features = None if classifier is None else classifier.features(splits.held_out).double()
    held_out_histogram = _histogram(classifier, splits.held_out)
    held_out_codes = None if encode is None else encode(splits.held_out)
    results: dict[str, list[float]] = {}
    histogram = torch.zeros(len(held_out_histogram), dtype=torch.float64)
    for rows in track(draws, "metrics", repeats):
        images = samples[rows.to(samples.device)].detach().to(device)
        flat = images.flatten(1).double()
        near = manifold_metrics(held_out, flat, k=k)
        own_rows = None if own is None else own[rows.to(own.device)].to(device)
        numbers: dict[str, Tensor] = {
            "neighbour_accuracy": nearest_neighbour_accuracy(held_out, flat),
            "density": near.density,
            "coverage": near.coverage,
            "precision": near.precision,
            "recall": near.recall,
            "energy_pixels": energy_distance(flat, held_out),
            "frechet_pixels": frechet_distance(flat, held_out),
            "sliced_pixels": sliced_wasserstein(flat, held_out, directions=unit),
            "nearest_training": nearest_training_distance(flat, train, own=own_rows)[0],
        }
        if classifier is not None and held_out_features is not None:
            features, shares = classifier.features(images).double(), _histogram(classifier, images)
            histogram += shares.cpu() / repeats
            numbers["energy_features"] = energy_distance(features, held_out_features)
            numbers["frechet_features"] = frechet_distance(features, held_out_features)
            numbers["class_variation"] = 0.5 * (shares - held_out_histogram).abs().sum()
        if encode is not None and held_out_codes is not None:
            numbers |= encoder_metrics(encode(images), held_out_codes, k=k)
        if classifier is not None and labels is not None:
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


def encoder_metrics(samples: Tensor, held_out: Tensor, *, k: int) -> dict[str, Tensor]:
    """The metrics in the features of an encoder, by name.

    Args:
        samples: features of generated images, ``[n, d]``.
        held_out: features of real images, ``[m, d]``.
        k: neighbour that sets the radius.

    Example:
        >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> {name: round(value.item(), 6) for name, value in encoder_metrics(x, x, k=3).items() if "fr" in name}
        {'encoder_frechet': 0.0}
    """
    near = manifold_metrics(held_out.double(), samples.double(), k=k)
    return {
        "encoder_frechet": frechet_distance(samples, held_out),
        "encoder_kernel": kernel_distance(samples, held_out),
        **{f"encoder_{name}": value for name, value in near._asdict().items()},
    }


def _histogram(classifier: Classifier | None, images: Tensor) -> Tensor:
    """Share of each predicted class; empty without a classifier."""
    if classifier is None:
        return torch.zeros(0, dtype=torch.float64, device=images.device)
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
