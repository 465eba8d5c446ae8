"""A report: rows of methods beside reference rows, bars with a verdict each, and what every number means.

A number is a bar only where a Gaussian with the training mean and covariance fails it. The energy distance
and the Fréchet distance in pixels are therefore shown and never barred. The bars compare a method with a
*yardstick*, a many-step sampler with the same network and at least the method's training steps; the
yardstick itself is compared with the *floor*, real images against real images.
"""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch

from onestep_adapters.metrics.classifier import Classifier
from onestep_adapters.metrics.measurement import Estimate, Measurement, Splits, measure_references
from onestep_core.errors import ConfigError

COLUMNS: dict[str, tuple[str, str]] = {
    "neighbour_accuracy": (
        "1-NN accuracy",
        "how often the nearest other image, in pixels, tells whether an image is real or generated. 0.5 cannot "
        "be told apart, 1 always can. **Barred.**",
    ),
    "density": (
        "density",
        "how many neighbourhoods of real images hold a generated one, in pixels, over the number expected; about "
        "1 for real images, and above 1 for samples that keep to the crowded places. **Barred.**",
    ),
    "coverage": (
        "coverage",
        "share of real images with a generated one in their neighbourhood, in pixels: what is missing lowers it. "
        "**Barred.**",
    ),
    "energy_features": (
        "E² in features",
        "squared energy distance between the classifier's features of the two sets, unbiased: 0 for one law, "
        "below 0 by chance. **Barred.**",
    ),
    "frechet_features": (
        "Fréchet in features",
        "squared Fréchet distance in those features; biased upwards by the finite count, as the floor shows. "
        "**Barred.**",
    ),
    "nearest_training": (
        "nearest training image, 5 %",
        "distance in pixels from which 95 % of the images keep away from every training image. Far below the "
        "held-out split's own, the samples are copies. **Barred.**",
    ),
    "class_variation": (
        "class variation",
        "total variation between the predicted classes of the two sets: 0 equal, 1 disjoint. Shown.",
    ),
    "label_agreement": (
        "label agreement",
        "share of samples that the classifier puts in the class that was asked for. Shown.",
    ),
    "precision": ("precision", "share of generated images in a real neighbourhood, in pixels. Shown."),
    "recall": ("recall", "share of real images in a generated neighbourhood, in pixels. Shown."),
    "sliced_pixels": ("sliced W in pixels", "sliced Wasserstein distance in pixels. Shown."),
    "energy_pixels": (
        "E² in pixels",
        "squared energy distance in pixels. Shown, never barred: a fitted Gaussian passes it.",
    ),
    "frechet_pixels": (
        "Fréchet in pixels",
        "squared Fréchet distance in pixels. Shown, never barred: a fitted Gaussian passes it.",
    ),
}
"""Heading and meaning of every metric, in the order of the table."""


