"""Rectified flow and knowledge distillation: straight lines between noise and a teacher's samples, one step."""

from typing import ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.flow_matching import COUPLED_POINT_TEACHER, IMAGE_TEACHER, Distillation
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import DISTANCES, Distance
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    POINT_NETWORK,
    POINT_TRAINING,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.teacher_pairs import teacher_pairs, teacher_pairs_to_make
from onestep_adapters.methods.times import mixed_times
from onestep_adapters.networks import as_velocity
from onestep_adapters.samplers import one_step, sample_ode
from onestep_core import euler, rectified_flow_regression
from onestep_core.validators import positive_count, share


class _Prepared(NamedTuple):
    noise: Tensor
    data: Tensor
    labels: Tensor | None


@attrs.frozen
class Reflow(Distillation):
    """Learn the straight lines between noise and the teacher's samples from this noise; sample by one Euler step.

    The pairs are made before the first update, by ``2 solver_steps`` evaluations of the teacher each, and saved
    for other runs with this teacher. With ``noise_time_share`` 1 only the noise end is trained: knowledge distillation.
    """

    objective: ClassVar[str] = "regression (teacher's pairs)"
    ode: ClassVar[str] = "to make pairs"
    few_steps: ClassVar[bool] = True

    pairs: int = attrs.field(default=20_000, validator=positive_count)
    """Number of pairs (noise, teacher's sample) that the teacher makes before training."""
    solver_steps: int = attrs.field(default=25, validator=positive_count)
    """Heun steps of the teacher from noise to data for each pair; each needs two evaluations."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Of the training times that are not at pure noise (--noise-time-share), the fraction that is uniform on (0, 1);
    the others are logit-normal(0, 1). Paper: 1."""
    noise_time_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of training times at pure noise (t = 1), where one-step sampling starts. Paper: 0 (rectified flow); 1 is
    knowledge distillation."""
    distance: Distance = "squared"
    """Distance between predicted and target velocity. squared (paper): minimised by the mean of possible targets. l2:
    Euclidean, not squared; sharper."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update; the teacher's are made before the first one."""
        return 1

    @property
    def starts_from_teacher(self) -> bool:
        """Always false: the student starts from random weights, so its network can be different."""
        return False

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The velocity network."""
        return self.network.build(data, 1, generator)

    def prepare(self, context: Context) -> _Prepared:
        """The teacher's pairs."""
        noise, (data, labels) = teacher_pairs(context, **self._pairs)
        return _Prepared(noise, data, labels)

    def preparations(self, context: Context) -> tuple[str, ...]:
        """The teacher's pairs."""
        return teacher_pairs_to_make(context, **self._pairs)

    @property
    def _pairs(self) -> dict[str, int]:
        return {"count": self.pairs, "solver_steps": self.solver_steps, "seed": self.training.seed}

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Distance of the velocity to the direction of the line."""
        noise, data, classes = context.prepared
        index = torch.randint(self.pairs, (self.training.batch,), generator=generator, device=generator.device)
        velocity = as_velocity(network, label=None if classes is None else classes[index])
        start, end = torch.ones(len(index), device=index.device), torch.zeros(len(index), device=index.device)
        m = mixed_times(len(index), self.uniform_share, generator)
        at_noise = torch.arange(len(index), device=index.device) < round(self.noise_time_share * len(index))
        m = torch.where(at_noise, start, m)
        pair = rectified_flow_regression(velocity, noise[index], data[index], start, m, end)
        return DISTANCES[self.distance](*pair).mean(), {}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one Euler step from the noise end."""
        velocity = as_velocity(network, label=labels)
        return one_step(lambda z, t, s: velocity(z, t), noise, path=PATH)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by Euler steps of equal length."""
        velocity = as_velocity(network, label=labels)
        return sample_ode(velocity, noise, path=PATH, steps=evaluations, method=euler)


PRESETS = (
    Preset(
        "reflow",
        "rectified flow: straight lines between noise and a teacher's samples",
        Reflow(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER, noise_time_share=0.5, pairs=8000, distance="l2"),
        Reflow(POINT_TRAINING, POINT_NETWORK, COUPLED_POINT_TEACHER, noise_time_share=0.5),
        "Half of the training times are at the noise end, where the one step starts (paper: none). Images: the "
        "Euclidean norm, not its square (paper); the minimiser of the square is the mean of several targets, which "
        "lies nearer to the centre than any of them.",
    ),
)
