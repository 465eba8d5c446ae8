"""Rectified MeanFlow: the average velocity between noise and what a teacher makes of it."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.draws import Draw
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.jumps import EulerianRecipe
from onestep_adapters.recipes.options import positive, share
from onestep_adapters.recipes.pairs import teacher_pairs
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.students import required_teacher, start_from_teacher
from onestep_adapters.training import LossStep
from onestep_core import meanflow_regression, squared_l2
from onestep_core.errors import ConfigError


@attrs.frozen
class RectifiedMeanFlow(EulerianRecipe):
    """MeanFlow on the coupling of a teacher's flow, which is nearly straight; it starts from the teacher's weights.

    The pairs are made before the first update, ``2 solver_steps`` evaluations of the teacher each, and made again
    alike where a run is continued.

    Source: Zhang et al., Re-MeanFlow, https://arxiv.org/abs/2511.23342.
    """

    teacher: FlowMatching = attrs.field(factory=FlowMatching)  # type: ignore[misc]
    """Whose coupling is learnt; its network is the student's."""
    pairs: int = attrs.field(default=20_000, validator=positive)
    """How many pairs at most; no more than one for every sample of the training."""
    solver_steps: int = attrs.field(default=10, validator=positive)
    """Heun steps of the teacher for a pair."""
    known: float = attrs.field(default=0.0, validator=share)
    """Share of the pairs without a jump that get the sampler's own, from noise to data, whose average velocity needs no
    derivative: it is the pair's, ``noise - data``, since the teacher's trajectory joins them. Published: 0."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.references or self.coupling != "independent":
            raise ConfigError(
                f"references = {self.references}, coupling = {self.coupling!r}: the teacher couples data and noise; "
                "leave both out, or give the coupling to the teacher"
            )

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, and the forward-mode pass; the teacher's are made before."""
        return 2

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        start_from_teacher(setting)
        count = min(self.pairs, self.training.steps * self.training.batch)
        noise, (data, classes) = teacher_pairs(
            required_teacher(setting),
            setting.problem,
            count=count,
            solver_steps=self.solver_steps,
            seed=self.training.seed,
            kept=setting.kept,
        )

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            t, s = self.times(self.training.batch, generator)
            known = torch.arange(len(t)) >= len(t) - round(self.known * (len(t) - self.jumping))
            t, s = t.masked_fill(known, self.path.noise_time), s.masked_fill(known, self.path.data_time)
            index = torch.randint(count, (self.training.batch,), generator=generator)
            drawn = Draw(data[index], noise[index], None if classes is None else classes[index])
            z, v, t, s, labels = self.placed(drawn, t, s)
            average_velocity = as_average_velocity(network, label=labels)
            derivative = self.derivative(network, labels)
            pair = meanflow_regression(
                average_velocity, z, v, t, s, scale=(~known).to(z), moving=self.jumping, derivative=derivative
            )
            raw = squared_l2(*pair)
            return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}

        return loss
