"""Shared by all methods of an average velocity: training pairs with two times, the network, sampling by one jump.

A batch has two parts. Its first pairs have ``s < t`` (in units of the path: the target time is nearer to the data); on
the others ``s = t``, where the average velocity is the instantaneous one and flow matching trains it.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draw, Draws, average_velocity_at
from onestep_adapters.methods.few_steps import jumped
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Method
from onestep_adapters.methods.times import mixed_times
from onestep_adapters.networks import as_average_velocity
from onestep_adapters.samplers import one_step
from onestep_core import TimePair, adaptive, flow_map_from_average_velocity, ordered, stay_where
from onestep_core.errors import ConfigError
from onestep_core.protocols import Path
from onestep_core.validators import count, not_negative, positive, share


class JumpBatch(NamedTuple):
    """States and their velocities at ``t``, ``[count, *shape]``; times ``t`` and ``s`` and classes, ``[count]``."""

    z: Tensor
    v: Tensor
    t: Tensor
    s: Tensor
    labels: Tensor | None


class BatchParts(NamedTuple):
    """The pairs with ``s < t``, and those with ``s = t``."""

    jumps: JumpBatch
    rest: JumpBatch


@attrs.frozen
class AverageVelocityMethod(Method):
    """Options and sampler of every method whose network is an average velocity; a method adds its times and loss."""

    few_steps: ClassVar[bool] = True
    path: ClassVar[Path] = PATH
    interval_share: float = attrs.field(default=0.75, validator=share)
    """Fraction of the batch that trains on jumps (s < t); the rest has s = t, which is flow matching. MeanFlow's paper:
    0.25."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Fraction of the times t and s that are uniform on (0, 1); the others are logit-normal(time_mean, 1). shortcut:
    only for the part of the batch that trains without jumps. MeanFlow's paper: 0."""
    time_mean: float = 0.0
    """Mean of the logits of the logit-normal times; below 0 more times are near the data. Without effect if
    --uniform-share is 1. MeanFlow's paper: -0.4."""
    stable_targets: int = attrs.field(default=0, validator=count)
    """Number of extra data samples in an update. The expected velocity given the state, over the batch and these
    samples, replaces the pair's velocity and has lower variance (stable target field,
    https://arxiv.org/abs/2302.00670). 0: off. Only with --coupling independent. A sample is averaged with
    samples of its own class."""
    coupling: Coupling = "independent"
    """Which noise is paired with which data sample. independent: random (papers). optimal: optimal-transport assignment
    within a batch and a class. precomputed: the same, made once before training over 65,536 pairs (images) or 32,768
    (points). The last two give straighter trajectories."""

    @property
    def jumps(self) -> int:
        """Number of pairs with ``s < t`` in a batch."""
        return round(self.interval_share * self.training.batch)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The average-velocity network."""
        return self.network.build(data, 2, generator)

    def prepare(self, context: Context) -> Any:
        """Make the draws of training pairs, with the chosen coupling."""
        return self.draws(context)

    def draws(self, context: Context) -> Draws:
        """How a batch of pairs is drawn."""
        return context.draws(self.coupling, further=self.stable_targets)

    @abstractmethod
    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Source and target times of a batch; its first :attr:`jumps` pairs have ``s < t``."""

    def drawn(self, draws: Draws, generator: torch.Generator) -> JumpBatch:
        """Times, a batch and its noise, drawn in this order, on the path."""
        t, s = self.times(self.training.batch, generator)
        return self.placed(draws(self.training.batch, generator), t, s)

    def placed(self, drawn: Draw, t: Tensor, s: Tensor) -> JumpBatch:
        """Pairs on the path at ``t``."""
        z, v = average_velocity_at(drawn, t, path=self.path)
        return JumpBatch(z, v, t, s, drawn.labels)

    def parts(self, draws: Draws, generator: torch.Generator) -> BatchParts:
        """As :meth:`drawn`, divided into its two parts."""
        batch = self.drawn(draws, generator)
        first, rest = slice(None, self.jumps), slice(self.jumps, None)
        return BatchParts(
            *(
                JumpBatch(*(x[part] for x in batch[:4]), None if batch.labels is None else batch.labels[part])
                for part in (first, rest)
            )
        )

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one jump from the noise end to the data end."""
        return one_step(as_average_velocity(network, label=labels), noise, path=self.path)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by jumps of equal length from the noise end to the data end."""
        flow_map = flow_map_from_average_velocity(as_average_velocity(network, label=labels))
        return jumped(flow_map, noise, path=self.path, evaluations=evaluations)


