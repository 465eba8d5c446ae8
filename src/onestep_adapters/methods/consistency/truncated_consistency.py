"""Truncated consistency training (TCM): a second stage for the large noise levels, where one-step sampling starts."""

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset, Draws
from onestep_adapters.methods.consistency.easy_consistency import EasyConsistency
from onestep_adapters.methods.flow_matching import COUPLED_POINT_TEACHER, IMAGE_TEACHER
from onestep_adapters.methods.linear_path import straight_consistency
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    POINT_NETWORK,
    POINT_TRAINING,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import STAGE_TEACHER, begin_stage, stage_companion
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import frozen
from onestep_adapters.training import Companion
from onestep_core import boundary_times, separate_means, truncated, truncated_log_normal_times
from onestep_core.validators import not_negative, positive, share

_LARGEST = 80.0
"""Largest noise level of the second stage, as in the paper."""


@attrs.frozen
class TruncatedConsistency(EasyConsistency):
    """TCM: easy consistency tuning; then a frozen copy is used at small noise, and the network learns large noise.

    The second stage starts from the average of the first and does not train below ``transition_noise``. Some of its
    samples are at the transition, where the output of the frozen copy is the target. The gap between the two noise
    levels is that at the end of the first stage.
    """

    extends: ClassVar[bool] = False

    first_stage_share: float = attrs.field(default=0.5, validator=share)
    """Fraction of the updates in stage 1 (all noise levels); stage 2 trains noise levels above --transition-noise."""
    transition_noise: float = attrs.field(default=1.0, validator=positive)
    """Noise level above which stage 2 trains, at sigma_data 0.5. Paper: 1."""
    transition_share: float = attrs.field(default=0.25, validator=share)
    """Fraction of a stage-2 batch exactly at --transition-noise (boundary loss), 0 to 1. Paper: 0.25."""
    transition_weight: float = attrs.field(default=0.1, validator=not_negative)
    """Weight of the boundary loss; the other loss has weight 1. Paper: 0.1."""
    stage2_log_noise_mean: float = 0.0
    """Mean of ln(noise level) in stage 2, before levels below the transition are cut off, at sigma_data 0.5."""
    stage2_log_noise_std: float = attrs.field(default=2.0, validator=positive)
    """Standard deviation of ln(noise level) in stage 2, before that cut."""

    def work(self, step: int, data: Dataset) -> Work:
        """Prediction and target; in the second stage the frozen copy gives targets too."""
        rows = self.training.batch
        later = step >= round(self.first_stage_share * self.training.steps)
        return trained(rows) + seen((1 + later) * rows)

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """The frozen copy of the first stage's result."""
        return stage_companion(network)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights; the pairs."""
        if context.state.step == 0:
            module = context.required_teacher().required_module()
            begin_stage(context.state, context.companion(STAGE_TEACHER), module)
        return self.draws(context)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted distance of the outputs at two noise levels; ``raw`` is the distance without weight."""
        state, first = context.state, round(self.first_stage_share * self.training.steps)
        if state.step < first:
            return self.tuning(context, network, generator, max(first, 1))
        if state.step == first:
            begin_stage(state, context.companion(STAGE_TEACHER), state.ema)
        return self._second_stage(context, network, generator)

    def _second_stage(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        drawn = context.prepared(self.training.batch, generator)
        uniform = torch.rand(self.training.batch, generator=generator, device=generator.device)
        levels = truncated_log_normal_times(
            uniform,
            mean=self.stage2_log_noise_mean,
            std=self.stage2_log_noise_std,
            low=self.transition_noise,
            high=_LARGEST,
        )
        edge = torch.arange(len(levels), device=levels.device) < round(self.transition_share * len(levels))
        sigma = boundary_times(levels, edge, transition=self.transition_noise)
        transition = self.time(torch.tensor([self.transition_noise], device=levels.device)).item()
        late = straight_consistency(network, drawn.labels)
        early = straight_consistency(frozen(context.companion(STAGE_TEACHER)), drawn.labels)
        learner = late if self.target == "online" else straight_consistency(context.state.ema, drawn.labels)
        target = truncated(learner, early, transition=transition)
        raw, weight = self.compared(late, target, drawn, sigma, self.second_level(sigma, self.gap_stages - 1))
        weight = weight * separate_means(raw, edge, weight=self.transition_weight)
        return (raw * weight).mean(), {"raw": raw.mean()}


PRESETS = (
    Preset(
        "truncated-consistency",
        "truncated consistency (TCM): ECT with a second stage for large noise levels",
        TruncatedConsistency(
            IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER, sigma_data=0.75, coupling="precomputed"
        ),
        TruncatedConsistency(POINT_TRAINING, POINT_NETWORK, COUPLED_POINT_TEACHER, coupling="optimal"),
        "Half of the updates for each stage; the paper's transition. Coupled pairs. Images: the second stage has 1,200 "
        "updates for the large noise levels, where sampling starts. Samples are still too far from the data (density "
        "below 0.8).",
    ),
)
