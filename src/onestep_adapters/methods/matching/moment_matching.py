"""Inductive moment matching (IMM): small groups of jumps should have the same distribution."""

from functools import partial
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws, states_at
from onestep_adapters.methods.few_steps import jumped
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Loss, Method
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import IMAGE_TRAINING, POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.networks import as_flow_map
from onestep_core import (
    NoiseScaled,
    Scalings,
    frozen_value,
    laplace,
    lower_noise_ratio,
    moment_matching_loss,
    preconditioned_flow_map,
    sample_uniform,
    sigmoid_elbo,
    simple_edm_scalings,
)
from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.protocols import FlowMap
from onestep_core.validators import count, positive, positive_count


@attrs.frozen
class MomentMatching(Method):
    """IMM: a Laplace kernel between groups of samples, uniform times, a constant step in the noise ratio."""

    objective: ClassVar[str] = "moments of groups"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data and of the noise."""
    group_size: int = attrs.field(default=4, validator=positive_count)
    """Samples in one group, whose distribution is compared by MMD: same class and same times. It must divide the batch.
    Paper: 4."""
    min_time: float = attrs.field(default=0.006, validator=positive)
    """Start times t are uniform on (min_time, 1 - min_time); above 0, below 0.5."""
    noise_ratio_step: float = attrs.field(default=160 / 2**12, validator=positive)
    """Decrease of the noise ratio t / (1 - t) from the start time t to the intermediate time of the target. Larger:
    fewer and coarser steps to learn. Paper: 160 / 4096 = 0.039."""
    weight_shift: float = 5.0
    """Shift b of the loss weight sigmoid(b - log signal-to-noise ratio); larger: more weight at small noise."""
    stable_targets: int = attrs.field(default=0, validator=count)
    """Number of extra data samples in an update, from which the less noisy state is computed with lower variance
    (stable target field, https://arxiv.org/abs/2302.00670). 0: off. Only with --coupling independent. A sample is
    averaged with samples of its own class."""
    coupling: Coupling = "independent"
    """Which noise is paired with which data sample. independent: random (papers). optimal: optimal-transport assignment
    within a batch and a class. precomputed: the same, made once before training over 65,536 pairs (images) or 32,768
    (points). The last two give straighter trajectories."""

    def __attrs_post_init__(self) -> None:
        if self.training.batch % self.group_size or not self.min_time < 0.5:
            raise ConfigError(
                f"a batch of {self.training.batch} in groups of {self.group_size}, times from {self.min_time}: "
                "expected a group size that divides the batch, and a smallest time below 0.5"
            )

    @property
    def calls(self) -> int:
        """Network evaluations in one update: both sets."""
        return 2

    @property
    def path(self) -> NoiseScaled:
        """The linear path; the noise has the standard deviation of the data."""
        return NoiseScaled(PATH, self.sigma_data)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The raw network of scaled states, source and target times."""
        return self.network.build(data, 2, generator)

    def flow_map(self, network: nn.Module, labels: Tensor | None) -> FlowMap:
        """The network as a flow map that is the identity at ``s = t``."""
        return preconditioned_flow_map(as_flow_map(network, label=labels), scalings=self._scalings)

    def _scalings(self, t: Tensor, s: Tensor) -> Scalings:
        return simple_edm_scalings(t, s, path=self.path, sigma_data=self.sigma_data)

    def prepare(self, context: Context) -> Draws:
        """The pairs. A group has one class, because the comparison of two sets ignores classes."""
        return context.draws(self.coupling, further=self.stable_targets, alike=self.group_size)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared maximum mean discrepancy of the groups; ``raw`` is the same without weight."""
        groups, size = self.training.batch // self.group_size, torch.Size(context.data.shape).numel()
        drawn = context.prepared(self.training.batch, generator)
        latest = sample_uniform(
            groups, low=self.min_time, high=1 - self.min_time, generator=generator, device=generator.device
        )
        times = (latest, latest * torch.rand(groups, generator=generator, device=generator.device))
        t, s = (time.repeat_interleave(self.group_size) for time in times)
        m = lower_noise_ratio(t, s, path=PATH, decrement=self.noise_ratio_step)
        flow_map = self.flow_map(network, drawn.labels)
        raw = moment_matching_loss(
            flow_map,
            partial(frozen_value, flow_map),
            *states_at(drawn, t, m, path=self.path),
            t,
            m,
            s,
            particles=self.group_size,
            kernel=partial(laplace, temperature=1.0),
            length=size * self._scalings(t, s).c_out.abs(),
        )
        return (raw * sigmoid_elbo(times[0], path=PATH, shift=self.weight_shift)).mean(), {"raw": raw.mean()}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one jump from the noise end to the data end."""
        z = full(self.path.prior(noise))
        t, s = (z.new_full((z.shape[0],), end) for end in (PATH.noise_time, PATH.data_time))
        return full(self.flow_map(network, labels)(z, t, s))

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by jumps of equal length from the noise end to the data end."""
        return jumped(self.flow_map(network, labels), noise, path=self.path, evaluations=evaluations)


PRESETS = (
    Preset(
        "moment-matching",
        "inductive moment matching (IMM): groups of jumps agree in distribution (MMD)",
        MomentMatching(
            IMAGE_TRAINING,
            WIDE_IMAGE_NETWORK,
            sigma_data=0.75,
            group_size=8,
            noise_ratio_step=160 / 2**7,
            coupling="precomputed",
        ),
        MomentMatching(
            Training(steps=6000, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            sigma_data=1.2,
            group_size=16,
            noise_ratio_step=160 / 2**7,
            coupling="precomputed",
        ),
        "Images: 128 steps over the noise levels instead of 4,096, which needs more updates (samples then did not "
        "show the requested class), groups of eight, coupled pairs. Points: the same steps and groups of "
        "sixteen; groups of 64 were not better. The remaining error: 5 % of the samples lie between modes.",
    ),
)
