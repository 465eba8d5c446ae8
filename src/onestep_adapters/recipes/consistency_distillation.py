"""Consistency distillation: a teacher's solver makes the second state, and both must have one end."""

from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import Network, Training, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.students import start_from_teacher, teacher_velocity
from onestep_adapters.samplers import consistency_multistep
from onestep_adapters.training import LossStep
from onestep_core import (
    Linear,
    consistency_regression,
    denoiser_from_velocity,
    halved_step,
    heun,
    mse,
    uniform_levels,
)
from onestep_core.protocols import ConsistencyFunction

PATH = Linear()


def straight_consistency(network: nn.Module, labels: Tensor | None) -> ConsistencyFunction:
    """``f(z, t) = z - t v(z, t)``: a velocity network of the linear path as a consistency function.

    The identity at ``t = 0`` for every network; of a teacher's network, its expected data.
    """
    return denoiser_from_velocity(as_velocity(network, label=labels), path=PATH)


def one_evaluation(function: ConsistencyFunction, noise: Tensor) -> Tensor:
    """Samples of a consistency function on the linear path: one evaluation at pure noise."""
    return consistency_multistep(function, PATH.prior(noise), [PATH.noise_time, PATH.data_time], path=PATH, noise=None)


@attrs.frozen
class ConsistencyDistillation:
    """CD: one Heun step of the teacher between neighbours of a grid; the average is the target."""

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """What to learn from; its network is the student's, which starts from its weights."""
    intervals: int = attrs.field(default=18, validator=positive)
    """Of the uniform grid of times."""
    target: Literal["average", "online"] = "average"
    """Whose answer at the second state is the target: the moving average's, as published, or the network's own."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: prediction, target, and two of the teacher."""
        return 4

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(problem, 1, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        start_from_teacher(setting)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            data, noise, labels = draw(setting.problem, self.training.batch, generator)
            index = torch.randint(self.intervals, (len(data),), generator=generator)
            t, _, m = halved_step(index, self.intervals, levels=_levels)
            z = PATH(data, noise, t).z
            with torch.no_grad():
                z_m = heun(teacher_velocity(setting, labels), z, t, m)
            online = straight_consistency(network, labels)
            target = online if self.target == "online" else straight_consistency(setting.state.ema, labels)
            return mse(*consistency_regression(online, target, z, z_m, t, m)).mean(), {}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_evaluation(straight_consistency(network, labels), noise)


def _levels(fraction: Tensor) -> Tensor:
    return uniform_levels(fraction, path=PATH)
