"""Terminal velocity matching: the derivative of a jump at its end is the velocity there; flow matching for s = t."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.average_velocity.jumps import AnyJumpMethod, part_losses
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import IMAGE_NETWORK, IMAGE_TRAINING, POINT_NETWORK, Preset
from onestep_adapters.methods.work import Work, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import (
    TimePair,
    flow_matching_regression,
    instantaneous,
    mse,
    single_pass,
    terminal_velocity_regression,
    with_graph,
)
from onestep_core.validators import share


@attrs.frozen
class TerminalVelocity(AnyJumpMethod):
    """Regress the velocity at the end of a jump onto the moving average's; sample by one jump.

    In the released code lengths and ends of jumps are logit-normal, and every pair serves both parts of the loss.
    """

    objective: ClassVar[str] = "regression (velocity at the end)"
    ode: ClassVar[str] = "to train"

    noise_start_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of the jumps that start at pure noise (t = 1), as in one-step sampling. Its sum with --full-jump-share
    is at most 1. Paper: 0."""
    derivative_gradient: bool = True
    """Backpropagate through the derivative with respect to the end time s (paper). Off: stop-gradient, Lagrangian
    self-distillation, which costs less."""

    @property
    def boundary_share(self) -> float:
        """Share of the pairs with ``s < t`` whose jump starts at the noise end."""
        return self.noise_start_share

    def at_boundary(self, time: Tensor) -> TimePair:
        """Jumps from the noise end to ``time``."""
        return TimePair(torch.full_like(time, self.path.noise_time), time)

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the jump, the moving average, the velocity; a frozen derivative too."""
        return 3 if self.derivative_gradient else 4

    def work(self, step: int, data: Dataset) -> Work:
        """Every pair; the tangent and the average of every jump; a frozen derivative has a value of its own."""
        frozen = 0 if self.derivative_gradient else self.jumps
        return trained(self.training.batch) + Work(self.jumps + frozen, tangent=self.jumps)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Squared errors of the terminal velocity and of the velocity; the log has both parts of the batch."""
        derivative = with_graph if self.derivative_gradient else single_pass
        (z, _, t, s, labels), rest = self.parts(context.prepared, generator)
        a, slow = (as_average_velocity(module, label=labels) for module in (network, context.state.ema))
        ends = mse(*terminal_velocity_regression(a, instantaneous(slow), z, t, s, derivative=derivative))
        velocity = instantaneous(as_average_velocity(network, label=rest.labels))
        raw = torch.cat([ends, mse(*flow_matching_regression(velocity, rest.z, rest.v, rest.t))])
        return raw.mean(), part_losses(raw, self.jumps)


PRESETS = (
    Preset(
        "terminal-velocity",
        "terminal velocity matching (TVM): the velocity at the end of a jump is matched",
        TerminalVelocity(
            IMAGE_TRAINING, IMAGE_NETWORK, interval_share=0.5, coupling="precomputed", noise_start_share=0.5
        ),
        TerminalVelocity(
            Training(steps=2500, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            interval_share=0.5,
            coupling="optimal",
            noise_start_share=0.5,
        ),
        "Half of the jumps start at the noise. Coupled pairs.",
    ),
)
