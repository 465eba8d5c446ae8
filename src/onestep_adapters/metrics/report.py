"""A report: rows of methods beside reference rows, bars with a verdict each, and what every number means.

It is written for a reader who sees one for the first time, as Markdown, and as strict JSON for programs. What
the bars are and why stands in ``metrics.rows``.
"""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from onestep_adapters.metrics.classifier import Classifier
from onestep_adapters.metrics.measurement import Estimate, Evaluation, Measurement, measure_references
from onestep_adapters.metrics.rows import COLUMNS as COLUMNS
from onestep_adapters.metrics.rows import References as References
from onestep_adapters.metrics.rows import Row as Row
from onestep_adapters.metrics.rows import Verdict as Verdict
from onestep_adapters.metrics.rows import bars as bars
from onestep_adapters.metrics.rows import number
from onestep_core.errors import ConfigError


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

    @property
    def sound(self) -> bool:
        """Whether the yardstick meets its own bars; so too where there is none."""
        return self.yardstick is None or not self.missed(self.yardstick)

    def missed(self, label: str) -> list[str]:
        """Names of the bars that a row misses."""
        return [verdict.name for verdict in self.verdicts[label] if not verdict.passed]

    def met(self) -> str:
        """What is said of a row that misses none."""
        return "meets every bar" + ("" if self.sound else ", but the yardstick does not")


