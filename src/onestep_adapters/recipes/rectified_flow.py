"""Rectified flow on a teacher's pairs, and knowledge distillation of them: one step from the noise."""

from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.flow_matching import FlowMatching, mixed_times
from onestep_adapters.recipes.options import DISTANCES, Distance, Network, Training, positive, share
from onestep_adapters.recipes.pairs import teacher_pairs
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.students import required_teacher
from onestep_adapters.samplers import one_step
from onestep_adapters.training import LossStep
from onestep_core import (
    Linear,
    flow_map_from_average_velocity,
    knowledge_distillation_regression,
    rectified_flow_regression,
)


@attrs.frozen
class Reflow:
    """Learn the straight lines between noise and what a teacher makes of it; sample by one Euler step.

    The pairs are made before the first update, ``2 solver_steps`` evaluations of the teacher each, and kept beside it
    for the runs that ask for the same ones.
    """

    any_teacher: ClassVar[bool] = True
    """The student starts anew, so its network may be another one."""
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    training: Training = Training()
    network: Network = Network()
    variant: Literal["reflow", "distillation"] = "reflow"
    """reflow: the direction of the line at any point of it. distillation: at its noise end alone, that is, its data
    end from its noise end."""
    pairs: int = attrs.field(default=20_000, validator=positive)
    """How many pairs."""
    solver_steps: int = attrs.field(default=25, validator=positive)
    """Heun steps of the teacher for a pair."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Share of reflow's training times that are uniform; the others are logit-normal(0, 1)."""
    at_noise: float = attrs.field(default=0.0, validator=share)
    """Share of reflow's training times that are the noise end, where one step starts. Published: 0."""

    distance: Distance = "squared"
    """squared, as published, has the mean as its minimiser; l2 counts large errors less."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update; the teacher's are made before the first one."""
        return 1

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The velocity network."""
        return self.network.build(problem, 1, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        distance = DISTANCES[self.distance]
        noise, (data, classes) = teacher_pairs(
            required_teacher(setting),
            setting.problem,
            count=self.pairs,
            solver_steps=self.solver_steps,
            seed=self.training.seed,
            kept=setting.kept,
        )

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            index = torch.randint(self.pairs, (self.training.batch,), generator=generator)
            velocity = as_velocity(network, label=None if classes is None else classes[index])
            start, end = torch.ones(len(index)), torch.zeros(len(index))
            if self.variant == "distillation":
                jump = flow_map_from_average_velocity(lambda z, t, s: velocity(z, t))
                pair = knowledge_distillation_regression(jump, noise[index], data[index], start, end)
            else:
                m = mixed_times(len(index), self.uniform_share, generator)
                m = torch.where(torch.arange(len(index)) < round(self.at_noise * len(index)), start, m)
                pair = rectified_flow_regression(velocity, noise[index], data[index], start, m, end)
            return distance(*pair).mean(), {}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        velocity = as_velocity(network, label=labels)
        return one_step(lambda z, t, s: velocity(z, t), noise, path=Linear())
