"""The parts of a report: rows with named metrics and costs, reference rows, verdicts."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import attrs

from onestep_adapters.metrics import Estimate

Kind = Literal["points", "images"]
"""Kind of data: 2-D toys and other point sets with unlimited draws, or images in splits."""


class Metric(NamedTuple):
    """How a table shows a metric: its column heading, and its meaning for the text below."""

    heading: str
    meaning: str


@attrs.frozen
class Cost:
    """What a row cost; ``None`` where it is not known.

    One evaluation is one call of a network on one batch, in training, or on one sample, in sampling.

    Attributes:
        evaluations_per_sample: network evaluations for one generated sample.
        updates: training updates (gradient steps).
        training_evaluations: network evaluations in all updates: of the network, its average, a teacher, a
            discriminator.
        teacher_updates: training updates of the row's teacher; ``None`` without a teacher.
        teacher_evaluations: network evaluations in all updates of the teacher. Pairs that a teacher makes are not
            counted.
        training_seconds: wall-clock time of the updates, without the teacher's.
        milliseconds_per_1000: time to generate 1,000 samples.
        pretrained: whether the row is, or started from, a model of a pipeline of diffusers, which does not say how it
            was trained.
    """

    evaluations_per_sample: int | None = None
    updates: int | None = None
    training_evaluations: int | None = None
    teacher_updates: int | None = None
    teacher_evaluations: int | None = None
    training_seconds: float | None = None
    milliseconds_per_1000: float | None = None
    pretrained: bool = False

    @property
    def caption(self) -> str:
        """The training budget and the evaluations per sample, for pictures: one fact a line.

        Example:
            >>> print(Cost(1, 600, 1200, 2400, 2400).caption)
            600 updates, 1,200 evaluations
            + 2,400 evaluations for the teacher
            1 evaluation per sample
        """
        lines = []
        if self.updates is not None:
            spent = "" if self.training_evaluations is None else f", {counted(self.training_evaluations, 'evaluation')}"
            lines.append(counted(self.updates, "update") + spent)
        if self.pretrained:
            lines.append("training not known" if self.updates is None else "+ a pretrained model's, not known")
        if self.teacher_evaluations is not None:
            lines.append(f"+ {counted(self.teacher_evaluations, 'evaluation')} for the teacher")
        if self.evaluations_per_sample is not None:
            lines.append(f"{counted(self.evaluations_per_sample, 'evaluation')} per sample")
        return "\n".join(lines)


@attrs.frozen
class Row:
    """One method, or one reference set, with its metrics and its cost.

    Attributes:
        method: its name.
        metrics: an :class:`~onestep_adapters.metrics.Estimate` by name; ``None`` where there was nothing to measure,
            such as samples that are not finite.
        variant: what distinguishes this row from others of the method, such as "without the adversary".
        draws: independent draws of samples that were measured.
        breakdown: one number for each class of images (share of the samples), or for each mode of points (standard
            deviation over the real one).
        cost: ``None`` for reference rows.
        notes: which options were chosen and why; what failed.
        options: all options of the run, by their dotted names.
    """

    method: str
    metrics: Mapping[str, Estimate] | None
    variant: str = ""
    draws: int = 0
    breakdown: tuple[float, ...] = ()
    cost: Cost | None = None
    notes: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def label(self) -> str:
        """``method (variant)``: unique in a report."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


@attrs.frozen
class References:
    """The reference rows; the last two only for images (``class_moments`` only with labels)."""

    floor: Row
    moments: Row
    class_moments: Row | None = None
    resampled: Row | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those that there are, in the order of the table."""
        every = (self.floor, self.moments, self.class_moments, self.resampled)
        return tuple(row for row in every if row is not None)


@attrs.frozen
class Comparison:
    """What the samples of every row are compared with.

    Attributes:
        split: of real data: ``"test"``, ``"validation"``, or ``"fresh draws"``.
        count: real samples, and samples in one draw of a row.
        facts: numbers that hold for all rows, by name; images: ``held_out_nearest`` (5 % quantile of the distance from
            held-out images to the nearest training image), ``classifier_accuracy``.
        breakdown: that of the real samples, as :attr:`Row.breakdown`.
        encoder: name of the encoder in whose features the metrics ``encoder_*`` are; empty: there are none.
    """

    split: str
    count: int
    facts: Mapping[str, float] = attrs.field(factory=dict)
    breakdown: tuple[float, ...] = ()
    encoder: str = ""


@attrs.frozen
class Verdict:
    """One threshold: a row passes if ``value relation limit``.

    Attributes:
        name: of the threshold.
        value: of the row; ``None`` where nothing was measured.
        limit: the threshold.
        passed: whether the row passes.
        explanation: where the limit comes from.
        relation: ``"<="``, ``">="`` or ``">"``.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    explanation: str
    relation: str


def verdict(name: str, value: float | None, relation: str, limit: float, explanation: str) -> Verdict:
    """A verdict with :attr:`Verdict.passed` filled in; a value that is ``None`` does not pass.

    Example:
        >>> verdict("density", 0.9, ">=", 0.8, "0.8 times that of real images").passed
        True
    """
    passed = value is not None and {"<=": value <= limit, ">=": value >= limit, ">": value > limit}[relation]
    return Verdict(name, value, limit, passed, explanation, relation)


def allowance(*estimates: Estimate | None) -> str:
    """What a limit with two standard errors of the estimates adds; a single draw has no standard error.

    Example:
        >>> allowance(Estimate(1.0, 0.1)), allowance(Estimate(1.0))
        ('plus two standard errors', 'without a margin for the error, which one draw does not give')
    """
    known = [estimate.se is not None for estimate in estimates if estimate is not None]
    if all(known):
        return "plus two standard errors"
    if any(known):
        return "plus two standard errors of the row that has several draws"
    return "without a margin for the error, which one draw does not give"


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> counted(2400, "update"), counted(1, "update")
        ('2,400 updates', '1 update')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shown(value: Any) -> str:
    """The value of an option, for readers.

    Example:
        >>> shown(4000), shown(0.005), shown(None), shown([0.1, 0.2]), shown("")
        ('4,000', '0.005', 'none', '0.1 0.2', 'none')
    """
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value in (None, "") else str(value)


def number(value: float | None) -> str:
    """A number as tables print it: three digits, and a dash where there is none.

    Example:
        >>> number(0.51234), number(12.345), number(20000), number(None)
        ('0.512', '12.3', '20,000', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
