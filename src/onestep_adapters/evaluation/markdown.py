"""A report as Markdown, for a reader who sees one for the first time."""

import math
from collections.abc import Iterable, Mapping, Sequence

from onestep_adapters.evaluation.report import Report
from onestep_adapters.evaluation.rows import Row, Verdict, number, shown
from onestep_adapters.metrics import Estimate

_WORDS = {"<=": "at most", ">=": "at least", ">": "more than"}
_SIGNS = {"<=": "≤", ">=": "≥", ">": ">"}
_OPPOSITES = {"<=": ">", ">=": "<", ">": "≤"}

METRIC_HEADINGS = ["method", "evaluations per sample", "evaluations in training", "draws"]
"""Headings of :func:`metric_line`, before those of the metrics."""

COST_HEADINGS = [
    "method",
    "evaluations per sample",
    "ms per 1,000 samples",
    "updates",
    "evaluations in training",
    "teacher's updates",
    "teacher's evaluations in training",
    "training seconds",
]
"""Headings of :func:`cost_line`."""

_COSTS = (
    "One evaluation is one call of a network: on one batch in training, on one sample in sampling. *In training* "
    "counts those of all updates: of the method's networks, and of a teacher that it calls. The columns *teacher's* "
    "count the training of that teacher, which came before. Pairs that a teacher makes are not counted. Seconds are "
    "those of the updates, without the teacher's."
)

_PRETRAINED = (
    " What the training of a pretrained model cost, from which a run started or learned, is not known and not counted."
)


def costs_note(report: Report) -> str:
    """What the table of costs counts."""
    return _COSTS + (_PRETRAINED if any(row.cost and row.cost.pretrained for row in report.rows) else "")


