"""MeanFlow with a drift correction: the one-step samples of MeanFlow also follow a drift field towards data.

onestep train meanflow-drift --with examples/compose_meanflow_drift.py --data 8gaussians
onestep compare --with examples/compose_meanflow_drift.py --methods meanflow-drift meanflow drifting
"""

from functools import partial
from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.encoders import pixels
from onestep_adapters.methods import Context, MeanFlow, Preset, find_preset
from onestep_adapters.methods.work import Work, trained
from onestep_core import drifting_regressions, laplace, mean_shift_field, mse
from onestep_core.validators import not_negative


@attrs.frozen
class MeanFlowDrift(MeanFlow):
    """MeanFlow's loss, and the drift of one-step samples."""

    objective: ClassVar[str] = "regression (average velocity, drift)"

    drift_weight: float = attrs.field(default=0.5, validator=not_negative)
    """Factor of the drift's loss. 0: MeanFlow."""
    temperature: float = 0.5
    """Temperature of the kernel, in units of the data."""

    def work(self, step, data) -> Work:
        """MeanFlow's network evaluations, and those of the samples."""
        classes = data.classes or 1
        return super().work(step, data) + trained(self.training.batch // classes * classes)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator):
        """MeanFlow's loss plus the weighted drifting loss of as many samples as there are pairs."""
        loss, logs = super().loss(context, network, generator)
        classes = context.data.classes or 1
        each = self.training.batch // classes
        real = context.data.groups(each, generator)
        labels = torch.arange(classes, device=real.device).repeat_interleave(each) if context.data.classes else None
        noise = torch.randn(real.shape, generator=generator, device=real.device)
        samples = self.sample(network, noise, labels)
        field = partial(mean_shift_field, kernel=partial(laplace, temperature=self.temperature))
        (pair,) = drifting_regressions(pixels(samples), pixels(real), field=field, groups=classes).values()
        drift = mse(*pair).mean()
        return loss + self.drift_weight * drift, {**logs, "drift": drift.detach()}


def _with_drift(options: MeanFlow) -> MeanFlowDrift:
    return MeanFlowDrift(**attrs.asdict(options, recurse=False))


_BASE = find_preset("meanflow")

PRESETS = (
    Preset(
        "meanflow-drift",
        "MeanFlow whose one-step samples also follow a drift field",
        _with_drift(_BASE.images),
        _with_drift(_BASE.points),
        "The options of meanflow; weight and temperature are not tuned.",
    ),
)
