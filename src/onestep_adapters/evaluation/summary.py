"""A report in about ten lines: what passed, what failed and by how much, against which baseline."""

from collections.abc import Iterator, Sequence

from onestep_adapters.evaluation.measuring import OTHER_OPTIONS
from onestep_adapters.evaluation.report import Report
from onestep_adapters.evaluation.rows import Row, Verdict, counted, number
from onestep_adapters.metrics import Estimate

_WORDS = {"<=": "at most", ">=": "at least", ">": "more than"}


def summary(report: Report) -> list[str]:
    """The verdict on every row; for a single one every threshold too.

    Example:
        >>> from onestep_adapters.evaluation.point_criteria import point_references
        >>> from onestep_adapters.evaluation.report import make_report
        >>> from onestep_adapters.evaluation.rows import Comparison
        >>> scores = {"flow-matching": Estimate(0.01, 0.001), "meanflow": Estimate(0.05, 0.002)}
        >>> report = make_report(
        ...     [Row(name, {"score": score}, draws=5) for name, score in scores.items()],
        ...     kind="points",
        ...     data="8gaussians",
        ...     comparison=Comparison("fresh draws", 10_000),
        ...     references=point_references(0.0, 0.1),
        ...     baseline="flow-matching",
        ... )
        >>> print("\\n".join(summary(report)))
        meanflow on 8gaussians, against the baseline flow-matching: miss (1 of 2 thresholds)
          miss  score             0.0500, at most 0.0340: 0.0160 too high
          pass  baseline trained  0.0100, at most 0.0300
        flow-matching (baseline): pass
    """
    judged = [row for row in report.rows if row.label != report.baseline] or list(report.rows)
    lines = list(_one(report, judged[0]) if len(judged) == 1 else _many(report, judged))
    if report.baseline is not None and all(row.label != report.baseline for row in judged):
        lines.append(f"{report.baseline} (baseline): {_overall(report, report.baseline, reasons=True)}")
    if report.baseline is None:
        lines.append(_without_baseline(report))
    return lines + _in_an_encoder(report)


def _one(report: Report, row: Row) -> Iterator[str]:
    yield f"{row.label} on {report.data}, {_against(report)}: {_overall(report, row.label)}"
    verdicts = report.verdicts.get(row.label, ())
    widest = max((len(verdict.name) for verdict in verdicts), default=0)
    for verdict in verdicts:
        yield f"  {'pass' if verdict.passed else 'miss'}  {verdict.name:<{widest}}  {_told(verdict)}"
    if not verdicts:
        yield from _metrics(report, row)
    if row.notes.startswith(OTHER_OPTIONS) or row.metrics is None:
        yield f"  {row.notes}"
    if row.cost is not None:
        yield f"  cost: {'; '.join(row.cost.caption.splitlines())}"


def _many(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    yield f"{counted(len(rows), 'row')} on {report.data}, {_against(report)}:"
    widest = max(len(row.label) for row in rows)
    for row in rows:
        if report.verdicts:
            yield f"  {row.label:<{widest}}  {_overall(report, row.label, reasons=True)}"
        else:
            yield f"  {row.label:<{widest}}  {', '.join(_values(report, row)) or row.notes}"


def _against(report: Report) -> str:
    if report.baseline is not None and len(report.rows) > 1:
        return f"against the baseline {report.baseline}"
    return "against real data"


def _overall(report: Report, label: str, *, reasons: bool = False) -> str:
    """The verdict; with ``reasons`` and what was missed."""
    missed = [verdict for verdict in report.verdicts.get(label, ()) if not verdict.passed]
    overall = report.overall(label)
    if not missed:
        return "not judged" if not report.verdicts.get(label) else overall
    row = next(row for row in report.rows if row.label == label)
    if reasons and row.metrics is None:
        return f"{overall}: not measured, {row.notes or 'for a reason that is not given'}"
    if reasons:
        told = (f"{v.name} {number(v.value)} (limit {number(v.limit)})" for v in missed)
        return f"{overall} ({len(missed)} of {len(report.verdicts[label])}): {', '.join(told)}"
    return f"{overall} ({len(missed)} of {counted(len(report.verdicts[label]), 'threshold')})"


def _told(verdict: Verdict) -> str:
    limit = f"{_WORDS[verdict.relation]} {number(verdict.limit)}"
    if verdict.value is None:
        return f"not measured, {limit}"
    told = f"{number(verdict.value)}, {limit}"
    if verdict.passed:
        return told
    return f"{told}: {number(abs(verdict.value - verdict.limit))} too {'high' if verdict.relation == '<=' else 'low'}"


def _in_an_encoder(report: Report) -> list[str]:
    """One line: the Fréchet distance of every row and of the reference rows; no threshold looks at it."""
    if not report.comparison.encoder:
        return []
    every = {
        row.label: row.metrics["encoder_frechet"] for row in (*report.rows, *report.references.rows) if row.metrics
    }
    told = "; ".join(f"{label} {_estimate(found)}" for label, found in every.items())
    return [f"{report.metrics['encoder_frechet'].heading}, no threshold: {told}"]


def _metrics(report: Report, row: Row) -> Iterator[str]:
    for value in _values(report, row):
        yield f"  {value}"


def _values(report: Report, row: Row) -> list[str]:
    found = row.metrics or {}
    references = (report.references.floor, report.references.moments)
    values = []
    for name, metric in report.metrics.items():
        if name in found:
            known = {row.label: row.metrics[name].mean for row in references if row.metrics and name in row.metrics}
            beside = "".join(f"; {label} {number(mean)}" for label, mean in known.items())
            values.append(f"{metric.heading} {_estimate(found[name])}{beside}")
    return values


def _estimate(estimate: Estimate) -> str:
    return number(estimate.mean) + ("" if estimate.se is None else f" ± {number(estimate.se)}")


def _without_baseline(report: Report) -> str:
    what = "samples are compared with real data alone" if report.verdicts else "no row is judged"
    return (
        f"without a baseline {what}: train one with onestep train flow-matching --data {report.data}, and evaluate "
        "again with --baseline and its folder"
    )
