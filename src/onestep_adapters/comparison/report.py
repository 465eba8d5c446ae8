"""The report of a comparison: one page as HTML and Markdown, and everything as JSON. Needs matplotlib and jinja2."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onestep_adapters.comparison.advice import advice_page, recommendations, verdict
from onestep_adapters.comparison.cells import samples_of
from onestep_adapters.comparison.grid import missing, results
from onestep_adapters.comparison.lines import Content, Line, lines_of
from onestep_adapters.comparison.plan import BASELINE, EVALUATIONS, Cell, Plan
from onestep_adapters.data import open_dataset, part_of
from onestep_adapters.devices import generator_on
from onestep_adapters.evaluation.criteria import criteria_of
from onestep_adapters.evaluation.figures import Figure, curves, image_grid, toy_scatter
from onestep_adapters.evaluation.pages import Column, Page, Picture, Section, Table, Value, to_text
from onestep_adapters.evaluation.pages.html import write_html
from onestep_adapters.evaluation.rows import counted, number, shown
from onestep_adapters.files import make_folder, write_whole

_DISTANCE = (
    "Distance: squared energy distance of samples to real data (2,000 points, or the held-out images in the features "
    "of a classifier), all pairs included, so that it is above zero for real data too: that is the floor."
)
_METHOD = Column("method", "a name of onestep train; -paper: the paper's settings")
_NEEDS = {
    "objective": Column("objective type", "what is minimised: a regression and of what, or a constraint"),
    "ode": Column("needs an ODE", "what the differential equation of a flow is needed for"),
    "self_contained": Column("self-contained", "whether data alone are enough; what else is needed"),
}


def write_comparison(plan: Plan, home: Path) -> Page:
    """Write ``report.html``, ``report.md`` with its pictures, ``report.json`` and ``which-method.md`` into a folder."""
    contents = results(plan, home)
    page = page_of(plan, home, contents)
    make_folder(home)
    for section in page.sections:
        for picture in section.pictures:
            write_whole(home / picture.file, picture.content)
    write_whole(home / "report.json", to_json(plan, contents))
    write_whole(home / "report.md", to_text(page) + "\n")
    write_whole(home / "which-method.md", to_text(advice_page(plan, lines_of(plan, contents))) + "\n")
    write_html(home, page)
    return page


def to_json(plan: Plan, contents: Sequence[Content]) -> str:
    """All numbers. Two comparisons with the same seeds differ in ``times`` and ``environment`` alone."""
    apart = ("times", "environment")
    lines = lines_of(plan, contents)
    whole = {
        "plan": {
            "data": plan.data,
            "methods": plan.methods,
            "seeds": plan.seeds,
            "budgets": plan.budgets,
            "batch": plan.batch,
            "repeats": plan.repeats,
            "left_out": plan.left_out,
        },
        "verdict": verdict(plan, lines),
        "recommendations": recommendations(plan, lines),
        "rows": [
            {
                "data": line.data,
                "method": line.method,
                "distances": {n: line.distance(int(n)) for n in _counts(line)},
                "spreads": {n: line.spread(int(n)) for n in _counts(line)},
                "floor": line.floor,
                "baseline": line.baseline,
                "near_after": line.near_after,
                "failed": [cell["reason"] for cell in line.failed],
            }
            for line in lines
        ],
        "cells": [{name: value for name, value in content.items() if name not in apart} for content in contents],
        **{
            name: {f"{c['method']} on {c['data']}, seed {c['seed']}": c[name] for c in contents if name in c}
            for name in apart
        },
    }
    return json.dumps(whole, allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def page_of(plan: Plan, home: Path, contents: Sequence[Content]) -> Page:
    """The page of a comparison."""
    lines = lines_of(plan, contents)
    budgets = "; ".join(f"{data} {budget:,}" for data, budget in plan.budgets.items())
    left = missing(plan, home)
    unfinished = f"{counted(len(left), 'cell')} of {len(plan.cells)} not finished: the same command goes on."
    return Page(
        title="Which one-step method? A comparison at equal budgets",
        opening=f"{counted(len(plan.methods), 'method')}, {counted(plan.seeds, 'seed')} each. Budget of a training in "
        f"network evaluations, the teacher's training and its pairs included: {budgets}. A forward pass of one sample "
        "counts 1, a backward pass 2, a tangent 1."
        + ("" if plan.batch is None else f" Every update has {plan.batch} samples."),
        verdict=[*verdict(plan, lines), *([unfinished] if left else [])],
        sections=[
            *(section for data in plan.data for section in _of_data(plan, home, lines, data)),
            Section("Which method?", ["By what one has, on each data set; the last sentence says when it turns."],
                    recommendations(plan, lines)),
            Section("Options of every run", lines=_options(contents), folded=True),
        ],
        environment=next((content["environment"] for content in contents if "environment" in content), {}),
    )  # fmt: skip


def _of_data(plan: Plan, home: Path, lines: Sequence[Line], data: str) -> Iterable[Section]:
    here = [line for line in lines if line.data == data]
    if not here:
        return
    pictures = []
    samples = _samples(plan, home, here, data)
    if samples is not None:
        pictures.append(_picture(f"Samples on {data} with the budget of each training", f"samples-{data}.png", samples))
    known = {line.method: line.curve for line in here if line.curve}
    if known:
        floor = here[0].floor
        drawn = curves(
            known,
            floor=floor,
            xlabel="network evaluations in training, teacher and pairs included",
            ylabel="squared energy distance",
        )
        pictures.append(_picture(f"Distance to {data} during training", f"curves-{data}.png", drawn))
    yield Section(f"Results on {data}", pictures=pictures, tables=[_quality(here), _metrics(here, data), _costs(here)])
    yield Section(f"Positioning on {data}", tables=[_positions(here)])


def _quality(lines: Sequence[Line]) -> Table:
    floor = lines[0].floor
    columns = [
        _METHOD,
        *(
            Column(
                f"× floor in {n}",
                f"distance in {counted(n, 'evaluation')} per sample over the floor; ± standard deviation over seeds",
            )
            for n in EVALUATIONS
        ),
        Column("× floor, own", "distance in the method's own number of evaluations per sample over the floor"),
        Column("× baseline", f"distance in one evaluation over that of {BASELINE} in its own 100"),
        Column("near after", "network evaluations in training until the distance is at most twice the floor"),
        Column("notes", "failures, with their reason; spikes of the gradient"),
    ]
    rows = []
    for line in lines:
        own = line.own
        rows.append(
            [
                Value(line.method),
                *(_over_floor(line, n) for n in EVALUATIONS),
                Value("–") if own is None else _over_floor(line, own),
                _value(line.over_baseline(line.fewest) if line.fewest else None),
                Value("never", float("inf")) if line.near_after is None and line.cells else _value(line.near_after),
                Value(_notes(line)),
            ]
        )
    note = f"{_DISTANCE} Here it is {number(floor)}."
    return Table(columns, _safe(rows), note=note if floor else "")


def _positions(lines: Sequence[Line]) -> Table:
    columns = [
        _METHOD,
        *_NEEDS.values(),
        *(
            Column(
                f"× baseline in {n}",
                f"distance in {counted(n, 'evaluation')} per sample over that of {BASELINE} in its own 100",
            )
            for n in EVALUATIONS
        ),
        Column("near after", "network evaluations in training until the distance is at most twice the floor"),
        Column("ms", "shortest time to make 1,000 samples in the fewest evaluations"),
        Column("instabilities", "trainings that stopped at a number that is not finite; spikes; seeds that failed"),
    ]
    rows = []
    for line in lines:
        counts = {"not finite": line.not_finite, "spikes": line.spikes, "failed": len(line.failed)}
        told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        rows.append(
            [
                Value(line.method),
                *(Value(line.declared[name]) for name in _NEEDS),
                *(_value(line.over_baseline(n)) for n in EVALUATIONS),
                _value(line.near_after),
                _value(line.milliseconds(line.fewest) if line.fewest else None),
                Value(told or "none"),
            ]
        )
    return Table(columns, rows)


def _metrics(lines: Sequence[Line], data: str) -> Table:
    """The metrics of a report, in the method's own number of evaluations, first seed."""
    known = criteria_of(open_dataset(data).kind).metrics
    done = [line for line in lines if line.cells]
    names = [name for name in known if any(name in (line.cells[0]["metrics"] or {}) for line in done)]
    rows = [
        [Value(label), *(_value((found or {}).get(name)) for name in names)]
        for label, found in (done[0].cells[0]["references"] if done else {}).items()
    ]
    for line in done:
        found = line.cells[0]["metrics"]
        rows.append([Value(line.method), *(Value("–") if not found else _value(found[name]["mean"]) for name in names)])
    columns = [_METHOD, *(Column(known[name].heading, known[name].meaning) for name in names)]
    return Table(columns, rows, title="All metrics, in the method's own number of evaluations", folded=True)


