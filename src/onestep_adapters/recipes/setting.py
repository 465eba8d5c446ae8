"""What a recipe trains in: the data, the state of the run, and a teacher where it asked for one.

Some recipes have more to say; what it is, is a protocol each: :class:`Remembering`, :class:`Monitored`,
:class:`Guided`.
"""

from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

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


@runtime_checkable
class Remembering(Protocol):
    """A recipe that keeps something between updates beside its network."""

    def memory(self, problem: Problem) -> nn.Module | None:
        """What becomes ``state.memory`` of a fresh run, and is saved with it; ``None`` for nothing."""
        ...


@runtime_checkable
class Monitored(Protocol):
    """A recipe whose loss says nothing about progress."""

    @property
    def monitors(self) -> tuple[str, ...]:
        """Names of the logged numbers that the training display shows in place of the loss."""
        ...


@runtime_checkable
class Guided(Protocol):
    """A recipe whose network takes the guidance scale as an input."""

    def with_alpha(self, alpha: float) -> Self:
        """The same recipe, sampling at ``alpha``; ``ConfigError`` outside the range that was trained."""
        ...
