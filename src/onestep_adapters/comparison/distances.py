"""The distance by which a comparison ranks: the squared energy distance of samples to real data, with its own bias.

    d = 2 E|x - y| - E|x - x'| - E|y - y'|         over all pairs, those of a point with itself included

Such a distance of two finite sets of one distribution is above zero: that of real data to real data is the *floor*.
Therefore ratios to the floor and to the baseline mean something; an unbiased distance of good samples is zero within
its error, and its ratios are noise. Points are compared as they are, images in the features of a classifier, or in
pixels where they have no classes.
"""

import statistics
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from onestep_adapters.data import Dataset
from onestep_adapters.data.dataset import part_of
from onestep_adapters.devices import generator_on
from onestep_adapters.evaluation.judges import image_classifier, image_splits
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Track, untracked

POINTS = 2000
"""Points in one set."""

_SEED = 9


@attrs.frozen(eq=False)
class Ruler:
    """Distances to the real data of one data set.

    Attributes:
        real: what samples are compared with, ``[n, d]``, in features.
        features: ``[n, *shape] -> [n, d]``.
        spread: the mean distance of two of the real samples, ``E|y - y'|``.
        floor: the distance of as many other real samples.
    """

    real: Tensor
    features: Callable[[Tensor], Tensor]
    spread: float
    floor: float

    def distance(self, samples: Tensor) -> float:
        """The distance of samples ``[n, *shape]``."""
        return _distance(self.features(samples), self.real, self.spread)

    def distances(self, run: Run, *, draws: int) -> list[float]:
        """Distances of several draws of as many samples; ``nan`` where samples are not finite."""
        found = []
        for seed in range(draws):
            samples, _ = run.samples(len(self.real), generator=generator_on(self.real.device, seed + 1))
            found.append(self.distance(samples) if bool(samples.isfinite().all()) else float("nan"))
        return found

    def during_training(self, run: Run, *, draws: int) -> float:
        """The mean distance of the same draws, with the faster sampler of a method of many steps."""
        return statistics.fmean(self.distances(run.previewed(), draws=draws))


@torch.no_grad()
def ruler_of(data: Dataset, device: torch.device | str = "cpu", *, track: Track = untracked) -> Ruler:
    """The ruler of a data set: points against fresh draws, images against their test split."""
    features: Callable[[Tensor], Tensor] = _flat
    if data.kind == "points":
        generator = generator_on(device, _SEED)
        real, other = (data.sample(POINTS, generator) for _ in range(2))
    else:
        splits = image_splits(data, "test", device)
        real = splits.held_out
        found = part_of(data, "train", len(real))
        other = splits.train[: len(real)] if found is None else found.data.to(device)
        if data.classes is not None:
            features = image_classifier(data, device, track=track).features
    there = features(real)
    spread = _mean_length(there, there)
    return Ruler(there, features, spread, _distance(features(other), there, spread))


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _distance(x: Tensor, y: Tensor, spread: float) -> float:
    """``2 E|x - y| - E|x - x'| - spread``; the same number as ``energy_distance(x, y, unbiased=False)``, but faster."""
    return 2 * _mean_length(x, y) - _mean_length(x, x) - spread


def _mean_length(x: Tensor, y: Tensor) -> float:
    return float(torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").mean())
