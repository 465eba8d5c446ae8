"""Measuring a run: which metrics, against which reference rows, by kind of data.

A judge is made once for a data set and measures every run of it against the same real samples, with the same seeds.
"""

import time
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from onestep_adapters.data.dataset import Dataset
from onestep_adapters.devices import generator_on
from onestep_adapters.evaluation.point_criteria import point_metrics, point_references
from onestep_adapters.evaluation.rows import Comparison, References, Row
from onestep_adapters.metrics import (
    Classifier,
    Estimate,
    ImageSplits,
    Measurement,
    measure,
    measure_references,
    toy_reference,
    toy_score,
    train_classifier,
)
from onestep_adapters.names import choose
from onestep_adapters.runs import Run
from onestep_core.errors import ConfigError


class Judged(NamedTuple):
    """What a judge found: metrics (``None`` if samples are not finite), numbers by class or mode, draws, time."""

    metrics: dict[str, Estimate] | None
    breakdown: tuple[float, ...]
    draws: int
    milliseconds_per_1000: float


class Judge(Protocol):
    """Measures the runs of one data set."""

    @property
    def comparison(self) -> Comparison:
        """What all samples are compared with."""
        ...

    @property
    def references(self) -> References:
        """The reference rows."""
        ...

    @property
    def description(self) -> str:
        """Of the data, for readers."""
        ...

    def judge(self, run: Run) -> Judged:
        """Draw samples of a run and measure them."""
        ...


class _NotFiniteError(Exception):
    """Samples hold NaN or infinity."""


class PointJudge:
    """Scores on fresh draws of a distribution: see :mod:`onestep_adapters.metrics.toys`.

    Args:
        data: of kind ``"points"``.
        repeats: independent draws; at least two are made, for the standard error.
        seed: of references and samples.
        device: of all tensors.
    """

    def __init__(self, data: Dataset, *, repeats: int, seed: int, device: torch.device) -> None:
        self._data, self._seed, self._device = data, seed, device
        self._reference = toy_reference(data, generator=generator_on(device, seed), draws=max(2, repeats))
        self.comparison = Comparison("fresh draws", self._reference.real.shape[1])
        self.references = point_references(float(self._reference.floor.mean()), float(self._reference.moments.mean()))
        self.description = data.title

    def judge(self, run: Run) -> Judged:
        """The score of a run, with its mode masses and widths where the modes are known."""
        seconds, count = 0.0, len(self._reference.real) * self.comparison.count

        def sampler(count: int, generator: torch.Generator) -> Tensor:
            nonlocal seconds
            start = time.perf_counter()
            samples, _ = run.samples(count, generator=generator)
            seconds += time.perf_counter() - start
            if not samples.isfinite().all():
                raise _NotFiniteError
            return samples

        generator = generator_on(self._device, self._seed)
        try:
            score = toy_score(sampler, self._data, generator=generator, reference=self._reference)
        except _NotFiniteError:
            return Judged(None, (), 0, 1e6 * seconds / self.comparison.count)
        return Judged(point_metrics(score), score.spreads or (), len(self._reference.real), 1e6 * seconds / count)


