"""MeanFlow: the average velocity, sampled in one evaluation."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.jumps import AverageVelocityRecipe
from onestep_adapters.recipes.options import not_negative, positive
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import adaptive, meanflow_regression, squared_l2


@attrs.frozen
class MeanFlow(AverageVelocityRecipe):
    """Regress the average velocity onto its own identity; sample by one jump. Released: ``moving`` 0.25 (JAX)."""

    power: float = attrs.field(default=0.0, validator=not_negative)
    """Exponent of the adaptive weight on the summed squared distance: 1 as released (JAX), 0 for none."""
    epsilon: float = attrs.field(default=0.01, validator=positive)
    """Added to the loss inside that weight."""

    @property
    def calls(self) -> int:
        """Forward passes of the network in an update: the value, and the forward-mode pass."""
        return 2

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        dimension = float(torch.Size(setting.problem.shape).numel())

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            average_velocity = as_average_velocity(network, label=labels)
            pair = meanflow_regression(average_velocity, z, v, t, s, moving=self.jumping)
            raw = squared_l2(*pair)
            if self.power == 0:
                return raw.mean() / dimension, {}
            return (raw * adaptive(raw, power=self.power, epsilon=self.epsilon)).mean(), {"raw": raw.mean() / dimension}

        return loss