def to_markdown(report: Report, pictures: Mapping[str, str] | None = None) -> str:
    """The report as Markdown: metrics, thresholds, costs, meanings, notes.

    Args:
        report: the report.
        pictures: files of pictures, relative to that of the report, by what they show.
    """
    every = [*report.references.rows, *report.rows]
    criteria, comparison = report.criteria, report.comparison
    metrics = report.metrics
    shown = [name for name in metrics if any(row.metrics and name in row.metrics for row in every)]
    draws = max((row.draws for row in report.rows), default=0)
    headings = [metrics[name].heading for name in shown]
    parts = [
        f"# {report.title}",
        f"{report.date}. {sentence(report.description)} {criteria.opening(comparison, draws)}",
        report.notes,
        *(f"![{caption}]({file})\n\n*{caption}*" for caption, file in (pictures or {}).items()),
        "## Metrics",
        _table(
            [*METRIC_HEADINGS, *headings],
            [metric_line(row, shown) for row in every],
        ),
        "## Thresholds",
        *_thresholds(report),
        "## Cost",
        _table(
            COST_HEADINGS,
            [cost_line(row) for row in report.rows],
        ),
        costs_note(report),
        *_breakdown(report, every),
        "## What the columns mean",
        criteria.meanings(comparison, report.references),
        "\n".join(f"- **{metrics[name].heading}**: {metrics[name].meaning}" for name in shown),
        "## Which options were chosen, and why",
        _notes(every) or "No notes were passed in.",
        *options_of(every),
        "## Where it ran",
        ", ".join(f"{name} {value}" for name, value in report.environment.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metric_line(row: Row, shown: Sequence[str]) -> list[str]:
    """The cells of a row in the table of metrics: its label, costs, draws, and the metrics ``shown``."""
    cost = row.cost
    per_sample = number(cost and cost.evaluations_per_sample)
    training = number(cost and cost.training_evaluations)
    if cost is not None and cost.pretrained:
        training = "not known" if cost.updates is None else f"{training} + pretrained"
    if cost is not None and cost.teacher_evaluations is not None:
        training += f" + {number(cost.teacher_evaluations)} (teacher)"
    opening = [_cell(row.label), per_sample, training, str(row.draws or "–")]
    if row.metrics is None:
        return [*opening, *("not measured" for _ in shown)]
    return [*opening, *(_estimate(row.metrics.get(name)) for name in shown)]


def cost_line(row: Row) -> list[str]:
    """The cells of a row in the table of costs, under :data:`COST_HEADINGS`."""
    cost = row.cost
    if cost is None:
        return [_cell(row.label), *("–" for _ in range(7))]
    return [
        _cell(row.label),
        *map(
            number,
            (
                cost.evaluations_per_sample,
                cost.milliseconds_per_1000,
                cost.updates,
                cost.training_evaluations,
                cost.teacher_updates,
                cost.teacher_evaluations,
                cost.training_seconds,
            ),
        ),
    ]


def _breakdown(report: Report, every: Sequence[Row]) -> list[str]:
    chosen = report.criteria.breakdown
    if chosen is None or not report.comparison.breakdown:
        return []
    heading, sentence = chosen
    lines = [
        [f"{report.comparison.split} split", *_per_cent(report.comparison.breakdown)],
        *([_cell(row.label), *_per_cent(row.breakdown)] for row in every if row.breakdown),
    ]
    head = ["method", *map(str, range(len(report.comparison.breakdown)))]
    return [f"## {heading}", sentence, _table(head, lines)]


def _per_cent(shares: Iterable[float]) -> list[str]:
    return [f"{100 * share:.1f}" for share in shares]


def _thresholds(report: Report) -> list[str]:
    if not report.verdicts:
        return ["No baseline was given, so no row is judged."]
    peer = next((row for row in report.rows if row.label == report.baseline), None)
    if peer is None:
        opening = "Every row is compared with the floor."
    elif report.criteria.judges_references:
        opening = f"Methods are compared with the baseline, *{_cell(peer.label)}*, and the baseline with the floor."
    else:
        opening = f"Methods are compared with the baseline, *{_cell(peer.label)}*."
    remarks = []
    if not report.sound:
        remarks.append("The baseline itself misses a threshold: matching it does not show much.")
    peer_updates = (peer and peer.cost and peer.cost.updates) or math.inf
    longer = [row.label for row in report.rows if row.cost and (row.cost.updates or 0) > peer_updates]
    if peer is not None and longer:
        remarks.append(
            f"The baseline had {number(peer_updates)} training updates. Rows with more: "
            f"{', '.join(map(_cell, longer))}. To compare with these, train the baseline at least as long."
        )
    names = list(dict.fromkeys(v.name for found in report.verdicts.values() for v in found))
    lines = []
    for label, verdicts in report.verdicts.items():
        by_name, missed = {v.name: v for v in verdicts}, len(report.missed(label))
        overall = report.overall(label) + (f" ({missed} of {len(verdicts)})" if missed else "")
        lines.append([_cell(label), overall, *(verdict_cell(by_name.get(name)) for name in names)])
    reasons = "\n".join(f"- **{name}**: {_reasons(report, name)}." for name in names)
    return [opening, *remarks, _table(["method", "overall", *names], lines), "Where each limit comes from:", reasons]


def _reasons(report: Report, name: str) -> str:
    """Where the limits of one threshold come from: for most rows, then for those with another reason, by name."""
    rows: dict[str, list[str]] = {}
    for label, verdicts in report.verdicts.items():
        for verdict in verdicts:
            if verdict.name == name:
                rows.setdefault(f"{_WORDS[verdict.relation]} {verdict.explanation}", []).append(_cell(label))
    common = max(rows, key=lambda reason: len(rows[reason]))
    others = [f"{reason} ({', '.join(labels)})" for reason, labels in rows.items() if reason != common]
    return "; ".join([common, *others])


def verdict_cell(verdict: Verdict | None) -> str:
    """A verdict with its value and limit."""
    if verdict is None:
        return "–"
    if verdict.value is None:
        return "**miss**: not measured"
    if verdict.passed:
        return f"pass: {number(verdict.value)} {_SIGNS[verdict.relation]} {number(verdict.limit)}"
    return f"**miss**: {number(verdict.value)} {_OPPOSITES[verdict.relation]} {number(verdict.limit)}"


def _notes(every: Iterable[Row]) -> str:
    """One line for each note, with the rows that share it."""
    same: dict[str, list[str]] = {}
    for row in every:
        if row.notes:
            same.setdefault(row.notes, []).append(_cell(row.label))
    return "\n".join(f"- **{'; '.join(labels)}**: {note}" for note, labels in same.items())


def options_of(rows: Iterable[Row]) -> list[str]:
    """A section with the options of every row that has some; nothing where no row has."""
    same: dict[str, list[str]] = {}
    for row in rows:
        if row.options:
            told = ", ".join(f"{name} {shown(value)}" for name, value in row.options.items())
            same.setdefault(told, []).append(_cell(row.label))
    lines = "\n".join(f"- **{'; '.join(labels)}**: {told}" for told, labels in same.items())
    return ["## All options of the runs", lines] if lines else []


def sentence(text: str) -> str:
    """The text with a full stop at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
