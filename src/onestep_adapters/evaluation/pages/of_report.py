"""The page of a report on runs. Needs jinja2, an extra."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from onestep_adapters.evaluation.markdown import (
    COST_HEADINGS,
    METRIC_HEADINGS,
    cost_line,
    costs_note,
    metric_line,
    sentence,
    verdict_cell,
)
from onestep_adapters.evaluation.pages.html import write_html
from onestep_adapters.evaluation.pages.page import Column, Page, Picture, Section, Table, Value
from onestep_adapters.evaluation.report import Report
from onestep_adapters.evaluation.rows import shown
from onestep_adapters.evaluation.summary import summary


def write_page(folder: str | os.PathLike[str], report: Report, pictures: Mapping[str, str] | None = None) -> Path:
    """Write ``report.html`` into a folder; pictures are files there, by what they show."""
    found = [Picture(caption, file, (Path(folder) / file).read_bytes()) for caption, file in (pictures or {}).items()]
    return write_html(folder, page_of(report, found))


def page_of(report: Report, pictures: Sequence[Picture] = ()) -> Page:
    """The page of a report: verdict, pictures, metrics, thresholds, costs, options."""
    every = [*report.references.rows, *report.rows]
    names = [name for name in report.metrics if any(row.metrics and name in row.metrics for row in every)]
    metrics = [Column(report.metrics[name].heading, report.metrics[name].meaning) for name in names]
    draws = max((row.draws for row in report.rows), default=0)
    tables = [
        Table(
            [*map(Column, METRIC_HEADINGS), *metrics],
            [
                [
                    *(Value(text) for text in metric_line(row, [])),
                    *(
                        Value(text, row.metrics[name].mean if row.metrics and name in row.metrics else None)
                        for name, text in zip(names, metric_line(row, names)[len(METRIC_HEADINGS) :], strict=True)
                    ),
                ]
                for row in every
            ],
            title="Metrics",
            note=report.criteria.meanings(report.comparison, report.references),
        ),
        Table(
            [*map(Column, COST_HEADINGS)],
            [[Value(text, _number(text)) for text in cost_line(row)] for row in report.rows],
            title="Cost",
            note=costs_note(report),
            folded=True,
        ),
    ]
    if report.verdicts:
        limits = list(dict.fromkeys(verdict.name for found in report.verdicts.values() for verdict in found))
        lines = []
        for label, verdicts in report.verdicts.items():
            by_name = {verdict.name: verdict for verdict in verdicts}
            cells = (Value(verdict_cell(by_name.get(name))) for name in limits)
            lines.append([Value(label), Value(report.overall(label)), *cells])
        tables.insert(1, Table([*map(Column, ["method", "overall", *limits])], lines, title="Thresholds", folded=True))
    options = [
        f"**{row.label}**: {', '.join(f'{name} {shown(value)}' for name, value in row.options.items())}"
        for row in report.rows
        if row.options
    ]
    notes = [f"**{row.label}**: {row.notes}" for row in report.rows if row.notes]
    return Page(
        title=report.title,
        opening=f"{report.date}. {sentence(report.description)} {report.criteria.opening(report.comparison, draws)}",
        verdict=[line.strip() for line in summary(report)],
        sections=[
            Section("Results", [report.notes] if report.notes else [], pictures=pictures, tables=tables),
            Section("Which options were chosen, and why", lines=notes, folded=True),
            Section("Options of every run", lines=options, folded=True),
        ],
        environment=report.environment,
    )


def _number(text: str) -> float | None:
    """The number of a cell, by which its column is sorted."""
    try:
        found = float(text.replace(",", ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None
