"""Reference sets that give the metrics of images a scale, measured like samples.

- *floor*: disjoint subsets of the training split, real against real. No generator is expected to do better.
- *moments*: a Gaussian with the mean and covariance of the training split; and, where there are labels, a
  mixture of one such Gaussian per class. A metric that they pass does not test a generator.
- *resampled*: training images drawn with replacement, as a generator that memorises the training set draws them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from onestep_adapters.devices import generator_on
from onestep_adapters.metrics.classifier import Classifier
from onestep_adapters.metrics.estimates import device_of
from onestep_adapters.metrics.measurement import ImageSplits, Measurement, measure
from onestep_adapters.tracking import Track, counting, untracked
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count, whole_numbers


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
    require_count("count", count)
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

    Raises:
        ConfigError: without one integer label for each image, or for a class with fewer than two.

    Example:
        >>> x, labels = torch.tensor([[0.0], [0.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> drawn, classes = class_gaussians_like(x, labels, 50)
        >>> bool((drawn[:, 0] == 5.0 * classes).all())
        True
    """
    if labels.shape != data.shape[:1] or not whole_numbers(labels):
        raise ConfigError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} for {len(data)} images: expected an integer each"
        )
    require_count("count", count)
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
    classifier: Classifier | None,
    generator: torch.Generator | None = None,
    repeats: int = 5,
    k: int = 5,
    directions: int = 128,
    encode: Callable[[Tensor], Tensor] | None = None,
    track: Track = untracked,
) -> dict[str, Measurement]:
    """``floor``, ``resampled``, ``moments`` and, with labels, ``class moments``, each by :func:`measure`.

    The floor has as many draws as disjoint subsets of the training split allow, at most ``repeats``. Resampled are
    training images drawn with replacement, as from a generator that memorises the training set. ``track`` shows the
    progress.
    """
    count = len(splits.held_out)
    device = device_of(generator)
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    every = torch.arange(len(splits.train), device=splits.train.device)
    drawing = generator_on(device, seed + 1)
    moments = gaussian_like(splits.train, repeats * count, generator=drawing)
    again = torch.randint(len(every), (repeats * count,), generator=generator_on(device, seed + 2), device=device)
    again = again.to(every.device)
    asked = None if splits.train_labels is None else splits.train_labels[again]
    subsets = min(repeats, len(splits.train) // count)
    total = subsets + (2 if splits.train_labels is None else 3) * repeats
    with counting(track, "reference rows", total) as each:

        def measured(
            images: Tensor, repeats: int, own: Tensor | None = None, labels: Tensor | None = None
        ) -> Measurement:
            return measure(
                images, labels, splits=splits, classifier=classifier, generator=generator_on(device, seed),
                repeats=repeats, k=k, directions=directions, own=own, encode=encode, track=each,
            )  # fmt: skip

        rows = {
            "floor": measured(splits.train, subsets, every, splits.train_labels),
            "resampled": measured(splits.train[again], repeats, None, asked),
            "moments": measured(moments, repeats),
        }
        if splits.train_labels is not None:
            images, labels = class_gaussians_like(splits.train, splits.train_labels, repeats * count, generator=drawing)
            rows["class moments"] = measured(images, repeats, None, labels)
    return rows
