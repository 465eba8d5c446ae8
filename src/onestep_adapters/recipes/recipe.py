"""What a recipe has, and what one with a second player has besides."""

from typing import Protocol, TypeVar, runtime_checkable

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import Training
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep


class Recipe(Protocol):
    """Options of a method that know how to train and to sample it."""

    @property
    def training(self) -> Training:
        """How long and how fast."""
        ...

    @property
    def teacher(self) -> FlowMatching | None:
        """Options of the teacher that it learns from, or ``None``."""
        ...

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        ...

    @property
    def calls(self) -> int:
        """Forward passes in an update: of the network, its average, a teacher, a discriminator."""
        ...

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A fresh network."""
        ...

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        ...

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise ``[count, *shape]``."""
        ...


R = TypeVar("R", bound=Recipe)


def with_seed(recipe: R, seed: int) -> R:
    """The same options, trained from another seed; a teacher keeps its own.

    Example:
        >>> with_seed(FlowMatching(), 3).training.seed
        3
    """
    return attrs.evolve(recipe, training=attrs.evolve(recipe.training, seed=seed))  # type: ignore[type-var]


@runtime_checkable
class TwoPlayers(Protocol):
    """What a recipe has besides where a second network learns in turns with the first."""

    @property
    def ratio(self) -> int:
        """Updates of the second network for one of the first."""
        ...

    @property
    def opponent_pace(self) -> float:
        """Its learning rate, in units of the first one's."""
        ...

    def build_opponent(self, problem: Problem) -> nn.Module | None:
        """A fresh second network; none where the options need none."""
        ...

    def opponent_step(self, setting: Setting) -> LossStep:
        """The loss of one of its updates."""
        ...
