"""Improved MeanFlow: MeanFlow whose derivative runs along the network's own instantaneous velocity."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.jumps import EulerianRecipe, parts_apart
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import improved_meanflow_regression, squared_l2
from onestep_core.flow import frozen_value


@attrs.frozen
class ImprovedMeanFlow(EulerianRecipe):
    """Regress the compound velocity onto the pair's; sample by one jump. Released: a second head predicts the tangent;
    here it is the network at ``s = t``.
    """

    @property
    def calls(self) -> int:
        """Forward passes in an update: the tangent, the value, and the forward-mode pass."""
        return 3

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the two parts apart."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            average_velocity = as_average_velocity(network, label=labels)
            tangent = frozen_value(average_velocity, z, t, t)
            derivative = self.derivative(network, labels)
            raw = squared_l2(
                *improved_meanflow_regression(
                    average_velocity, z, v, tangent, t, s, moving=self.jumping, derivative=derivative
                )
            )
            return (raw * self.weight(raw, z)).mean(), parts_apart(raw, self.jumping)

        return loss