@attrs.frozen
class Row:
    """One method, with its cost and its measurement.

    Attributes:
        method: its name.
        variant: what sets this row apart from others of the method, such as "without the adversary".
        measurement: ``None`` where there was nothing to measure, such as samples that are not finite.
        network_evaluations: network calls per generated sample.
        training_seconds: wall-clock time of the training.
        steps: gradient steps.
        network_calls: forward passes of a batch in the whole training, teachers included.
        milliseconds_per_1000: time to generate 1,000 samples.
        notes: what was chosen and why; what went wrong.
    """

    method: str
    measurement: Measurement | None
    variant: str = ""
    network_evaluations: int | None = None
    training_seconds: float | None = None
    steps: int | None = None
    network_calls: int | None = None
    milliseconds_per_1000: float | None = None
    notes: str = ""

    @property
    def label(self) -> str:
        """``method (variant)``: unique in a report."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


class Verdict(NamedTuple):
    """One bar: ``value relation limit`` is what passing means; ``value`` is ``None`` where nothing was measured."""

    name: str
    value: float | None
    limit: float
    passed: bool
    explanation: str
    relation: str


class References(NamedTuple):
    """The reference rows; the last only for labelled data."""

    floor: Row
    moments: Row
    class_moments: Row | None = None


@attrs.frozen
class Report:
    """Everything that a report prints; made by :func:`make_report`."""

    title: str
    data: str
    split: str
    references: References
    rows: tuple[Row, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]]
    yardstick: str | None
    classifier_accuracy: float
    environment: Mapping[str, str | int]
    date: str
    notes: str = ""


def reference_rows(*, splits: Splits, classifier: Classifier, **settings: Any) -> References:
    """The rows every report carries: floor, moments and class-conditional moments.

    Args:
        splits: as for ``measure``.
        classifier: as for ``measure``.
        **settings: ``generator``, ``repeats``, ``k``, ``directions`` of ``measure_references``.
    """
    measured = measure_references(splits=splits, classifier=classifier, **settings)
    return References(
        Row("floor", measured["floor"], "real against real"),
        Row("moments", measured["moments"], "one Gaussian"),
        Row("moments", measured["class moments"], "a Gaussian per class") if "class moments" in measured else None,
    )


def bars(row: Row, yardstick: Row | None, floor: Row, moments: Row, class_moments: Row | None = None) -> list[Verdict]:
    """The verdict on every bar.

    ::

        1-NN accuracy                    <=  yardstick + 0.05
        density, coverage                >=  0.8 yardstick,  and  >  moments
        E², Fréchet in features          <=  yardstick + 2 se   or   <=  (floor + class moments) / 2
        nearest training image, 5 %      >=  the held-out split's own

    with ``se`` the standard error of the difference from the yardstick.

    Args:
        row: the method.
        yardstick: what it has to match; ``None``, or ``row`` itself, compares with the floor.
        floor: real against real.
        moments: the Gaussian with the training mean and covariance.
        class_moments: one Gaussian per class; ``moments`` where there are no labels.

    Raises:
        ConfigError: if a row to compare with has no measurement.

    Example:
        See :func:`make_report`.
    """
    peer, name = (
        (floor, "the floor") if yardstick is None or yardstick.label == row.label else (yardstick, "the yardstick")
    )
    compared = [peer, floor, moments, class_moments or moments]
    for other in compared:
        if other.measurement is None:
            raise ConfigError(f"row {other.label!r} has no measurement to compare {row.label!r} with: measure it")
    against, low, high, classes = (other.measurement for other in compared if other.measurement is not None)
    mine = row.measurement
    verdicts = []

    def judge(metric: str, limit: float, relation: str, why: str) -> None:
        value = None if mine is None else mine.metrics[metric].mean
        passed = value is not None and {"<=": value <= limit, ">=": value >= limit, ">": value > limit}[relation]
        verdicts.append(Verdict(COLUMNS[metric][0], value, limit, passed, why, relation))

    accuracy = against.metrics["neighbour_accuracy"].mean
    judge("neighbour_accuracy", accuracy + 0.05, "<=", f"{_number(accuracy)} of {name} plus 0.05")
    for metric in ("density", "coverage"):
        share, gaussian = 0.8 * against.metrics[metric].mean, high.metrics[metric].mean
        if share > gaussian:
            judge(metric, share, ">=", f"0.8 times {_number(share / 0.8)} of {name}")
        else:
            judge(metric, gaussian, ">", "what the moments row has")
    for metric in ("energy_features", "frechet_features"):
        rival, own = against.metrics[metric], mine.metrics[metric] if mine is not None else Estimate(0.0)
        near = rival.mean + 2 * math.hypot(rival.se or 0.0, own.se or 0.0)
        halfway = (low.metrics[metric].mean + classes.metrics[metric].mean) / 2
        if near >= halfway:
            judge(metric, near, "<=", f"{_number(rival.mean)} of {name} plus two standard errors")
        else:
            judge(metric, halfway, "<=", "halfway from the floor to the moments, per class where there are labels")
    judge("nearest_training", low.held_out_nearest, ">=", "the held-out images' own")
    return verdicts


def make_report(
    rows: Sequence[Row],
    *,
    references: References,
    splits: Splits,
    classifier: Classifier,
    yardstick: str | None = None,
    title: str = "One-step generation",
    data: str = "digits",
    notes: str = "",
) -> Report:
    """Judge every row and gather what the report prints.

    Args:
        rows: methods, the yardstick among them.
        references: of :func:`reference_rows`.
        splits: the ones measured with; the report prints the sizes and the name of the held-out one.
        classifier: the one measured with.
        yardstick: label of the row to match; ``None`` compares every row with the floor.
        title: the first line.
        data: what the images are.
        notes: printed under the title.

    Raises:
        ConfigError: for two rows with one label, or a yardstick that is not among the rows.

    Example:
        ::

            classifier = train_classifier(train, labels, validation_images=..., validation_labels=...)
            splits = Splits(train, test, labels, name="test")
            references = reference_rows(splits=splits, classifier=classifier)
            row = Row("MeanFlow", measure(samples, splits=splits, classifier=classifier), steps=20_000)
            write_report("reports", make_report([flow, row], references=references, splits=splits,
                                                classifier=classifier, yardstick=flow.label))
    """
    every = [*(r for r in references if r is not None), *rows]
    labels = [row.label for row in every]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise ConfigError(f"two rows are called {doubled[0]!r}: give each a variant of its own")
    if yardstick is not None and yardstick not in [row.label for row in rows]:
        raise ConfigError(f"the yardstick {yardstick!r} is not among the rows {[row.label for row in rows]}")
    peer = next((row for row in rows if row.label == yardstick), None)
    return Report(
        title=title,
        data=f"{data}: {len(splits.train)} training and {len(splits.held_out)} {splits.name} images",
        split=splits.name,
        references=references,
        rows=tuple(rows),
        verdicts={row.label: tuple(bars(row, peer, *references)) for row in every if row is not references.floor},
        yardstick=yardstick,
        classifier_accuracy=classifier.validation_accuracy,
        environment=environment(),
        date=time.strftime("%Y-%m-%d"),
        notes=notes,
    )


def environment() -> dict[str, str | int]:
    """Versions and hardware, without the name of the host or of any folder.

    Example:
        >>> sorted(environment())
        ['cpu', 'cuda', 'python', 'system', 'threads', 'torch']
    """
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def to_json(report: Report) -> str:
    """The report as strict JSON: no NaN, no infinity, keys in a fixed order.

    Raises:
        ConfigError: if a number is not finite.
    """
    content = attrs.asdict(report)
    content["references"] = [row and attrs.asdict(row) for row in report.references]
    content["verdicts"] = {k: [v._asdict() for v in vs] for k, vs in report.verdicts.items()}
    try:
        return json.dumps(content, allow_nan=False, indent=1, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise ConfigError(f"a report holds finite numbers only; None says that one is missing ({error})") from error


def from_json(text: str) -> Report:
    """The report that :func:`to_json` wrote.

    Raises:
        ConfigError: if the text is no such report.
    """

    def row(content: dict[str, Any]) -> Row:
        found = content["measurement"]
        if found is not None:
            metrics = {name: Estimate(**e) for name, e in found["metrics"].items()}
            tuples = {name: tuple(found[name]) for name in ("histogram", "held_out_histogram")}
            found = Measurement(**{**found, **tuples, "metrics": metrics})
        return Row(**{**content, "measurement": found})

    try:
        content = json.loads(text)
        references = References(*(r and row(r) for r in content["references"]))
        rows = tuple(row(r) for r in content["rows"])
        verdicts = {k: tuple(Verdict(**v) for v in vs) for k, vs in content["verdicts"].items()}
        return Report(**{**content, "references": references, "rows": rows, "verdicts": verdicts})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"expected a report written by to_json, of this version: {error!r}") from error


def write_report(folder: str | os.PathLike[str], report: Report) -> None:
    """Write ``report.json`` and ``report.md`` into ``folder``, each whole or not at all."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", to_json(report)), ("report.md", to_markdown(report))):
        with tempfile.NamedTemporaryFile("w", dir=place, delete=False, encoding="utf-8", prefix=f".{name}.") as file:
            temporary = Path(file.name)
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        temporary.chmod(0o644)
        temporary.replace(place / name)