def _costs(lines: Sequence[Line]) -> Table:
    columns = [
        _METHOD,
        Column("updates", "of the network that makes the samples"),
        Column("evaluations", "network evaluations of these updates: forward 1, backward 2, tangent 1 for each sample"),
        Column("pairs", "evaluations of the teacher for pairs, before training"),
        Column("teacher", "evaluations in the training of the teacher"),
        Column("in all", "the sum: equal for all rows, to less than 1 %"),
        Column("seconds", "of training, the teacher's apart"),
        Column("ms, 1", "to make 1,000 samples in one evaluation each"),
        Column("ms, own", "in the method's own number"),
    ]
    rows = []
    for line in lines:
        if not line.spent:
            rows.append([Value(line.method), *(Value("–") for _ in columns[1:])])
            continue
        times = line.cells[0]["times"]
        rows.append(
            [
                Value(line.method),
                _value(line.cells[0]["updates"]),
                *(_value(line.spent[name]) for name in ("updates", "pairs", "teacher", "total")),
                _value(times["training_seconds"]),
                _value(line.milliseconds(1)),
                _value(line.milliseconds(line.own or 1)),
            ]
        )
    return Table(columns, rows, title="Budgets and times", folded=True)


def _samples(plan: Plan, home: Path, lines: Sequence[Line], data: str) -> Figure | None:
    cells = {line.method: Cell(data, line.method, line.cells[0]["seed"]) for line in lines if line.cells}
    drawn = {method: samples_of(cell, home) for method, cell in cells.items()}
    drawn = {method: arrays for method, arrays in drawn.items() if arrays and arrays["samples"].isfinite().all()}
    if not drawn:
        return None
    captions = {line.method: _caption(line) for line in lines if line.method in drawn}
    dataset, sets = open_dataset(data), {method: arrays["samples"] for method, arrays in drawn.items()}
    if dataset.kind == "points":
        return toy_scatter(dataset.sample(1000, generator_on("cpu", 3)), sets, captions=captions, columns=5)
    real = part_of(dataset, "train", 200)
    labels = {method: arrays["labels"] for method, arrays in drawn.items() if "labels" in arrays}
    assert real is not None
    return image_grid(
        real.data, sets, real_labels=real.labels, labels=labels or None, captions=captions, across=4, rows=10
    )


