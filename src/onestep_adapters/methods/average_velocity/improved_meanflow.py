"""Improved MeanFlow: MeanFlow with the derivative along the network's own instantaneous velocity."""

from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.average_velocity.jumps import COUPLED_JUMPS, EulerianMethod, part_losses
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.presets import (
    IMAGE_NETWORK,
    IMAGE_TRAINING,
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    Preset,
)
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import frozen_value, improved_meanflow_regression, squared_l2


@attrs.frozen
class ImprovedMeanFlow(EulerianMethod):
    """Regress the compound velocity onto the pair's; sample by one jump.

    In the released code a second head predicts the tangent; here it is the network at ``s = t``.
    """

    objective: ClassVar[str] = "regression (average velocity)"
    ode: ClassVar[str] = "to train"

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the velocity to move along, value and tangent."""
        return 3

    def work(self, step: int, data: Dataset) -> Work:
        """Value and own velocity of every pair, and the tangent of the jumps."""
        return trained(self.training.batch) + seen(self.training.batch) + Work(tangent=self.jumps)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared error of the compound velocity; the log has both parts of the batch."""
        z, v, t, s, labels = self.drawn(context.prepared, generator)
        average_velocity = as_average_velocity(network, label=labels)
        tangent = frozen_value(average_velocity, z, t, t)
        pair = improved_meanflow_regression(average_velocity, z, v, tangent, t, s, moving=self.jumps)
        raw = squared_l2(*pair)
        return (raw * self.weight(raw, z)).mean(), part_losses(raw, self.jumps)


PRESETS = (
    Preset(
        "improved-meanflow",
        "improved MeanFlow: the derivative follows the network's own velocity",
        ImprovedMeanFlow(IMAGE_TRAINING, IMAGE_NETWORK, adaptive_power=0.75, **COUPLED_JUMPS),
        ImprovedMeanFlow(LONG_POINT_TRAINING, POINT_NETWORK, adaptive_power=0.5, coupling="precomputed"),
        "Coupled pairs and an adaptive weight, as in meanflow. The tangent is the network's own velocity, which is "
        "learned at the same time: early in training the derivative follows a wrong velocity.",
    ),
)
