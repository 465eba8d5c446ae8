"""alpha-Flow: the first part of a jump follows the pair, and this part shrinks during training."""

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
from onestep_core import alpha_flow_regression, alpha_schedule, meanflow_regression, squared_l2
from onestep_core.validators import share


@attrs.frozen
class AlphaFlow(EulerianMethod):
    """Train from flow matching over the whole jump (alpha = 1) to MeanFlow (alpha = 0); sample by one jump.

    The loss of a pair with ``s < t`` is divided by ``alpha``, so that its gradient tends to MeanFlow's; with an
    adaptive power of 1 this is the factor ``alpha`` of the released code, which also clips the target to [-4, 4].
    """

    objective: ClassVar[str] = "regression (average velocity)"
    ode: ClassVar[str] = "to train"

    alpha_schedule_end: float = attrs.field(default=1.0, validator=share)
    """Fraction of the training after which alpha, which falls from 1 (flow matching) along a sigmoid, has its final
    value. At 0.7 of this fraction it is already close to it. Code: 1."""
    final_alpha: float = attrs.field(default=0.0, validator=share)
    """Final alpha, 0 to 1: size of the finite difference, as a fraction of the jump. 0: MeanFlow (code)."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the value and the second jump; with alpha 0 the tangent."""
        return 2

    def work(self, step: int, data: Dataset) -> Work:
        """The value of every pair, and its second jump; where alpha is 0 the tangent of the jumps."""
        rows = self.training.batch
        return trained(rows) + (Work(tangent=self.jumps) if self.alpha(step) == 0 else seen(rows))

    def alpha(self, step: int) -> float:
        """The part of a jump that follows the pair, after ``step`` updates."""
        end = self.alpha_schedule_end * self.training.steps
        return alpha_schedule(step, begin=0, end=end, final=self.final_alpha)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared error of the average velocity; the log has ``alpha`` and both parts of the batch."""
        z, v, t, s, labels = self.drawn(context.prepared, generator)
        a = as_average_velocity(network, label=labels)
        alpha = self.alpha(context.state.step)
        if alpha == 0:
            pair = meanflow_regression(a, z, v, t, s, moving=self.jumps)
        else:
            pair = alpha_flow_regression(a, a, z, v, t, s, alpha=alpha)
        # The residual of a jump, divided by alpha, tends to MeanFlow's residual; the weight is that of the latter.
        unit = torch.where(t == s, 1.0, alpha or 1.0)
        raw = squared_l2(*pair) / unit.square()
        return (raw * unit * self.weight(raw, z)).mean(), {"alpha": alpha, **part_losses(raw, self.jumps)}


PRESETS = (
    Preset(
        "alpha-flow",
        "alpha-Flow: training changes gradually from flow matching to MeanFlow",
        AlphaFlow(
            IMAGE_TRAINING, IMAGE_NETWORK, adaptive_power=0.5, alpha_schedule_end=0.5, final_alpha=0.05, **COUPLED_JUMPS
        ),
        AlphaFlow(
            LONG_POINT_TRAINING,
            POINT_NETWORK,
            adaptive_power=0.5,
            alpha_schedule_end=0.4,
            final_alpha=0.01,
            **COUPLED_JUMPS,
        ),
        "The final alpha is 0.05 or 0.01 instead of 0: the last part of the schedule adds variance. Half of the "
        "jumps end at the data. Coupled pairs and an adaptive weight, as in meanflow. The target is partly the "
        "pair's velocity and partly the frozen network's, so that errors of the network enter the next target.",
    ),
)
