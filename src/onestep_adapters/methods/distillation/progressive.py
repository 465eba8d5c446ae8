"""Progressive distillation: a student halves its teacher's steps, becomes the teacher, and so on down to one step."""

import math
from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset, Draws
from onestep_adapters.methods.flow_matching import COUPLED_POINT_TEACHER, IMAGE_TEACHER, Distillation
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Distance
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import STAGE_TEACHER, begin_stage, stage_companion
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_velocity
from onestep_adapters.samplers import one_step, sample_ode
from onestep_adapters.training import Companion
from onestep_core import (
    denoiser_from_velocity,
    euler,
    l2,
    mse,
    progressive_regression,
    progressive_times,
    snr_plus_one,
    student_steps_at,
    uniform_levels,
)
from onestep_core.errors import ConfigError
from onestep_core.fields import energy_distance

_SCORED = 2000
"""Number of samples for the score of a stage."""


@attrs.frozen
class Progressive(Distillation):
    """Halve the steps of Euler's method (DDIM on the linear path) stage by stage.

    The history has the student's ``steps`` at every update and, at the last update of each stage, ``stage_loss`` (mean
    over the stage) and ``stage_score`` (squared energy distance of 2,000 samples in that many steps to as many training
    samples).
    """

    extends: ClassVar[bool] = False

    objective: ClassVar[str] = "regression (teacher's two steps)"
    ode: ClassVar[str] = "to train"

    first_student_steps: int = 16
    """Euler steps of the first student, a power of two of at least 2. Its teacher makes twice as many; each next
    student makes half, down to 1."""
    distance: Distance = "squared"
    """Distance between predicted and target velocity. squared (paper): minimised by the mean of possible targets. l2:
    Euclidean, not squared; sharper."""

    def __attrs_post_init__(self) -> None:
        if self.first_student_steps < 2 or self.first_student_steps & (self.first_student_steps - 1):
            raise ConfigError(f"first_student_steps = {self.first_student_steps}: expected a power of two, 2 or more")
        stages = self.first_student_steps.bit_length()
        if self.training.steps < stages:
            raise ConfigError(
                f"steps = {self.training.steps} for {stages} students, the first of {self.first_student_steps} steps, "
                f"each other of half as many: expected at least {stages} updates"
            )

    @property
    def calls(self) -> int:
        """Network evaluations in one update: one of the student, two of its teacher; a stage's score is extra."""
        return 3

    def work(self, step: int, data: Dataset) -> Work:
        """The student's step, its teacher's two, and the samples of a stage's score."""
        scored = self._ends_stage(step) * self.student_steps(step) * _SCORED
        return trained(self.training.batch) + seen(2 * self.training.batch + scored)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(data, 1, generator)

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """The teacher of the current stage."""
        return stage_companion(network)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights; independent pairs."""
        if context.state.step == 0:
            module = context.required_teacher().required_module()
            begin_stage(context.state, context.companion(STAGE_TEACHER), module)
        return context.draws()

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Distance of the student's step and the teacher's two steps; a stage starts from the last average."""
        state, steps = context.state, self.student_steps(context.state.step)
        if state.step and steps < self.student_steps(state.step - 1):
            begin_stage(state, context.companion(STAGE_TEACHER), state.ema)
        data, noise, labels, _ = context.prepared(self.training.batch, generator)
        index = torch.randint(steps, (len(data),), generator=generator, device=generator.device)
        t, m, s = progressive_times(index, steps, levels=lambda fraction: uniform_levels(fraction, path=PATH))
        student, teacher = (
            denoiser_from_velocity(as_velocity(x, label=labels), path=PATH)
            for x in (network, context.companion(STAGE_TEACHER))
        )
        pair = progressive_regression(student, teacher, PATH(data, noise, t).z, t, m, s, path=PATH)
        weight = snr_plus_one(t, path=PATH)
        value = (mse(*pair) * weight if self.distance == "squared" else l2(*pair) * weight.sqrt()).mean()
        logs: dict[str, float] = {"steps": steps}
        if self._ends_stage(state.step):
            logs |= self._stage_numbers(context, steps, float(value.detach()), generator)
        return value, logs

    def student_steps(self, step: int) -> int:
        """Sampling steps of the student after ``step`` updates. The last two stages are twice as long as the others."""
        stages = int(math.log2(self.first_student_steps)) + 3
        return student_steps_at(step, every=max(1, self.training.steps // stages), start=self.first_student_steps)

    def _ends_stage(self, step: int) -> bool:
        return step + 1 == self.training.steps or self.student_steps(step + 1) < self.student_steps(step)

    def _stage_numbers(
        self, context: Context, steps: int, value: float, generator: torch.Generator
    ) -> dict[str, float]:
        before = [entry["loss"] for entry in context.state.history if entry["logs"]["steps"] == steps]
        data, noise, labels, _ = context.prepared(_SCORED, generator)
        with torch.no_grad():
            samples = _sampled(context.state.ema, noise, labels, steps)
        score = float(energy_distance(samples.flatten(1), data.flatten(1)))
        return {"stage_loss": sum(before, value) / (len(before) + 1), "stage_score": score}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one Euler step."""
        velocity = as_velocity(network, label=labels)
        return one_step(lambda z, t, s: velocity(z, t), noise, path=PATH)


def _sampled(network: nn.Module, noise: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    return sample_ode(as_velocity(network, label=labels), noise, path=PATH, steps=steps, method=euler)


PRESETS = (
    Preset(
        "progressive",
        "progressive distillation: each student halves the steps of its teacher",
        Progressive(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER),
        Progressive(LONG_POINT_TRAINING, POINT_NETWORK, COUPLED_POINT_TEACHER),
        "The last two stages are twice as long as the others. Points: the teacher learned optimally coupled pairs.",
    ),
)