def reference_rows(*, splits: Evaluation, classifier: Classifier, **settings: Any) -> References:
    """The rows every report carries: floor, moments, class-conditional moments and resampled training images.

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
        Row("resampled", measured["resampled"], "training images again"),
    )


def make_report(
    rows: Sequence[Row],
    *,
    references: References,
    splits: Evaluation,
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
            splits = Evaluation(train, test, labels, name="test")
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
        verdicts={row.label: tuple(bars(row, peer, references)) for row in every if row is not references.floor},
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
    content = attrs.asdict(report, recurse=False)
    content["rows"] = [attrs.asdict(row) for row in report.rows]
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
    first = next(row.measurement for row in every if row.measurement is not None)
    shown = [name for name in COLUMNS if any(r.measurement and name in r.measurement.metrics for r in every)]
    per_cent = [
        [f"{report.split} split", *_per_cent(first.held_out_histogram)],
        *([_cell(row.label), *_per_cent(row.measurement.histogram)] for row in every if row.measurement),
    ]
    costs = ["network evaluations per sample", "ms per 1,000 samples", "training steps"]
    costs += ["network calls in training", "training seconds"]
    parts = [
        f"# {report.title}",
        f"{report.date}. {report.data}. Every number compares {first.count} generated images with the "
        f"{first.count} images of the **{report.split}** split: mean ± standard error over independent draws.",
        report.notes,
        "## Metrics",
        _table(["method", "draws", *(COLUMNS[n][0] for n in shown)], [_metrics(row, shown) for row in every]),
        f"The {report.split} images' own 5 % distance to the nearest training image is "
        f"{number(first.held_out_nearest)}.",
        "## Bars",
        *_bars(report),
        "## Cost",
        _table(["method", *costs], [_costs(row) for row in report.rows]),
        "Calls and seconds are those of the updates; training a teacher, and making pairs with it, comes before them.",
        "## Classes",
        "Share of each class as the classifier predicts it, in per cent.",
        _table(["method", *map(str, range(len(first.histogram)))], per_cent),
        "## What the columns mean",
        f"Samples are compared with the {report.split} split, on which nothing was trained; only the distance to the "
        "nearest training image looks at the training split. The classifier was "
        f"trained on the training split and is right on {100 * report.classifier_accuracy:.1f} % of the "
        "validation split; its features are measured in units of their own spread. *floor* is real training "
        "images against held-out ones: nothing can be expected to do better. *moments* is a Gaussian with the "
        f"training mean and covariance{', and one per class' if report.references.class_moments else ''}: what it "
        f"passes tests nothing.{_RESAMPLED if report.references.resampled else ''}",
        "\n".join(f"- **{COLUMNS[name][0]}**: {COLUMNS[name][1]}" for name in shown),
        "## What was chosen and why",
        "\n".join(f"- **{_cell(row.label)}**: {row.notes}" for row in every if row.notes) or "No notes were passed in.",
        "## Where it ran",
        ", ".join(f"{name} {value}" for name, value in report.environment.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metrics(row: Row, shown: Sequence[str]) -> list[str]:
    found = row.measurement
    if found is None:
        return [_cell(row.label), "0", *("not measured" for _ in shown)]
    return [_cell(row.label), str(found.repeats), *(_estimate(found.metrics.get(name)) for name in shown)]


def _costs(row: Row) -> list[str]:
    costs = (row.network_evaluations, row.milliseconds_per_1000, row.steps, row.network_calls)
    return [_cell(row.label), *map(number, costs), number(row.training_seconds)]


def _per_cent(histogram: Iterable[float]) -> list[str]:
    return [f"{100 * share:.1f}" for share in histogram]


def _bars(report: Report) -> list[str]:
    peer = next((row for row in report.rows if row.label == report.yardstick), None)
    opening = (
        "Every row is compared with the floor."
        if peer is None
        else f"Methods are compared with the yardstick, *{_cell(peer.label)}*, and the yardstick with the floor."
    )
    remarks = []
    if not report.sound:
        remarks.append("The yardstick misses a bar itself: a method that matches it has matched too little.")
    for row in report.rows:
        if peer is not None and (row.steps or 0) > (peer.steps or math.inf):
            remarks.append(
                f"The yardstick had {number(peer.steps)} training steps and {_cell(row.label)} had "
                f"{number(row.steps)}: train the yardstick at least as long."
            )
    lines = []
    for label, verdicts in report.verdicts.items():
        missed = len(report.missed(label))
        overall = f"misses {missed} of {len(verdicts)}" if missed else report.met()
        lines.append([_cell(label), overall, *map(_verdict, verdicts)])
    names = [v.name for v in next(iter(report.verdicts.values()))]
    reasons = "\n".join(f"- **{name}**: {_reasons(report, i)}." for i, name in enumerate(names))
    table = _table(["method", "overall", *names], lines)
    return [opening, *remarks, table, "Where each limit comes from:", reasons]


def _reasons(report: Report, bar: int) -> str:
    """Where the limits of one bar come from; the rows are named where they differ."""
    rows: dict[str, list[str]] = {}
    for label, verdicts in report.verdicts.items():
        verdict = verdicts[bar]
        rows.setdefault(f"{_WORDS[verdict.relation]} {verdict.explanation}", []).append(_cell(label))
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{reason} ({', '.join(labels)})" for reason, labels in rows.items())


_RESAMPLED = (
    " *resampled* draws training images with replacement, as a generator that knows them by heart: it passes what does "
    "not look for copies. Some are drawn twice and are each other's neighbours, so its 1-NN accuracy is above the "
    "floor's; a generator gets below it by what it makes of the images beyond them."
)
_WORDS = {"<=": "at most", ">=": "at least", ">": "more than"}
_SIGNS = {"<=": "≤", ">=": "≥", ">": ">"}
_OPPOSITES = {"<=": ">", ">=": "<", ">": "≤"}


def _verdict(verdict: Verdict) -> str:
    if verdict.value is None:
        return "**miss**: not measured"
    if verdict.passed:
        return f"pass: {number(verdict.value)} {_SIGNS[verdict.relation]} {number(verdict.limit)}"
    return f"**miss**: {number(verdict.value)} {_OPPOSITES[verdict.relation]} {number(verdict.limit)}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if not estimate.se:
        return number(estimate.mean)
    decimals = min(max(1 - math.floor(math.log10(estimate.se)), 0), 4)  # two digits of the error
    return f"{estimate.mean:.{decimals}f} ± {estimate.se:.{decimals}f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])
