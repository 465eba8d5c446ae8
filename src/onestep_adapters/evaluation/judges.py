"""Measuring a run: which metrics, against which reference rows, by kind of data.

A judge is made once for a data set and measures every run of it against the same real samples, with the same seeds.
"""

import time
from typing import NamedTuple, Protocol

import attrs
import torch
from torch import Tensor

from onestep_adapters.data.dataset import Dataset, part_of
from onestep_adapters.devices import generator_on
from onestep_adapters.encoders import Encoder, pooled_features
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
from onestep_adapters.runs.run import CHUNK
from onestep_adapters.tracking import Track, counting, untracked
from onestep_core.errors import ConfigError

_MOST, _FEWEST, _VALUES = 2000, 500, 2**22
"""Training images that are compared: at most, at least, and numbers in all of them between the two."""

_NEIGHBOURS = 5
"""The neighbour whose distance is the radius in density and coverage."""

_TAUGHT = 20_000
"""Images that a classifier is trained on, at most."""


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

    def judge(self, run: Run, track: Track = untracked) -> Judged:
        """Draw samples of a run and measure them; ``track`` shows the progress."""
        ...


class _NotFiniteError(Exception):
    """Samples hold NaN or infinity."""


class PointJudge:
    """Scores on fresh draws of a distribution: see :mod:`onestep_adapters.metrics.toys`.

    Args:
        data: of kind ``"points"``.
        repeats: independent draws; one alone gives no standard error.
        seed: of references and samples.
        device: of all tensors.
        count: samples in a draw.
        track: shows the progress of the references.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        repeats: int,
        seed: int,
        device: torch.device,
        count: int = 10_000,
        track: Track = untracked,
    ) -> None:
        self._data, self._seed, self._device = data, seed, device
        self._reference = toy_reference(
            data, generator=generator_on(device, seed), count=count, draws=repeats, track=track
        )
        self.comparison = Comparison("fresh draws", self._reference.real.shape[1])
        self.references = point_references(float(self._reference.floor.mean()), float(self._reference.moments.mean()))
        self.description = data.title

    def judge(self, run: Run, track: Track = untracked) -> Judged:
        """The score of a run, with its mode masses and widths where the modes are known."""
        seconds, (draws, count) = 0.0, self._reference.real.shape[:2]

        def sampler(count: int, generator: torch.Generator) -> Tensor:
            nonlocal seconds
            start = time.perf_counter()
            samples, _ = run.samples(count, generator=generator, track=each)
            seconds += time.perf_counter() - start
            if not samples.isfinite().all():
                raise _NotFiniteError
            return samples

        generator = generator_on(self._device, self._seed)
        with counting(track, "samples", draws * -(-count // CHUNK)) as each:
            try:
                score = toy_score(sampler, self._data, generator=generator, reference=self._reference, track=track)
            except _NotFiniteError:
                return Judged(None, (), 0, 1e6 * seconds / count)
        return Judged(point_metrics(score), score.spreads or (), draws, 1e6 * seconds / (draws * count))


class ImageJudge:
    """Metrics of images against a held-out split: see :mod:`onestep_adapters.metrics.measurement`.

    Args:
        data: of kind ``"images"``. Without classes, the metrics that need a classifier are left out. Of large splits a
            part is used, see :func:`image_splits`; the description says how many images.
        split: ``"test"`` for reports, ``"validation"`` for choices.
        repeats: independent draws of as many samples as there are held-out images.
        seed: of references and samples.
        device: of all tensors.
        encoder: name and encoder in whose pooled features images are compared too; ``None``: they are not.
        track: shows the progress of the classifier's training and of the references.

    Raises:
        ConfigError: for another split, or data without that split.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        split: str,
        repeats: int,
        seed: int,
        device: torch.device,
        encoder: tuple[str, Encoder] | None = None,
        track: Track = untracked,
    ) -> None:
        self._seed, self._repeats, self._device = seed, repeats, device
        self._encode = None if encoder is None else pooled_features(encoder[1], device=device)
        self._splits = image_splits(data, split, device)
        if len(self._splits.held_out) <= _NEIGHBOURS:
            raise ConfigError(
                f"{data.name} has {len(self._splits.held_out)} {split} images: expected more than {_NEIGHBOURS}, to "
                "compare samples with; add images"
            )
        self._classifier = None if data.classes is None else image_classifier(data, device, track=track)
        measured = measure_references(
            splits=self._splits,
            classifier=self._classifier,
            generator=generator_on(device, seed),
            repeats=repeats,
            encode=self._encode,
            track=track,
        )
        self.references = image_references(measured)
        totals = {name: split_size(data, name) for name in ("train", split)}
        compared = image_comparison(self._splits, self._classifier, measured["floor"], totals[split])
        self.comparison = attrs.evolve(compared, encoder="" if encoder is None else encoder[0])
        used = {"train": len(self._splits.train), split: len(self._splits.held_out)}
        told = {
            name: f"{used[name]:,}" if used[name] == total else f"{used[name]:,} of {total:,}"
            for name, total in totals.items()
        }
        self.description = f"{data.title}: {told['train']} training and {told[split]} {split} images"

    def judge(self, run: Run, track: Track = untracked) -> Judged:
        """All metrics of a run."""
        count = self._repeats * len(self._splits.held_out)
        start = time.perf_counter()
        samples, labels = run.samples(count, generator=generator_on(self._device, self._seed), track=track)
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
            encode=self._encode,
            track=track,
        )
        return Judged(dict(found.metrics), found.histogram, found.repeats, milliseconds)


