"""Consistency distillation: a teacher's solver makes the second state, and both must have one end."""

from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import DISTANCES, Distance, Network, Training, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH, one_evaluation, solved, straight_consistency
from onestep_adapters.recipes.students import start_from_teacher, teacher_velocity
from onestep_adapters.training import LossStep
from onestep_core import (
    consistency_regression,
    halved_step,
    uniform_levels,
)


@attrs.frozen
class ConsistencyDistillation:
    """CD: Heun's method on the teacher between neighbours of a grid; the average is the target."""

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """What to learn from; its network is the student's, which starts from its weights."""
    intervals: int = attrs.field(default=18, validator=positive)
    """Of the uniform grid of times."""
    solver_steps: int = attrs.field(default=1, validator=positive)
    """Heun steps of the teacher in an interval; one, as published."""
    target: Literal["average", "online"] = "average"
    """Whose answer at the second state is the target: the moving average's, as published, or the network's own."""

    distance: Distance = "squared"
    """squared, or its root, which blurs less where the map is steep: targets are not random here."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: prediction, target, and two a solver step of the teacher."""
        return 2 + 2 * self.solver_steps

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(problem, 1, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        start_from_teacher(setting)
        distance = DISTANCES[self.distance]

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            data, noise, labels, _ = draw(setting.problem, self.training.batch, generator)
            index = torch.randint(self.intervals, (len(data),), generator=generator)
            t, _, m = halved_step(index, self.intervals, levels=_levels)
            z = PATH(data, noise, t).z
            z_m = solved(teacher_velocity(setting, labels), z, t, m, steps=self.solver_steps)
            online = straight_consistency(network, labels)
            target = online if self.target == "online" else straight_consistency(setting.state.ema, labels)
            return distance(*consistency_regression(online, target, z, z_m, t, m)).mean(), {}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_evaluation(straight_consistency(network, labels), noise, path=PATH)


def _levels(fraction: Tensor) -> Tensor:
    return uniform_levels(fraction, path=PATH)
