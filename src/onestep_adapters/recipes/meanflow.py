"""MeanFlow: the average velocity, sampled in one evaluation."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.jumps import EulerianRecipe
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import meanflow_regression, squared_l2


@attrs.frozen
class MeanFlow(EulerianRecipe):
    """Regress the average velocity onto its own identity; sample by one jump. Released: ``moving`` 0.25 (JAX)."""

    @property
    def calls(self) -> int:
        """Forward passes of the network in an update: the value, and the forward-mode pass."""
        return 2

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            average_velocity = as_average_velocity(network, label=labels)
            pair = meanflow_regression(average_velocity, z, v, t, s, moving=self.jumping)
            raw = squared_l2(*pair)
            return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}

        return loss
