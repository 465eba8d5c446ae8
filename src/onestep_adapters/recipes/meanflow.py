"""MeanFlow: the average velocity, sampled in one evaluation."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.jumps import EulerianRecipe
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.students import start_from_teacher, teacher_velocity
from onestep_adapters.training import LossStep
from onestep_core import meanflow_regression, squared_l2


@attrs.frozen
class MeanFlow(EulerianRecipe):
    """Regress the average velocity onto its own identity; sample by one jump. Released: ``moving`` 0.25 (JAX)."""

    teacher: FlowMatching | None = None  # type: ignore[misc]
    """Whose velocity takes the place of the pair's, and whose weights the network starts from (MeanFlow distillation);
    ``None``: the data alone, as published."""

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, the forward-mode pass and, where there is one, the teacher's."""
        return 2 + (self.teacher is not None)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        if self.teacher is not None:
            start_from_teacher(setting)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            if self.teacher is not None:
                with torch.no_grad():
                    v = teacher_velocity(setting, labels)(z, t)
            average_velocity = as_average_velocity(network, label=labels)
            derivative = self.derivative(network, labels)
            pair = meanflow_regression(average_velocity, z, v, t, s, moving=self.jumping, derivative=derivative)
            raw = squared_l2(*pair)
            return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}

        return loss
