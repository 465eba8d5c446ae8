"""SplitMeanFlow and shortcut models: one jump is two, beside flow matching."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.flow_matching import mixed_times
from onestep_adapters.recipes.jumps import AnyJumpRecipe, AverageVelocityRecipe, parts_apart
from onestep_adapters.recipes.options import positive
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import (
    Linear,
    TimePair,
    between,
    dyadic_times,
    flow_matching_regression,
    instantaneous,
    log_steps,
    mse,
    reverse,
    shortcut_regression,
    split_meanflow_regression,
)
from onestep_core.protocols import Path


@attrs.frozen
class SplitMeanFlow(AnyJumpRecipe):
    """Regress a jump onto two, divided anywhere; sample by one jump."""

    @property
    def calls(self) -> int:
        """Forward passes in an update: the jump, its two parts, and the velocity."""
        return 4

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the two parts apart."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            (z, _, t, s, labels), still = self.parts(setting.problem, generator)
            m = between(t, s, share=torch.rand(t.shape, generator=generator))
            a = as_average_velocity(network, label=labels)
            jumps = mse(*split_meanflow_regression(a, a, z, t, m, s))
            velocity = instantaneous(as_average_velocity(network, label=still.labels))
            raw = torch.cat([jumps, mse(*flow_matching_regression(velocity, still.z, still.v, still.t))])
            return raw.mean(), parts_apart(raw, self.jumping)

        return loss


@attrs.frozen
class Shortcut(AverageVelocityRecipe):
    """Regress a jump of length 1, 1/2, 1/4, ... onto two of half of it; sample by one jump.

    Time runs from noise at 0 to data at 1, and jumps start on the grid of their length. The two halves are the moving
    average's. Released: ``moving`` 1/8.
    """

    path: ClassVar[Path] = reverse(Linear())
    finest: int = attrs.field(default=7, validator=positive)
    """Halvings down to the length at which the average velocity is taken for the instantaneous one; released: 7."""

    biased: bool = False
    """Half of the jumps have the two longest lengths, as an option of the released code does."""

    @property
    def calls(self) -> int:
        """Forward passes in an update: the jump, its two halves by the moving average, and the velocity."""
        return 4

    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Dyadic jumps first; then any time with a jump of the finest length."""
        jumps = dyadic_times(
            torch.rand(self.jumping, generator=generator),
            log_steps(self.jumping, finest=self.finest, biased=self.biased),
        )
        t = mixed_times(count - self.jumping, self.uniform_share, generator)
        return TimePair(torch.cat([jumps.t, t]), torch.cat([jumps.s, t + 2.0**-self.finest]))

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the two parts apart."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            (z, _, t, s, labels), still = self.parts(setting.problem, generator)
            a, slow = (as_average_velocity(module, label=labels) for module in (network, setting.state.ema))
            jumps = mse(*shortcut_regression(a, slow, z, t, s))
            finest = as_average_velocity(network, label=still.labels)

            def velocity(z: Tensor, t: Tensor, /) -> Tensor:
                return finest(z, t, still.s)

            raw = torch.cat([jumps, mse(*flow_matching_regression(velocity, still.z, still.v, still.t))])
            return raw.mean(), parts_apart(raw, self.jumping)

        return loss