def judge_of(
    data: Dataset,
    *,
    split: str,
    repeats: int,
    seed: int,
    device: torch.device,
    encoder: tuple[str, Encoder] | None = None,
    count: int = 10_000,
    track: Track = untracked,
) -> Judge:
    """The judge for a data set, by its kind.

    Args:
        data: see :class:`PointJudge` and :class:`ImageJudge`.
        split: of images; points are drawn anew.
        repeats: independent draws of samples.
        seed: of references and samples.
        device: of all tensors.
        encoder: see :class:`ImageJudge`; for images only.
        count: points in a draw; as many images are drawn as are held out.
        track: shows the progress of what is made once for all runs.

    Raises:
        ConfigError: for an unknown kind of data, or what the judge of its kind refuses.
    """
    if choose(data.kind, ("points", "images"), "kind of data") == "points":
        return PointJudge(data, repeats=repeats, seed=seed, device=device, count=count, track=track)
    return ImageJudge(data, split=split, repeats=repeats, seed=seed, device=device, encoder=encoder, track=track)


def image_splits(data: Dataset, split: str, device: torch.device | str = "cpu") -> ImageSplits:
    """The training split beside ``"validation"`` (for choices) or ``"test"`` (for reports).

    The time of the metrics grows with the product of both numbers and the size of an image. Therefore at most 2,000
    training images are used, fewer for images of more than 2,048 numbers, and a quarter as many held-out ones.

    Raises:
        ConfigError: for another split, or data that have no splits.
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"no split is called {split!r}: expected 'validation' for choices or 'test' for reports")
    whole = part_of(data, split, 1)  # type: ignore[arg-type]
    if whole is None:
        raise ConfigError(f"{data.name} has no {split} split: expected images in splits")
    most = min(_MOST, max(_FEWEST, _VALUES // whole.data[0].numel()))
    train, held_out = part_of(data, "train", most), part_of(data, split, most // 4)  # type: ignore[arg-type]
    if train is None or held_out is None:
        raise ConfigError(f"{data.name} has no {split} split: expected images in splits")
    labels = None if train.labels is None else train.labels.to(device)
    return ImageSplits(train.data.to(device), held_out.data.to(device), labels, name=split)


def image_classifier(data: Dataset, device: torch.device | str = "cpu", *, track: Track = untracked) -> Classifier:
    """The classifier in whose features images are compared: trained on the training split, accuracy on validation.

    Raises:
        ConfigError: for data without splits or labels.
    """
    train, validation = part_of(data, "train", _TAUGHT), part_of(data, "validation", _TAUGHT)
    if train is None or validation is None or train.labels is None or validation.labels is None:
        raise ConfigError(
            f"images are compared in the features of a classifier, which needs labels: {data.name} has none"
        )
    images, labels, others, other_labels = (tensor.to(device) for tensor in (*train, *validation))  # type: ignore[union-attr]
    return train_classifier(images, labels, validation_images=others, validation_labels=other_labels, track=track)


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


def split_size(data: Dataset, name: str) -> int:
    """Number of images in a split."""
    counts = getattr(data, "counts", None)
    if counts is not None:
        return counts[name]
    found = data.split(name)  # type: ignore[arg-type]
    return 0 if found is None else len(found.data)


def image_comparison(
    splits: ImageSplits, classifier: Classifier | None, floor: Measurement, total: int | None = None
) -> Comparison:
    """What all images are compared with; ``total`` is the size of the whole held-out split."""
    facts = {"held_out_nearest": floor.held_out_nearest}
    if classifier is not None:
        facts["classifier_accuracy"] = classifier.validation_accuracy
    if total is not None and total > len(splits.held_out):
        facts["split_size"] = total
    return Comparison(splits.name, len(splits.held_out), facts, floor.held_out_histogram)


def image_row(method: str, found: Measurement, variant: str = "") -> Row:
    """A row without a cost, of what ``metrics.measure`` found."""
    return Row(method, found.metrics, variant, draws=found.repeats, breakdown=found.histogram)
