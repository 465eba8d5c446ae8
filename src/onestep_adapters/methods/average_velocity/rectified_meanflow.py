"""Rectified MeanFlow: the average velocity between noise and the teacher's samples from this noise."""

from typing import ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draw
from onestep_adapters.methods.average_velocity.jumps import EulerianMethod
from onestep_adapters.methods.flow_matching import COUPLED_POINT_TEACHER, IMAGE_TEACHER, FlowMatching
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    POINT_NETWORK,
    POINT_TRAINING,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import start_from_teacher
from onestep_adapters.methods.teacher_pairs import teacher_pairs, teacher_pairs_to_make
from onestep_adapters.methods.work import Work, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import meanflow_regression, squared_l2
from onestep_core.errors import ConfigError
from onestep_core.validators import positive_count, share


class _Prepared(NamedTuple):
    noise: Tensor
    data: Tensor
    labels: Tensor | None


@attrs.frozen
class RectifiedMeanFlow(EulerianMethod):
    """MeanFlow on the pairs of a teacher's flow, which is nearly straight; it starts from the teacher's weights.

    The pairs are made before the first update, by ``2 solver_steps`` evaluations of the teacher each. A resumed run
    uses the same pairs.

    Source: Zhang et al., Re-MeanFlow, https://arxiv.org/abs/2511.23342.
    """

    objective: ClassVar[str] = "regression (average velocity)"
    ode: ClassVar[str] = "to make pairs"

    teacher: FlowMatching = attrs.field(factory=FlowMatching)  # type: ignore[misc]
    """Options of the flow-matching teacher that makes the pairs of noise and sample. Its network options must equal the
    student's. A finished run with the same options is reused; otherwise the teacher is trained first."""
    teacher_from: str = ""  # type: ignore[misc]
    """Folder of a finished flow-matching run on the same data, to use as the teacher; the options --teacher.* are then
    not used."""
    pairs: int = attrs.field(default=20_000, validator=positive_count)
    """Number of pairs (noise, teacher's sample) that the teacher makes before training; fewer if steps x batch is
    smaller."""
    solver_steps: int = attrs.field(default=10, validator=positive_count)
    """Heun steps of the teacher from noise to data for each pair; each needs two evaluations."""
    exact_jump_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of the samples with s = t that train on the full jump (t = 1, s = 0) instead of on flow matching. Its
    average velocity is known exactly: noise - sample. Paper: 0."""

    stable_targets: int = attrs.field(default=0, metadata={"fixed": True})
    """Not used: the teacher makes the pairs."""
    coupling: Coupling = attrs.field(default="independent", metadata={"fixed": True})
    """Not used: the teacher makes the pairs."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.stable_targets or self.coupling != "independent":
            raise ConfigError(
                f"stable_targets = {self.stable_targets}, coupling = {self.coupling!r}: the teacher makes the pairs; "
                "leave both out, or give the coupling to the teacher"
            )

    @property
    def calls(self) -> int:
        """Network evaluations in one update: value and tangent. The teacher is evaluated before training."""
        return 2

    def work(self, step: int, data: Dataset) -> Work:
        """The value of every pair, and the tangent of the jumps."""
        return trained(self.training.batch) + Work(tangent=self.jumps)

    def prepare(self, context: Context) -> _Prepared:
        """The teacher's weights, and the pairs."""
        start_from_teacher(context)
        noise, (data, labels) = teacher_pairs(context, **self._pairs)
        return _Prepared(noise, data, labels)

    def preparations(self, context: Context) -> tuple[str, ...]:
        """The teacher's pairs."""
        return teacher_pairs_to_make(context, **self._pairs)

    @property
    def _pairs(self) -> dict[str, int]:
        count = min(self.pairs, self.training.steps * self.training.batch)
        return {"count": count, "solver_steps": self.solver_steps, "seed": self.training.seed}

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared error of the average velocity; ``raw`` is the error without weight, per coordinate."""
        noise, data, classes = context.prepared
        t, s = self.times(self.training.batch, generator)
        index = torch.arange(len(t), device=t.device)
        exact = index >= len(t) - round(self.exact_jump_share * (len(t) - self.jumps))
        t, s = t.masked_fill(exact, self.path.noise_time), s.masked_fill(exact, self.path.data_time)
        index = torch.randint(len(data), (self.training.batch,), generator=generator, device=generator.device)
        drawn = Draw(data[index], noise[index], None if classes is None else classes[index])
        z, v, t, s, labels = self.placed(drawn, t, s)
        average_velocity = as_average_velocity(network, label=labels)
        pair = meanflow_regression(average_velocity, z, v, t, s, scale=(~exact).to(z), moving=self.jumps)
        raw = squared_l2(*pair)
        return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}


PRESETS = (
    Preset(
        "rectified-meanflow",
        "MeanFlow on pairs of noise and a teacher's sample (Re-MeanFlow)",
        RectifiedMeanFlow(
            IMAGE_TRAINING,
            WIDE_IMAGE_NETWORK,
            interval_share=0.25,
            adaptive_power=0.5,
            teacher=IMAGE_TEACHER,
            pairs=10_000,
            solver_steps=16,
            exact_jump_share=0.7,
        ),
        RectifiedMeanFlow(POINT_TRAINING, POINT_NETWORK, adaptive_power=0.5, teacher=COUPLED_POINT_TEACHER),
        "Pairs of noise and the teacher's sample, and training from the teacher's weights: the flow between them is "
        "nearly straight. Images: a quarter of the batch has s < t (paper); most of the other pairs get the jump "
        "from noise to data. It was the best of these variants on the digits' validation split: data instead of "
        "pairs; the teacher's velocity with adaptive powers 0, 0.5 and 1 and learning rates 1.5e-3 to 6e-3; the "
        "pairs with a quarter, half or three quarters of s < t, with full jumps by their derivative, with power 0, "
        "with fewer solver steps.",
    ),
)
