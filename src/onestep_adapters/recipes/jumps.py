"""What the recipes of an average velocity share: training points with their jumps, the network, and one jump to sample.

A batch has two parts: its first ``moving`` pairs jump, from ``t`` to ``s``, and on the others, where ``s = t``, flow
matching says which flow it is.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.draws import Coupling, Draw, draw
from onestep_adapters.recipes.flow_matching import mixed_times
from onestep_adapters.recipes.options import Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Batch, Problem
from onestep_adapters.samplers import one_step
from onestep_core import Linear, TimePair, adaptive, empirical_velocity, expand_like, ordered, stay_where, two_pass
from onestep_core.errors import ConfigError
from onestep_core.protocols import Derivative, Path

_NEAR = 1e-3
"""How close to the data end a time is beside the data."""


class Points(NamedTuple):
    """States and pair velocities at ``t``, ``[count, *shape]``; source and target times and classes, ``[count]``."""

    z: Tensor
    v: Tensor
    t: Tensor
    s: Tensor
    labels: Tensor | None


class Parts(NamedTuple):
    """The pairs that jump, and those that stay."""

    moving: Points
    still: Points


@attrs.frozen
class AverageVelocityRecipe(ABC):
    """Options and sampler of every method whose network is an average velocity; a method adds its times and loss."""

    teacher: ClassVar[None] = None
    path: ClassVar[Path] = Linear()
    training: Training = Training()
    network: Network = Network()
    moving: float = attrs.field(default=0.75, validator=share)
    """Share of the pairs with s != t, the first of each batch; the others are flow matching."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Share of training times that are uniform; the others are logit-normal(mean, 1)."""
    mean: float = 0.0
    """Of the logit of those others."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Data drawn beside the batch, whose mean velocity given the state replaces that of the pair, with less variance:
    stable targets, https://arxiv.org/abs/2302.00670. 0: the pair's own, as published."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def jumping(self) -> int:
        """Pairs of a batch with ``s != t``."""
        return round(self.moving * self.training.batch)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The average-velocity network."""
        return self.network.build(problem, 2, generator)

    @abstractmethod
    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Source and target times of a batch, of which the first ``moving`` jump."""

    def points(self, problem: Problem, generator: torch.Generator) -> Points:
        """Times, a batch and its noise, drawn in this order, on the path."""
        t, s = self.times(self.training.batch, generator)
        return self.placed(
            draw(problem, self.training.batch, generator, references=self.references, coupling=self.coupling), t, s
        )

    def placed(self, drawn: Draw, t: Tensor, s: Tensor) -> Points:
        """Pairs on the path, with their jumps."""
        z, v = self.path(drawn.data, drawn.noise, t)
        if drawn.further is not None:
            v = _mean_velocity(z, v, t, Batch(drawn.data, drawn.labels), drawn.further, path=self.path)
        return Points(z, v, t, s, drawn.labels)

    def parts(self, problem: Problem, generator: torch.Generator) -> Parts:
        """Likewise, divided."""
        points = self.points(problem, generator)
        first, rest = slice(None, self.jumping), slice(self.jumping, None)
        moving, still = (
            Points(*(x[part] for x in points[:4]), None if points.labels is None else points.labels[part])
            for part in (first, rest)
        )
        return Parts(moving, still)

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_step(as_average_velocity(network, label=labels), noise, path=self.path)


@attrs.frozen
class AnyJumpRecipe(AverageVelocityRecipe):
    """Jumps between any two times, with a choice of those that matter most for one step."""

    anchored: float = attrs.field(default=0.0, validator=share)
    """Share of the jumps that end at the data, from where alone one step follows; the others end anywhere."""
    whole: float = attrs.field(default=0.0, validator=share)
    """Share of the jumps that are the sampler's own, from the noise to the data, after the anchored ones."""

    def __attrs_post_init__(self) -> None:
        if self.anchored + self.whole > 1 + 1e-9:
            raise ConfigError(
                f"anchored = {self.anchored} and whole = {self.whole} are shares of the same jumps: expected a sum of "
                "at most 1"
            )

    def times(self, count: int, generator: torch.Generator) -> TimePair:
        """Two times, the later one first; only the first ``moving`` of the batch keep the second."""
        one, other = (mixed_times(count, self.uniform_share, generator, mean=self.mean) for _ in "ts")
        index, (t, s) = torch.arange(count), ordered(one, other)
        anchored = index < round(self.anchored * self.jumping)
        whole = ~anchored & (index < round((self.anchored + self.whole) * self.jumping))
        t, s = (torch.where(anchored, a, x) for a, x in zip(self.anchor(one), (t, s), strict=True))
        t, s = t.masked_fill(whole, self.path.noise_time), s.masked_fill(whole, self.path.data_time)
        return stay_where(t, s, index >= self.jumping)

    def anchor(self, time: Tensor) -> TimePair:
        """Jumps from any time to the data. The times are not those of ordered pairs: where a derivative carries the
        target from the data up, one that favours late times lets errors grow on the way.
        """
        return TimePair(time, torch.full_like(time, self.path.data_time))


@attrs.frozen
class EulerianRecipe(AnyJumpRecipe):
    """Options of the methods whose target holds a derivative along the trajectory, or the difference that tends to it:
    where the velocity is steep, their loss is large.
    """

    power: float = attrs.field(default=0.0, validator=not_negative)
    """Exponent of the adaptive weight on the summed squared distance: 1 as released (JAX), 0 for none."""
    epsilon: float = attrs.field(default=0.01, validator=positive)
    """Added to the loss inside that weight."""

    def weight(self, raw: Tensor, z: Tensor) -> Tensor:
        """Of squared distances that were summed over a sample of ``z``: adaptive, or one over its size."""
        if self.power == 0:
            return torch.full_like(raw, 1 / z[0].numel())
        return adaptive(raw, power=self.power, epsilon=self.epsilon)

    def derivative(self, network: nn.Module, labels: Tensor | None) -> Derivative:
        """The derivative, found for the pairs that jump alone: on the others its factor is zero."""
        first = None if labels is None else labels[: self.jumping]
        return partial(two_pass, moving_function=as_average_velocity(network, label=first))


def _mean_velocity(z: Tensor, v: Tensor, t: Tensor, own: Batch, others: Batch, *, path: Path) -> Tensor:
    """The mean velocity given ``z`` among the pairs' own data and others of their class; the pairs' next to the data,
    where it is the same and its formula divides by nothing.
    """
    allowed = None
    if own.labels is not None and others.labels is not None:
        allowed = own.labels[:, None] == torch.cat([own.labels, others.labels])
    mean = empirical_velocity(z, torch.cat([own.data, others.data]), t, path=path, allowed=allowed)
    return torch.where(expand_like((t - path.data_time).abs() < _NEAR, z), v, mean)


def parts_apart(raw: Tensor, jumping: int) -> dict[str, Tensor]:
    """The mean losses of the pairs that jump and of those that stay, for the log; a part without pairs is left out.

    Example:
        >>> parts_apart(torch.tensor([1.0, 3.0, 5.0]), 2)
        {'moving': tensor(2.), 'still': tensor(5.)}
    """
    named = {"moving": raw.detach()[:jumping], "still": raw.detach()[jumping:]}
    return {name: part.mean() for name, part in named.items() if len(part)}
