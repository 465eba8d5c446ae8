"""Truncated consistency training: a second stage for the large noise levels, where alone one-step samples are made."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import frozen
from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.easy_consistency import EasyConsistency
from onestep_adapters.recipes.options import not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import straight_consistency
from onestep_adapters.recipes.students import Stage, begin_stage, required_teacher
from onestep_adapters.training import LossStep
from onestep_core import boundary_times, separate_means, truncated, truncated_log_normal_times

_LARGEST = 80.0
"""Noise level at which the second stage's times end, as published."""


@attrs.frozen
class TruncatedConsistency(EasyConsistency):
    """TCM: easy consistency tuning; then a copy of it keeps the small noise levels and the network learns the others.

    The second stage starts from the first one's average, spends nothing below ``transition``, and some of its samples
    sit there, where the frozen copy's answer is the target. The gap stays that of the first stage's end.
    """

    first_share: float = attrs.field(default=0.5, validator=share)
    """Share of the updates that are the first stage's."""
    transition: float = attrs.field(default=1.0, validator=positive)
    """Noise level that divides the stages."""
    boundary: float = attrs.field(default=0.25, validator=share)
    """Share of the second stage's samples at the transition."""
    boundary_weight: float = attrs.field(default=0.1, validator=not_negative)
    """Factor of their mean beside that of the others."""
    second_mean: float = 0.0
    """Of the logarithm of the second stage's noise levels, before they are cut off at the transition."""
    second_std: float = attrs.field(default=2.0, validator=positive)
    """Of that logarithm."""

    @property
    def calls(self) -> int:
        """Forward passes in an update of the first stage: prediction and target; the second's asks both networks."""
        return 2

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A velocity network, twice: the one that learns, and the first stage's."""
        return Stage(super().build(problem, generator))

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        state, first = setting.state, round(self.first_share * self.training.steps)
        if state.step == 0:
            begin_stage(state, required_teacher(setting))
        tuning = self.tuning(setting, max(first, 1))

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            if state.step < first:
                return tuning(network, generator)
            if state.step == first:
                begin_stage(state, state.ema.student)  # type: ignore[arg-type]
            return self._second(setting, network, generator)

        return loss

    def _second(
        self, setting: Setting, network: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = draw(
            setting.problem, self.training.batch, generator, references=self.references, coupling=self.coupling
        )
        uniform = torch.rand(self.training.batch, generator=generator)
        levels = truncated_log_normal_times(
            uniform, mean=self.second_mean, std=self.second_std, low=self.transition, high=_LARGEST
        )
        edge = torch.arange(len(levels)) < round(self.boundary * len(levels))
        sigma = boundary_times(levels, edge, transition=self.transition)
        transition = self.time(torch.tensor([self.transition])).item()
        late, early = (straight_consistency(x, drawn.labels) for x in (network, frozen(network.teacher)))
        learner = late if self.target == "online" else straight_consistency(setting.state.ema, drawn.labels)
        target = truncated(learner, early, transition=transition)
        raw, weight = self.compared(late, target, drawn, sigma, self.nearer(sigma, self.stages - 1))
        weight = weight * separate_means(raw, edge, weight=self.boundary_weight)
        return (raw * weight).mean(), {"raw": raw.mean()}
