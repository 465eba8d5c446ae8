"""Every cell of a plan, in several processes; what is finished is kept, and what was interrupted goes on.

Each process takes the next cell that nobody works on, claims it by a lock that the system releases if the process dies,
and works on it to its end. A cell whose teacher another process trains has to wait, and other cells go first.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onestep_adapters.comparison.cells import Bench, failed, read_cell, run_of, work_on, write_cell
from onestep_adapters.comparison.plan import Cell, Plan
from onestep_adapters.data import open_dataset
from onestep_adapters.files import LockedError, make_folder, one_writer, write_whole
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Phase
from onestep_adapters.training import side_by_side
from onestep_adapters.training.folder import LOCK
from onestep_adapters.training.processes import Tell
from onestep_core.errors import ConfigError

PLAN = "plan.json"
_CLAIM = ".claim"
_PAUSE, _OFTEN = 1.0, 0.5


class Progress(NamedTuple):
    """How far a cell is: network evaluations made, and what it does besides training; ``done`` at its end."""

    cell: Cell
    made: int
    phase: str = ""
    done: bool = False


def work(plan: Plan, home: Path, *, workers: int) -> Iterator[Progress]:
    """Work on all cells that are not finished, and tell how far they are.

    Args:
        plan: the plan; the same as that of the folder, if it holds one (other cells may be added).
        home: folder of the comparison.
        workers: processes, each with one thread; at least 1.

    Raises:
        ConfigError: if the folder holds a comparison of another budget or another judge.
        OneStepError: if a process dies.
    """
    keep_plan(plan, home)
    open_cells = sum(read_cell(cell, home) is None for cell in plan.cells)
    lanes = min(workers, open_cells)
    if lanes:
        # The checks of shapes cost about a tenth of the time of such small networks.
        os.environ.setdefault("JAXTYPING_DISABLE", "1")
        yield from side_by_side([partial(lane_of, plan, home, lane) for lane in range(lanes)])


def keep_plan(plan: Plan, home: Path) -> None:
    """Write the plan into the folder, or compare it with the one there.

    Raises:
        ConfigError: if what it says about a data set is not the same.
    """
    file = make_folder(home) / PLAN
    mine = {"budgets": dict(plan.budgets), "repeats": plan.repeats, "points": plan.points, "batch": plan.batch}
    if file.is_file():
        theirs = json.loads(file.read_text())
        if theirs["batch"] != plan.batch:
            raise ConfigError(
                f"{home} holds a comparison with {_batch(theirs['batch'])}, and you want {_batch(plan.batch)}: give "
                "the same --preset and --batch, or another --folder"
            )
        for name, budget in theirs["budgets"].items():
            if mine["budgets"].get(name, budget) != budget or theirs["repeats"] != plan.repeats:
                raise ConfigError(
                    f"{home} holds a comparison with a budget of {budget:,} network evaluations on {name} and "
                    f"{theirs['repeats']} draws, and you want {plan.budgets.get(name, budget):,} and {plan.repeats}: "
                    "give the same --preset and --budget, or another --folder"
                )
        mine["budgets"] = {**theirs["budgets"], **mine["budgets"]}
    write_whole(file, json.dumps(mine, indent=1) + "\n")


def _batch(batch: int | None) -> str:
    return "the batches of each method's preset" if batch is None else f"batches of {batch} samples"


def lane_of(plan: Plan, home: Path, lane: int, tell: Tell) -> Iterator[Progress]:
    """Work on cells in this process until none is left.

    Args:
        plan: the plan.
        home: folder of the comparison.
        lane: number of this process; it decides at which end of the grid the process begins.
        tell: gets the progress from inside of slow work.
    """
    os.environ["ONESTEP_TEACHERS"] = str(home / "teachers")
    torch.set_num_threads(1)
    benches: dict[str, Bench] = {}
    while True:
        left = [cell for cell in _ordered(plan, lane) if read_cell(cell, home) is None]
        if not left:
            return
        worked = False
        for cell in left:
            folder = make_folder(cell.folder(home))
            try:
                with one_writer(folder / _CLAIM):
                    if read_cell(cell, home) is not None:
                        continue
                    bench = benches.setdefault(cell.data, Bench(open_dataset(cell.data), plan.repeats, plan.points))
                    for progress in _cell(cell, plan, bench, home, tell):
                        yield progress
                        worked = True
            except LockedError:
                continue
        if not worked:
            time.sleep(_PAUSE)


def _ordered(plan: Plan, lane: int) -> Sequence[Cell]:
    """Lanes begin at different places, so that they do not wait for the same teacher."""
    cells = plan.cells
    return [*cells[::-1]] if lane % 2 else cells


def _cell(cell: Cell, plan: Plan, bench: Bench, home: Path, tell: Tell) -> Iterator[Progress]:
    """A cell to its end, failures included; nothing if another process trains its teacher."""
    made, last = 0, 0.0

    def phase(found: Phase) -> None:
        nonlocal last
        if time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            tell(Progress(cell, made, f"{found.title} {found.done}/{found.total}"))

    try:
        run = run_of(cell, plan, home)
        if _taught_elsewhere(run):
            return
        for made in work_on(cell, run, bench, home, phase):
            if time.monotonic() - last > _OFTEN:
                last = time.monotonic()
                yield Progress(cell, made)
    except (LockedError, OSError):
        raise
    except Exception as error:  # a cell that fails is a row with its reason
        write_cell(cell.folder(home), failed(cell, error))
    yield Progress(cell, plan.budgets[cell.data], done=True)


def _taught_elsewhere(run: Run) -> bool:
    """Whether another process trains the teacher now."""
    teacher, folder = run.teacher_run, run.teacher_folder
    if teacher is None or folder is None or teacher.finished or run.finished:
        return False
    try:
        with one_writer(make_folder(folder) / LOCK):
            return False
    except LockedError:
        return True


def results(plan: Plan, home: Path) -> list[dict[str, Any]]:
    """The content of every finished cell, in the order of the plan."""
    found = (read_cell(cell, home) for cell in plan.cells)
    return [content for content in found if content is not None]


def missing(plan: Plan, home: Path) -> list[Cell]:
    """Cells that are not finished."""
    return [cell for cell in plan.cells if read_cell(cell, home) is None]
