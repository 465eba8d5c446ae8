"""What a recipe trains in: the data, the state of the run, and a teacher where it asked for one."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from onestep_adapters.recipes.problems import Problem
from onestep_adapters.training import TrainingState


class Setting(NamedTuple):
    """Handed to a recipe once, before the first update.

    ``state`` moves on while the run does: ``state.ema`` is the moving average now, ``state.step`` the updates made.
    ``teacher`` is the averaged network of a flow-matching run on the same data, in evaluation mode, or ``None``.
    ``kept`` is a folder for what is made with that teacher once and used again, named by a hash of its configuration,
    or ``None``.
    """

    problem: Problem
    state: TrainingState
    teacher: nn.Module | None = None
    kept: Path | None = None
