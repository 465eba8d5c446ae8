"""SplitMeanFlow: one jump equals two jumps, split at any time; plus flow matching."""

from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.average_velocity.jumps import COUPLED_JUMPS, JumpsToData, part_losses
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import IMAGE_NETWORK, IMAGE_TRAINING, POINT_NETWORK, Preset
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import flow_matching_regression, instantaneous, mse, split_meanflow_regression, time_between


@attrs.frozen
class SplitMeanFlow(JumpsToData):
    """Regress a jump onto two jumps, divided at a random time; sample by one jump."""

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the jump, its two parts, and the velocity."""
        return 4

    def work(self, step: int, data: Dataset) -> Work:
        """Every pair, and the two halves of every jump."""
        return trained(self.training.batch) + seen(2 * self.jumps)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Squared errors of the jump and of the velocity; the log has both parts of the batch."""
        (z, _, t, s, labels), rest = self.parts(context.prepared, generator)
        m = time_between(t, s, share=torch.rand(t.shape, generator=generator, device=generator.device))
        a = as_average_velocity(network, label=labels)
        jumps = mse(*split_meanflow_regression(a, a, z, t, m, s))
        velocity = instantaneous(as_average_velocity(network, label=rest.labels))
        raw = torch.cat([jumps, mse(*flow_matching_regression(velocity, rest.z, rest.v, rest.t))])
        return raw.mean(), part_losses(raw, self.jumps)


PRESETS = (
    Preset(
        "split-meanflow",
        "SplitMeanFlow: a jump must equal two shorter ones; no derivative",
        SplitMeanFlow(IMAGE_TRAINING, IMAGE_NETWORK, **COUPLED_JUMPS),
        SplitMeanFlow(
            Training(steps=4000, batch=384, learning_rate=2.5e-3),
            POINT_NETWORK,
            interval_share=0.5,
            stable_targets=1024,
            data_end_share=0.5,
        ),
        "Half of the jumps end at the data. Images: coupled pairs. Points: stable targets. Both parts of a target "
        "are the network's own, so that errors of short jumps enter the long ones: samples are too close to one "
        "another.",
    ),
)
