"""Shortcut models: jumps of length 1, 1/2, 1/4, ..., each regressed onto two of half its length."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.average_velocity.jumps import AverageVelocityMethod, part_losses
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import IMAGE_TRAINING, POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.methods.times import mixed_times
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import TimePair, dyadic_times, flow_matching_regression, log_steps, mse, reverse, shortcut_regression
from onestep_core.protocols import Path
from onestep_core.validators import positive_count


@attrs.frozen
class Shortcut(AverageVelocityMethod):
    """Regress a jump onto two of half its length, by the moving average; sample by one jump.

    Time runs from noise at 0 to data at 1, and jumps start on the grid of their length. The released code has
    ``interval_share`` 1/8.
    """

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"

    path: ClassVar[Path] = reverse(PATH)
    halvings: int = attrs.field(default=7, validator=positive_count)
    """Jump lengths are 1, 1/2, ..., 1/2^halvings; the shortest counts as the instantaneous velocity. Code: 7, which is
    1/128."""
    favour_long_jumps: bool = False
    """Give half of the jumps the two longest lengths (an option of the released code)."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update: the jump, its two halves by the moving average, and the velocity."""
        return 4

    def work(self, step: int, data: Dataset) -> Work:
        """Every pair, and the two halves of every jump."""
        return trained(self.training.batch) + seen(2 * self.jumps)

    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Dyadic jumps first; then any time with a jump of the shortest length."""
        device = generator.device
        jumps = dyadic_times(
            torch.rand(self.jumps, generator=generator, device=device),
            log_steps(self.jumps, finest=self.halvings, biased=self.favour_long_jumps, device=device),
        )
        t = mixed_times(count - self.jumps, self.uniform_share, generator)
        return TimePair(torch.cat([jumps.t, t]), torch.cat([jumps.s, t + 2.0**-self.halvings]))

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Squared errors of the jump and of the velocity; the log has both parts of the batch."""
        (z, _, t, s, labels), rest = self.parts(context.prepared, generator)
        a, slow = (as_average_velocity(module, label=labels) for module in (network, context.state.ema))
        jumps = mse(*shortcut_regression(a, slow, z, t, s))
        shortest = as_average_velocity(network, label=rest.labels)

        def velocity(z: Tensor, t: Tensor, /) -> Tensor:
            return shortest(z, t, rest.s)

        raw = torch.cat([jumps, mse(*flow_matching_regression(velocity, rest.z, rest.v, rest.t))])
        return raw.mean(), part_losses(raw, self.jumps)


PRESETS = (
    Preset(
        "shortcut",
        "shortcut model: a jump must equal two of half its length",
        Shortcut(
            IMAGE_TRAINING, WIDE_IMAGE_NETWORK, interval_share=0.6, coupling="precomputed", favour_long_jumps=True
        ),
        Shortcut(
            Training(steps=4000, batch=384, learning_rate=2.5e-3),
            POINT_NETWORK,
            interval_share=0.6,
            stable_targets=1024,
            favour_long_jumps=True,
        ),
        "The longest jumps are drawn more often, as an option of the released code does. Images: coupled pairs. "
        "Points: stable targets. As in SplitMeanFlow, errors of short jumps add up in long ones.",
    ),
)