def to_markdown(report: Report) -> str:
    """The report for a reader who has not seen one: metrics, bars, costs, classes, meanings, notes."""
    every = [*(r for r in report.references if r is not None), *report.rows]
    measured = [row.measurement for row in every if row.measurement is not None]
    first = measured[0]
    shown = [name for name in COLUMNS if any(name in m.metrics for m in measured)]
    parts = [
        f"# {report.title}",
        f"{report.date}. {report.data}. Every number compares {first.count} generated images with the "
        f"{first.count} images of the **{report.split}** split; mean ± standard error over independent draws.",
        report.notes,
        "## Metrics",
        _table(
            ["method", "draws", *(COLUMNS[name][0] for name in shown)],
            [
                [_cell(row.label), *([str(m.repeats), *(_estimate(m.metrics.get(n)) for n in shown)] if m else ["0"] + ["not measured"] * len(shown))]
                for row in every
                for m in [row.measurement]
            ],
        ),
        f"The {report.split} images' own 5 % distance to the nearest training image is {_number(first.held_out_nearest)}.",
        "## Bars",
        *_bars(report),
        "## Cost",
        _table(
            ["method", "network evaluations per sample", "ms per 1,000 samples", "steps", "network calls in training", "training seconds"],
            [
                [_cell(r.label), *map(_number, (r.network_evaluations, r.milliseconds_per_1000, r.steps, r.network_calls, r.training_seconds))]
                for r in report.rows
            ],
        ),
        "## Classes",
        f"Share of each class as the classifier predicts it, in per cent.",
        _table(
            ["method", *map(str, range(len(first.histogram)))],
            [
                [f"{report.split} split", *(f"{100 * p:.1f}" for p in first.held_out_histogram)],
                *([_cell(r.label), *(f"{100 * p:.1f}" for p in r.measurement.histogram)] for r in every if r.measurement),
            ],
        ),
        "## What the columns mean",
        f"The classifier was trained on the training split and is right on {100 * report.classifier_accuracy:.1f} % "
        "of the validation split; its features are measured in units of their own spread. *floor* is real training "
        "images against held-out ones: nothing can be expected to beat it. *moments* is a Gaussian with the training "
        "mean and covariance, and one per class: what it passes tests nothing.",
        "\n".join(f"- **{COLUMNS[name][0]}**: {COLUMNS[name][1]}" for name in shown),
        "## What was chosen and why",
        "\n".join(f"- **{_cell(row.label)}**: {row.notes}" for row in every if row.notes) or "No notes were passed in.",
        "## Where it ran",
        ", ".join(f"{name} {value}" for name, value in report.environment.items()) + ".",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _bars(report: Report) -> list[str]:
    peer = next((row for row in report.rows if row.label == report.yardstick), None)
    sound = peer is None or all(v.passed for v in report.verdicts[peer.label])
    opening = (
        "Every row is compared with the floor."
        if peer is None
        else f"Methods are compared with the yardstick, *{peer.label}*, and the yardstick with the floor."
    )
    remarks = []
    if not sound:
        remarks.append("The yardstick misses a bar itself, so no method's pass means what it should.")
    for row in report.rows:
        if peer is not None and (row.steps or 0) > (peer.steps or math.inf):
            remarks.append(
                f"The yardstick had {peer.steps} training steps and {row.label} {row.steps}: train it longer."
            )
    names = [v.name for v in next(iter(report.verdicts.values()))]
    lines, reasons = [], []
    for label, verdicts in report.verdicts.items():
        missed = sum(not v.passed for v in verdicts)
        overall = f"misses {missed} of {len(verdicts)}" if missed else "meets every bar"
        if not missed and not sound:
            overall += ", but the yardstick does not"
        lines.append([_cell(label), overall, *map(_verdict, verdicts)])
        reasons.append(f"- {_cell(label)}: " + "; ".join(f"{v.name} {_SIGNS[v.relation]} {_number(v.limit)}, {v.explanation}" for v in verdicts) + ".")  # fmt: skip
    return [opening, *remarks, _table(["method", "overall", *names], lines), "Where each limit comes from:", "\n".join(reasons)]  # fmt: skip


_SIGNS = {"<=": "≤", ">=": "≥", ">": ">"}
_OPPOSITES = {"<=": ">", ">=": "<", ">": "≤"}


def _verdict(verdict: Verdict) -> str:
    if verdict.value is None:
        return "**miss**: not measured"
    if verdict.passed:
        return f"pass: {_number(verdict.value)} {_SIGNS[verdict.relation]} {_number(verdict.limit)}"
    return f"**miss**: {_number(verdict.value)} {_OPPOSITES[verdict.relation]} {_number(verdict.limit)}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return _number(estimate.mean) + ("" if estimate.se is None else f" ± {_number(estimate.se)}")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])
