"""Terminal velocity matching: the end of a jump moves with the velocity of where it is, beside flow matching."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.jumps import AnyJumpRecipe, parts_apart
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import (
    TimePair,
    flow_matching_regression,
    instantaneous,
    mse,
    terminal_velocity_regression,
    two_pass,
    with_graph,
)


@attrs.frozen
class TerminalVelocity(AnyJumpRecipe):
    """Regress the velocity at the end of a jump onto the moving average's; sample by one jump.

    ``anchored`` jumps start at the noise, since it is their end that moves. Released: lengths and ends of jumps are
    logit-normal, and every pair serves both parts of the loss.
    """

    through: bool = True
    """Train through the derivative, as published; without, it is Lagrangian self-distillation, which costs less."""

    def anchor(self, time: Tensor) -> TimePair:
        """Jumps from the noise to any time."""
        return TimePair(torch.full_like(time, self.path.noise_time), time)

    @property
    def calls(self) -> int:
        """Forward passes in an update: the jump (and its derivative), the moving average, and the velocity."""
        return 3 if self.through else 4

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the two parts apart."""
        derivative = with_graph if self.through else two_pass

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            (z, _, t, s, labels), still = self.parts(setting.problem, generator)
            a, slow = (as_average_velocity(module, label=labels) for module in (network, setting.state.ema))
            ends = mse(*terminal_velocity_regression(a, instantaneous(slow), z, t, s, derivative=derivative))
            velocity = instantaneous(as_average_velocity(network, label=still.labels))
            raw = torch.cat([ends, mse(*flow_matching_regression(velocity, still.z, still.v, still.t))])
            return raw.mean(), parts_apart(raw, self.jumping)

        return loss