def _caption(line: Line) -> str:
    assert line.spent
    parts = [f"{line.spent['updates']:,} evaluations"]
    parts += [f"+ {line.spent[name]:,} for {told}" for name, told in (("pairs", "pairs"), ("teacher", "the teacher"))
              if line.spent[name]]  # fmt: skip
    own = line.own or 1
    return "\n".join([*parts, f"{counted(own if line.method == BASELINE else 1, 'evaluation')} per sample"])


def _picture(caption: str, file: str, figure: Figure) -> Picture:
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", metadata={"Software": None})
    return Picture(caption, file.replace(":", "-").replace("/", "-"), content.getvalue())


def _options(contents: Sequence[Content]) -> list[str]:
    """The options of every run; seeds of one method share a line."""
    same: dict[str, list[str]] = {}
    for content in contents:
        kept = {name: value for name, value in content.get("options", {}).items() if name != "training.seed"}
        if kept:
            told = ", ".join(f"{name} {shown(value)}" for name, value in kept.items())
            same.setdefault(told, []).append(f"{content['method']} on {content['data']}")
    return [f"**{'; '.join(dict.fromkeys(names))}**: {told}" for told, names in same.items()]


def _counts(line: Line) -> list[str]:
    return sorted({name for cell in line.cells for name in cell["distances"]}, key=int)


def _over_floor(line: Line, evaluations: int) -> Value:
    value, spread = line.over_floor(evaluations), line.spread(evaluations)
    if value is None:
        return Value("–")
    told = number(value) if spread is None or not line.floor else f"{number(value)} ± {number(spread / line.floor)}"
    return Value(told, value)


def _value(value: Any) -> Value:
    return Value("–") if value is None else Value(number(value), float(value))


def _notes(line: Line) -> str:
    notes = [f"seed {cell['seed']} failed: {cell['reason']}" for cell in line.failed]
    if line.spikes:
        notes.append(counted(line.spikes, "gradient spike"))
    return "; ".join(notes) or "–"


def _safe(rows: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """Infinity sorts last, and is no number of JSON or HTML."""
    return [[Value(v.text, 1e30) if v.order == float("inf") else v for v in row] for row in rows]