class ImageJudge:
    """Metrics of images against a held-out split: see :mod:`onestep_adapters.metrics.measurement`.

    Args:
        data: of kind ``"images"``, with labels.
        split: ``"test"`` for reports, ``"validation"`` for choices.
        repeats: independent draws of as many samples as there are held-out images.
        seed: of references and samples.
        device: of all tensors.

    Raises:
        ConfigError: for another split, or data without labels.
    """

    def __init__(self, data: Dataset, *, split: str, repeats: int, seed: int, device: torch.device) -> None:
        self._seed, self._repeats, self._device = seed, repeats, device
        self._splits = image_splits(data, split, device)
        self._classifier = image_classifier(data, device)
        measured = measure_references(
            splits=self._splits, classifier=self._classifier, generator=generator_on(device, seed), repeats=repeats
        )
        self.references = image_references(measured)
        self.comparison = image_comparison(self._splits, self._classifier, measured["floor"])
        splits = f"{len(self._splits.train):,} training and {len(self._splits.held_out):,} {split} images"
        self.description = f"{data.title}: {splits}"

    def judge(self, run: Run) -> Judged:
        """All metrics of a run."""
        count = self._repeats * len(self._splits.held_out)
        start = time.perf_counter()
        samples, labels = run.samples(count, generator=generator_on(self._device, self._seed))
        milliseconds = 1e6 * (time.perf_counter() - start) / count
        if not samples.isfinite().all():
            return Judged(None, (), 0, milliseconds)
        found = measure(
            samples,
            labels,
            splits=self._splits,
            classifier=self._classifier,
            generator=generator_on(self._device, self._seed),
            repeats=self._repeats,
        )
        return Judged(dict(found.metrics), found.histogram, found.repeats, milliseconds)


def judge_of(data: Dataset, *, split: str, repeats: int, seed: int, device: torch.device) -> Judge:
    """The judge for a data set, by its kind.

    Args:
        data: see :class:`PointJudge` and :class:`ImageJudge`.
        split: of images; points are drawn anew.
        repeats: independent draws of samples.
        seed: of references and samples.
        device: of all tensors.

    Raises:
        ConfigError: for an unknown kind of data, or what the judge of its kind refuses.
    """
    if choose(data.kind, ("points", "images"), "kind of data") == "points":
        return PointJudge(data, repeats=repeats, seed=seed, device=device)
    return ImageJudge(data, split=split, repeats=repeats, seed=seed, device=device)


def image_splits(data: Dataset, split: str, device: torch.device | str = "cpu") -> ImageSplits:
    """The training split beside ``"validation"`` (for choices) or ``"test"`` (for reports).

    Raises:
        ConfigError: for another split, or data that have no splits.
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"no split is called {split!r}: expected 'validation' for choices or 'test' for reports")
    train, held_out = data.split("train"), data.split(split)
    if train is None or held_out is None:
        raise ConfigError(f"{data.name} has no {split} split: expected images in splits")
    labels = None if train.labels is None else train.labels.to(device)
    return ImageSplits(train.data.to(device), held_out.data.to(device), labels, name=split)


def image_classifier(data: Dataset, device: torch.device | str = "cpu") -> Classifier:
    """The classifier in whose features images are compared: trained on the training split, accuracy on validation.

    Raises:
        ConfigError: for data without splits or labels.
    """
    train, validation = data.split("train"), data.split("validation")
    if train is None or validation is None or train.labels is None or validation.labels is None:
        raise ConfigError(
            f"images are compared in the features of a classifier, which needs labels: {data.name} has none"
        )
    images, labels, others, other_labels = (tensor.to(device) for tensor in (*train, *validation))  # type: ignore[union-attr]
    return train_classifier(images, labels, validation_images=others, validation_labels=other_labels)


def image_references(measured: dict[str, Measurement]) -> References:
    """The reference rows of ``metrics.measure_references``."""
    floor, moments, resampled = (
        image_row(method, measured[method], variant)
        for method, variant in (
            ("floor", "real against real"),
            ("moments", "one Gaussian"),
            ("resampled", "training images again"),
        )
    )
    found = measured.get("class moments")
    return References(
        floor, moments, None if found is None else image_row("moments", found, "a Gaussian per class"), resampled
    )


def image_comparison(splits: ImageSplits, classifier: Classifier, floor: Measurement) -> Comparison:
    """What all images are compared with."""
    facts = {"held_out_nearest": floor.held_out_nearest, "classifier_accuracy": classifier.validation_accuracy}
    return Comparison(splits.name, len(splits.held_out), facts, floor.held_out_histogram)


def image_row(method: str, found: Measurement, variant: str = "") -> Row:
    """A row without a cost, of what ``metrics.measure`` found."""
    return Row(method, found.metrics, variant, draws=found.repeats, breakdown=found.histogram)
