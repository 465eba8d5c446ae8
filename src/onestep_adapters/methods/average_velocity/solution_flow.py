"""SoFlow: the solution of the flow's equation is constant along a trajectory; the time step shrinks."""

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
from onestep_core import (
    annealed,
    exponential_ramp,
    flow_map_from_average_velocity,
    flow_matching_regression,
    instantaneous,
    inverse_duration,
    keep_apart,
    solution_flow_regression,
    squared_l2,
    time_between,
)
from onestep_core.validators import positive


@attrs.frozen
class SolutionFlow(EulerianMethod):
    """Consistency of the solution between two near times, beside flow matching; sample by one jump.

    The squared distance of states is divided by ``(t - m) (t - s)``, so that the gradient tends to MeanFlow's as ``m``
    tends to ``t``. The released code has ``interval_share`` 0.25 and another weight.
    """

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"

    initial_gap: float = attrs.field(default=0.1, validator=positive)
    """Distance between the two compared times at the start of training, as a fraction of the jump t - s, above 0 to
    1."""
    final_gap: float = attrs.field(default=0.002, validator=positive)
    """The same distance at the end of training, above 0; it changes geometrically in between. Smaller: closer to
    MeanFlow's derivative."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the solution, its target, and the velocity."""
        return 3

    def work(self, step: int, data: Dataset) -> Work:
        """Every pair, and the target of every jump."""
        return trained(self.training.batch) + seen(self.jumps)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared errors of the solution and of the velocity; the log has both parts of the batch."""
        (z, v, t, s, labels), rest = self.parts(context.prepared, generator)
        solution = flow_map_from_average_velocity(as_average_velocity(network, label=labels))
        part = annealed(
            context.state.step,
            begin=0,
            end=self.training.steps,
            initial=self.initial_gap,
            final=self.final_gap,
            ramp=exponential_ramp,
        )
        m = time_between(t, s, share=part)
        jumps = squared_l2(*solution_flow_regression(solution, solution, z, v, t, m, s))
        jumps = jumps * inverse_duration(*keep_apart(t, s, gap=1e-3), power=2) / part**2
        velocity = instantaneous(as_average_velocity(network, label=rest.labels))
        matching = squared_l2(*flow_matching_regression(velocity, rest.z, rest.v, rest.t))
        raw = torch.cat([jumps, matching])
        unit = torch.cat([torch.full_like(jumps, part), torch.ones_like(matching)])
        return (raw * unit * self.weight(raw, z)).mean(), part_losses(raw, self.jumps)


PRESETS = (
    Preset(
        "solution-flow",
        "SoFlow: learns the solution of the flow's equation, without a derivative",
        SolutionFlow(
            IMAGE_TRAINING, IMAGE_NETWORK, adaptive_power=0.5, initial_gap=0.2, final_gap=0.05, **COUPLED_JUMPS
        ),
        SolutionFlow(
            LONG_POINT_TRAINING, POINT_NETWORK, adaptive_power=0.5, initial_gap=0.3, final_gap=0.01, **COUPLED_JUMPS
        ),
        "Half of the jumps end at the data. Coupled pairs and an adaptive weight, as in meanflow. The second state "
        "lies on a straight line from the first, a fixed share of the jump away: the error of this share remains.",
    ),
)
