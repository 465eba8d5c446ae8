"""alpha-Flow and SoFlow: the first bit of a jump goes along the pair, and the bit gets smaller while training."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.jumps import EulerianRecipe, parts_apart
from onestep_adapters.recipes.options import positive, share
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import (
    alpha_flow_regression,
    alpha_schedule,
    annealed,
    between,
    exponential_ramp,
    flow_map_from_average_velocity,
    flow_matching_regression,
    instantaneous,
    inverse_duration,
    keep_apart,
    meanflow_regression,
    solution_flow_regression,
    squared_l2,
)


@attrs.frozen
class AlphaFlow(EulerianRecipe):
    """From flow matching along whole jumps to MeanFlow; sample by one jump.

    The loss of a jump is divided by ``alpha``, which makes its gradient MeanFlow's at the end; with an adaptive weight
    of power 1 that is the released factor ``alpha``. Released: the target is clipped to [-4, 4].
    """

    end: float = attrs.field(default=1.0, validator=share)
    """Where ``alpha`` arrives at ``final``, a share of the training; by a sigmoid, near it from 0.7 of that on.
    Released: 1."""
    final: float = attrs.field(default=0.0, validator=share)
    """The last ``alpha``. 0, as released: MeanFlow."""

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, and the second jump; at ``alpha = 0`` the forward-mode pass."""
        return 2

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with ``alpha`` and the two parts apart."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            a = as_average_velocity(network, label=labels)
            alpha = alpha_schedule(setting.state.step, begin=0, end=self.end * self.training.steps, final=self.final)
            if alpha == 0:
                pair = meanflow_regression(
                    a, z, v, t, s, moving=self.jumping, derivative=self.derivative(network, labels)
                )
            else:
                pair = alpha_flow_regression(a, a, z, v, t, s, alpha=alpha)
            # A jump's residual is alpha times one that tends to MeanFlow's; the weight is that one's.
            unit = torch.where(t == s, 1.0, alpha or 1.0)
            raw = squared_l2(*pair) / unit.square()
            logs = {"alpha": torch.tensor(alpha), **parts_apart(raw, self.jumping)}
            return (raw * unit * self.weight(raw, z)).mean(), logs

        return loss


@attrs.frozen
class SolutionFlow(EulerianRecipe):
    """Keep the solution constant along its own trajectory, beside flow matching; sample by one jump.

    The squared distance of states is divided by ``(t - m) (t - s)``: the gradient then tends to MeanFlow's as ``m``
    comes to ``t``. Released: ``moving`` 0.25, and another weight.
    """

    first: float = attrs.field(default=0.1, validator=positive)
    """Share of a jump that goes along the pair, at the beginning of the training."""
    last: float = attrs.field(default=0.002, validator=positive)
    """The same at its end; geometrically in between."""

    @property
    def calls(self) -> int:
        """Forward passes in an update: the solution, its target, and the velocity."""
        return 3

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the two parts apart."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            (z, v, t, s, labels), still = self.parts(setting.problem, generator)
            solution = flow_map_from_average_velocity(as_average_velocity(network, label=labels))
            part = annealed(
                setting.state.step,
                begin=0,
                end=self.training.steps,
                initial=self.first,
                final=self.last,
                ramp=exponential_ramp,
            )
            m = between(t, s, share=part)
            jumps = squared_l2(*solution_flow_regression(solution, solution, z, v, t, m, s))
            jumps = jumps * inverse_duration(*keep_apart(t, s, gap=1e-3), power=2) / part**2
            velocity = instantaneous(as_average_velocity(network, label=still.labels))
            stays = squared_l2(*flow_matching_regression(velocity, still.z, still.v, still.t))
            raw, unit = torch.cat([jumps, stays]), torch.cat([torch.full_like(jumps, part), torch.ones_like(stays)])
            return (raw * unit * self.weight(raw, z)).mean(), parts_apart(raw, self.jumping)

        return loss
