"""Consistency with a score gap: easy consistency tuning whose one-step samples also follow the teacher's score.

The score of the samples themselves is estimated from the batch, so there is no fake score network.

    onestep train consistency-gap --with examples/compose_consistency_score_gap.py --data 8gaussians
    onestep compare --with examples/compose_consistency_score_gap.py --methods consistency-gap easy-consistency dmd
"""

from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.methods import Context, EasyConsistency, FlowMatching, Preset, find_preset
from onestep_adapters.methods.work import Work, seen, trained
from onestep_core import Linear, distribution_matching_regression, empirical_denoiser, mse, sample_uniform
from onestep_core.validators import not_negative

PATH = Linear()


@attrs.frozen
class ConsistencyGap(EasyConsistency):
    """The loss of easy consistency tuning, and the score gap of one-step samples."""

    objective: ClassVar[str] = "consistency constraint, and regression (score gap)"

    gap_weight: float = attrs.field(default=0.1, validator=not_negative)
    """Factor of the score gap's loss. 0: easy consistency tuning."""

    def work(self, step, data) -> Work:
        """Network evaluations of the consistency loss; the samples, and the teacher on them."""
        return super().work(step, data) + trained(self.training.batch) + seen(self.training.batch)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator):
        """The consistency loss plus the weighted score gap of as many samples as there are pairs."""
        loss, logs = super().loss(context, network, generator)
        data, labels = context.data.batch(self.training.batch, generator)
        noise, second = (torch.randn(data.shape, generator=generator, device=data.device) for _ in range(2))
        samples = self.sample(network, noise, labels)
        t = sample_uniform(len(data), low=0.02, high=0.98, generator=generator, device=data.device)
        z, _ = PATH(samples.detach(), second, t)
        same = None if labels is None else labels[:, None] == labels
        fake = empirical_denoiser(z, samples.detach(), t, path=PATH, allowed=same)
        real = context.required_teacher().denoiser(labels)
        gap = mse(*distribution_matching_regression(real, lambda z, t: fake, samples, z, t, path=PATH)).mean()
        return loss + self.gap_weight * gap, {**logs, "gap": gap.detach()}


def _with_gap(options: EasyConsistency) -> ConsistencyGap:
    # Only a teacher of independent pairs gives a score.
    teacher = attrs.evolve(options.teacher, coupling="independent")
    assert isinstance(teacher, FlowMatching)
    return ConsistencyGap(**{**attrs.asdict(options, recurse=False), "teacher": teacher})


_BASE = find_preset("easy-consistency")

PRESETS = (
    Preset(
        "consistency-gap",
        "easy consistency tuning whose samples also follow the score gap",
        _with_gap(_BASE.images),
        _with_gap(_BASE.points),
        "The options of easy-consistency with a teacher of independent pairs; the weight is not tuned.",
    ),
)
