"""Progressive distillation: a student halves its teacher's steps, becomes the teacher, and so on down to one."""

import math
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import Network, Training
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH
from onestep_adapters.recipes.students import Stage, begin_stage, required_teacher
from onestep_adapters.samplers import sample_ode
from onestep_adapters.training import LossStep
from onestep_core import (
    denoiser_from_velocity,
    euler,
    halved_step,
    halving_steps,
    l2,
    mse,
    progressive_regression,
    snr_plus_one,
    uniform_levels,
)
from onestep_core.errors import ConfigError
from onestep_core.fields import energy_distance

_SCORED = 2000
"""Samples in a stage's score."""


@attrs.frozen
class Progressive:
    """Halve the steps of Euler's method (DDIM on the linear path) stage by stage.

    The history holds the student's ``steps`` at every update, and at the last update of each stage ``stage_loss``, the
    mean over the stage, and ``stage_score``, the squared energy distance of 2,000 samples in that many steps to as many
    training samples.
    """

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """The first teacher; its network is the student's."""
    first_steps: int = 16
    """Steps of the first student, a power of two of at least 2; the first teacher makes twice as many."""
    distance: Literal["squared", "l2"] = "squared"
    """Of velocities: squared, or its root, which blurs less where the map is steep: targets are not random here."""

    def __attrs_post_init__(self) -> None:
        if self.first_steps < 2 or self.first_steps & (self.first_steps - 1):
            raise ConfigError(f"first_steps = {self.first_steps}: expected a power of two, 2 or more")

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample, after the last stage."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: one of the student, two of its teacher; a stage's score comes on top."""
        return 3

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A velocity network, twice: student and teacher of the stage."""
        return Stage(self.network.build(problem, 1, generator))

    def student_steps(self, step: int) -> int:
        """Steps of the student after ``step`` updates: the last two stages are twice as long as the others."""
        stages = int(math.log2(self.first_steps)) + 3
        return halving_steps(step, every=max(1, self.training.steps // stages), start=self.first_steps)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        state = setting.state
        if state.step == 0:
            begin_stage(state, required_teacher(setting))

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            steps = self.student_steps(state.step)
            if state.step and steps < self.student_steps(state.step - 1):
                begin_stage(state, state.ema.student)  # type: ignore[arg-type]
            data, noise, labels, _ = draw(setting.problem, self.training.batch, generator)
            index = torch.randint(steps, (len(data),), generator=generator)
            t, m, s = halved_step(index, steps, levels=lambda fraction: uniform_levels(fraction, path=PATH))
            teacher: nn.Module = state.network.teacher  # type: ignore[assignment]
            student, frozen = (
                denoiser_from_velocity(as_velocity(x, label=labels), path=PATH) for x in (network, teacher)
            )
            pair = progressive_regression(student, frozen, PATH(data, noise, t).z, t, m, s, path=PATH)
            weight = snr_plus_one(t, path=PATH)
            value = (mse(*pair) * weight if self.distance == "squared" else l2(*pair) * weight.sqrt()).mean()
            logs: dict[str, float] = {"steps": steps}
            if state.step + 1 == self.training.steps or self.student_steps(state.step + 1) < steps:
                logs |= self._closing(setting, steps, float(value.detach()), generator)
            return value, logs

        return loss

    def _closing(self, setting: Setting, steps: int, value: float, generator: torch.Generator) -> dict[str, float]:
        before = [entry["loss"] for entry in setting.state.history if entry["logs"]["steps"] == steps]
        data, noise, labels, _ = draw(setting.problem, _SCORED, generator)
        with torch.no_grad():
            samples = _sampled(setting.state.ema, noise, labels, steps)
        score = float(energy_distance(samples.flatten(1), data.flatten(1)))
        return {"stage_loss": sum(before, value) / (len(before) + 1), "stage_score": score}

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return _sampled(network, noise, labels, 1)


def _sampled(network: nn.Module, noise: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    return sample_ode(as_velocity(network, label=labels), noise, path=PATH, steps=steps, method=euler)