@attrs.frozen
class AnyJumpMethod(AverageVelocityMethod):
    """Jumps between any two times; a share can start or end at a boundary, as the jump of one-step sampling does."""

    full_jump_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of the jumps that go from pure noise (t = 1) to the data (s = 0), as in one-step sampling. Papers: 0."""

    def __attrs_post_init__(self) -> None:
        if self.boundary_share + self.full_jump_share > 1 + 1e-9:
            raise ConfigError(
                f"{self.boundary_share} of the jumps at one boundary and full_jump_share = {self.full_jump_share}: "
                "both are shares of the pairs with s < t, expected a sum of at most 1"
            )

    @property
    def boundary_share(self) -> float:
        """Share of the pairs with ``s < t`` that get the times of :meth:`at_boundary`."""
        return 0.0

    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Two times, the later one first; only the first :attr:`jumps` pairs keep the second."""
        one, other = (mixed_times(count, self.uniform_share, generator, mean=self.time_mean) for _ in "ts")
        index, (t, s) = torch.arange(count, device=one.device), ordered(one, other)
        boundary = index < round(self.boundary_share * self.jumps)
        full = ~boundary & (index < round((self.boundary_share + self.full_jump_share) * self.jumps))
        t, s = (torch.where(boundary, a, x) for a, x in zip(self.at_boundary(one), (t, s), strict=True))
        t, s = t.masked_fill(full, self.path.noise_time), s.masked_fill(full, self.path.data_time)
        return stay_where(t, s, index >= self.jumps)

    def at_boundary(self, time: Tensor) -> TimePair:
        """Jumps from ``time`` to the data end.

        The times are drawn from the distribution of one time, not from that of the later of two times. A derivative
        carries the target from the data end to the noise end, and with many late times the errors grow.
        """
        return TimePair(time, torch.full_like(time, self.path.data_time))


@attrs.frozen
class JumpsToData(AnyJumpMethod):
    """As :class:`AnyJumpMethod`; a share of the jumps ends at the data."""

    data_end_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of the jumps that end at the data (s = 0) and start at any time. Its sum with --full-jump-share is at
    most 1. Papers: 0."""

    @property
    def boundary_share(self) -> float:
        """Share of the pairs with ``s < t`` whose jump ends at the data."""
        return self.data_end_share


@attrs.frozen
class EulerianMethod(JumpsToData):
    """Options of the methods whose target has a derivative along the trajectory, or the difference that tends to it.

    Where the velocity changes fast their loss is large; an adaptive weight limits it.
    """

    adaptive_power: float = attrs.field(default=0.0, validator=not_negative)
    """Exponent p of the loss weight 1 / (loss + adaptive_epsilon)^p, with the squared error summed over the sample. 0:
    no weight. MeanFlow's paper: 1."""
    adaptive_epsilon: float = attrs.field(default=0.01, validator=positive)
    """Number added to the loss in that weight; without effect if --adaptive-power is 0. MeanFlow's code: 0.01."""

    def weight(self, raw: Tensor, z: Tensor) -> Tensor:
        """Weight of squared errors that were summed over a sample of ``z``: adaptive, or one over its size."""
        if self.adaptive_power == 0:
            return torch.full_like(raw, 1 / z[0].numel())
        return adaptive(raw, power=self.adaptive_power, epsilon=self.adaptive_epsilon)


COUPLED_JUMPS: dict[str, Any] = {"interval_share": 0.5, "coupling": "precomputed", "data_end_share": 0.5}
"""Half of a batch has ``s < t``, and half of those jumps end at the data."""


def part_losses(raw: Tensor, jumps: int) -> dict[str, Tensor]:
    """Mean losses of the pairs with ``s < t`` and of those with ``s = t``, for the log; an empty part is left out.

    Example:
        >>> part_losses(torch.tensor([1.0, 3.0, 5.0]), 2)
        {'loss s<t': tensor(2.), 'loss s=t': tensor(5.)}
    """
    named = {"loss s<t": raw.detach()[:jumps], "loss s=t": raw.detach()[jumps:]}
    return {name: part.mean() for name, part in named.items() if len(part)}
