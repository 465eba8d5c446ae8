"""One cell of the grid: a training within its budget, its samples, and what was measured, in one file.

The file ``cell.json`` is written last and whole: where it exists, the cell is done. A cell that failed has one too,
with the reason; remove the file to try again. What may differ between two runs with one seed, times and hardware, is in
fields of their own (``times``, ``environment``).
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from onestep_adapters.comparison.budget import Spent, spent, with_batch, within_budget
from onestep_adapters.comparison.distances import Ruler, ruler_of
from onestep_adapters.comparison.plan import EVALUATIONS, Cell, Plan
from onestep_adapters.data import Dataset, open_dataset
from onestep_adapters.evaluation.judges import Judge, judge_of
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.samples import write_samples
from onestep_adapters.evaluation.watching import histories, watched
from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.methods import Method, find_preset
from onestep_adapters.methods.work import total_work
from onestep_adapters.runs import Run, resume_or_start
from onestep_adapters.runs.configs import dotted
from onestep_adapters.tracking import Phase, told

FILE = "cell.json"
"""Name of the file that a finished cell has."""

DRAWS = 4
"""Draws of samples for the distance at each number of evaluations."""

WATCHED = 2
"""Draws for a point of the curve over the training."""

CURVE = 8
"""Points of the curve over the training."""

_PICTURED = {"points": 1000, "images": 40}
_SPIKE, _BEFORE = 10.0, 100


@attrs.define(eq=False)
class Bench:
    """What the cells of one data set share: its data, its ruler and its judge, made when first asked for."""

    data: Dataset
    repeats: int
    points: int
    _ruler: Ruler | None = None
    _judge: Judge | None = None

    def ruler(self) -> Ruler:
        """Distances to the data."""
        if self._ruler is None:
            self._ruler = ruler_of(self.data)
        return self._ruler

    def judge(self) -> Judge:
        """All metrics of a report."""
        if self._judge is None:
            device = torch.device("cpu")
            self._judge = judge_of(
                self.data, split="test", repeats=self.repeats, seed=0, device=device, count=self.points
            )
        return self._judge


def options_of(cell: Cell, plan: Plan) -> Method:
    """The options of a cell: the preset's, with its seed, and as many updates as the budget allows.

    Raises:
        ConfigError: for a budget that is too small.
    """
    data = open_dataset(cell.data)
    options = find_preset(cell.method).options(data).with_seed(cell.seed)
    if plan.batch is not None:
        options = with_batch(options, plan.batch)
    return within_budget(options, data, plan.budgets[cell.data])


def run_of(cell: Cell, plan: Plan, home: Path) -> Run:
    """The run of a cell, new or as it was left.

    Raises:
        ConfigError: for a budget that is too small.
        CheckpointError: if the folder holds another run.
    """
    folder, options = cell.folder(home), options_of(cell, plan)
    return resume_or_start(folder / "run", cell.method, cell.data, options, resume=True)


def work_on(cell: Cell, run: Run, bench: Bench, home: Path, tell: Callable[[Phase], None]) -> Iterator[int]:
    """Train a cell to its end, then judge and write it; yields the network evaluations made so far."""
    folder, cost, start = cell.folder(home), spent(run.options, run.data), time.process_time()
    for record in run.teaching(track=told(tell)):
        yield round(cost.teacher * record.step / run.teacher_run.options.training.steps)  # type: ignore[union-attr]
    before, steps = cost.teacher + cost.pairs, run.options.training.steps
    # Also after the last update: a process that was killed then may have left a distance out.
    distance = partial(bench.ruler().during_training, draws=WATCHED)
    for record in watched(run, folder / "run", distance, points=CURVE, track=told(tell)):
        yield before + round(cost.updates * record.step / steps)
    found = measured(cell, run, bench, cost, told(tell))
    count = _PICTURED[run.data.kind]
    drawn = run.sampled_in(1) if run.options.few_steps and run.options.evaluations < EVALUATIONS[-1] else run
    write_samples(drawn, folder / "samples", count=count, seed=2)
    found["times"]["processor_seconds"] = time.process_time() - start
    write_cell(folder, found)


def measured(cell: Cell, run: Run, bench: Bench, cost: Spent, track: Any) -> dict[str, Any]:
    """Everything that the reports print of a finished cell."""
    options, ruler = run.options, bench.ruler()
    distances, milliseconds = {}, {}
    own = options.evaluations
    counts = sorted({*(EVALUATIONS if options.few_steps else ()), own})
    for count in counts:
        sampled = run.sampled_in(count)
        values = ruler.distances(sampled, draws=DRAWS if count <= EVALUATIONS[-1] else 2)
        distances[str(count)] = finite(statistics.fmean(values))
        milliseconds[str(count)] = sampled.milliseconds_per_1000() if count <= EVALUATIONS[-1] else None
    judged = bench.judge().judge(run, track)
    milliseconds[str(own)] = judged.milliseconds_per_1000
    metrics = judged.metrics and {name: attrs.asdict(found) for name, found in judged.metrics.items()}
    steps = options.training.steps
    before = cost.teacher + cost.pairs
    points = histories({"": run}).get("", [])
    reference = {row.label: row.metrics and {n: e.mean for n, e in row.metrics.items()} for row in bench_rows(bench)}
    return {
        **attrs.asdict(cell),
        "status": "done",
        "reason": "",
        "spent": {**attrs.asdict(cost), "total": cost.total},
        "updates": steps,
        "teacher_updates": None if options.teacher is None else options.teacher.training.steps,
        "declared": declared(options, run.data),
        "evaluations_per_sample": own,
        "distances": distances,
        "floor": ruler.floor,
        "metrics": metrics,
        "breakdown": list(judged.breakdown),
        "references": reference,
        "curve": [[before + round(cost.updates * step / steps), finite(value)] for step, value in points],
        "spikes": spikes([entry["gradient_norm"] for entry in run.state.history]),
        "options": dotted(options),
        "times": {
            "training_seconds": run.seconds,
            "teacher_seconds": None if run.teacher_run is None else run.teacher_run.seconds,
            "milliseconds_per_1000": milliseconds,
        },
        "environment": environment(),
    }


def bench_rows(bench: Bench) -> tuple[Any, ...]:
    """The reference rows."""
    return bench.judge().references.rows


def declared(options: Method, data: Dataset) -> dict[str, Any]:
    """What a method says about itself."""
    return {
        "objective": options.objective,
        "ode": options.ode,
        "self_contained": options.self_contained,
        "needs": list(options.needs),
        "few_steps": options.few_steps,
        "derivative": total_work(options, data).tangent > 0,
    }


def failed(cell: Cell, error: Exception) -> dict[str, Any]:
    """The content of a cell that failed."""
    told_lines, data = str(error).strip().splitlines() or [type(error).__name__], open_dataset(cell.data)
    return {
        **attrs.asdict(cell),
        "status": "failed",
        "reason": f"{type(error).__name__}: {told_lines[0]}",
        "declared": declared(find_preset(cell.method).options(data), data),
        "environment": environment(),
    }


def write_cell(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``cell.json``, whole or not at all."""
    write_whole(make_folder(folder) / FILE, json.dumps(content, allow_nan=False, indent=1, ensure_ascii=False) + "\n")


def read_cell(cell: Cell, home: Path) -> dict[str, Any] | None:
    """The content of a finished cell; ``None`` if it is not finished."""
    file = cell.folder(home) / FILE
    return json.loads(file.read_text()) if file.is_file() else None


def samples_of(cell: Cell, home: Path) -> dict[str, torch.Tensor]:
    """The samples that a finished cell kept for pictures, and their classes; nothing where there are none."""
    file = cell.folder(home) / "samples.npz"
    if not file.is_file():
        return {}
    with np.load(file) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def spikes(norms: list[float]) -> int:
    """Updates whose gradient norm is above ten times the median of the hundred before.

    Example:
        >>> spikes([1.0] * 100 + [20.0, 1.0])
        1
    """
    return sum(norms[i] > _SPIKE * statistics.median(norms[i - _BEFORE : i]) for i in range(_BEFORE, len(norms)))


def finite(value: float) -> float | None:
    """The number, or ``None`` for one that JSON has no word for.

    Example:
        >>> finite(float("nan")) is None
        True
    """
    return value if math.isfinite(value) else None
