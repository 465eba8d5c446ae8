"""2-D toys: distributions on the plane that are drawn anew for every batch.

A distribution is frozen configuration with ``sample(count, *, generator) -> [count, 2]``, float32 on the generator's
device, and ``modes``: those of a mixture of equally wide round Gaussians, else ``None``. All have a scale near 1 to 2,
the scale of the noise.

:data:`TOYS` maps the names of the command line to distributions with their default constants.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from onestep_adapters.data.dataset import Batch, Kind, Modes, SplitName
from onestep_adapters.names import choose
from onestep_core.validators import not_negative, open_share, positive

DARK_SQUARES = ((0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3))
"""Column and row of the checkerboard's squares that carry mass."""


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator, device=_device(generator))


def _normal(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(count, 2, generator=generator, device=_device(generator))


def _mixture(means: Tensor, weights: Tensor, std: float, count: int, generator: torch.Generator | None) -> Tensor:
    device = _device(generator)
    mode = torch.multinomial(weights.to(device), count, replacement=True, generator=generator)
    return means.to(device)[mode] + std * _normal(count, generator)


@attrs.frozen
class EightGaussians:
    """Eight equal round Gaussians on a circle.

    Args:
        radius: of the circle.
        std: standard deviation of each mode, per coordinate.

    Raises:
        ConfigError: if a number is not positive.

    Example:
        >>> toy = EightGaussians()
        >>> toy.sample(4, generator=torch.Generator().manual_seed(0)).shape, toy.means.shape
        (torch.Size([4, 2]), torch.Size([8, 2]))
    """

    radius: float = attrs.field(default=2.0, validator=positive)
    std: float = attrs.field(default=0.15, validator=positive)

    @property
    def means(self) -> Tensor:
        """Centres, counter-clockwise from the positive x axis, ``[8, 2]``."""
        angle = torch.arange(8, device="cpu") * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    @property
    def weights(self) -> Tensor:
        """Masses, all 1/8, ``[8]``."""
        return torch.full((8,), 1 / 8, device="cpu")

    @property
    def modes(self) -> Modes:
        """The eight modes."""
        return Modes(self.means, self.weights, self.std)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``[count, 2]``; torch's default generator where ``None``."""
        return _mixture(self.means, self.weights, self.std, count, generator)


@attrs.frozen
class UnequalMixture:
    """Two round Gaussians of unequal mass, at ``(-distance / 2, 0)`` and ``(distance / 2, 0)``.

    The test of masses: a generator that covers both modes can still get their shares wrong.

    Args:
        first_weight: mass of the left mode, strictly between 0 and 1.
        distance: between the means.
        std: standard deviation of each mode, per coordinate.

    Raises:
        ConfigError: for a number out of range.

    Example:
        >>> UnequalMixture().weights
        tensor([0.3000, 0.7000])
    """

    first_weight: float = attrs.field(default=0.3, validator=open_share)
    distance: float = attrs.field(default=3.0, validator=positive)
    std: float = attrs.field(default=0.3, validator=positive)

    @property
    def means(self) -> Tensor:
        """Centres, left then right, ``[2, 2]``."""
        return torch.tensor([[-self.distance / 2, 0.0], [self.distance / 2, 0.0]], device="cpu")

    @property
    def weights(self) -> Tensor:
        """Masses, left then right, ``[2]``."""
        return torch.tensor([self.first_weight, 1 - self.first_weight], device="cpu")

    @property
    def modes(self) -> Modes:
        """The two modes."""
        return Modes(self.means, self.weights, self.std)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``[count, 2]``; torch's default generator where ``None``."""
        return _mixture(self.means, self.weights, self.std, count, generator)


@attrs.frozen
class Checkerboard:
    """Uniform on the eight dark squares of a four by four board on ``[-extent, extent]^2``.

    Args:
        extent: half of the board's side.

    Raises:
        ConfigError: if it is not positive.

    Example:
        >>> x = Checkerboard().sample(100, generator=torch.Generator().manual_seed(0))
        >>> bool(((x + 2).floor().sum(1) % 2 == 0).all())
        True
    """

    extent: float = attrs.field(default=2.0, validator=positive)
    modes: ClassVar[None] = None

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``[count, 2]``; torch's default generator where ``None``."""
        device = _device(generator)
        squares = torch.tensor(DARK_SQUARES, dtype=torch.float32, device=device)
        square = torch.randint(len(DARK_SQUARES), (count,), generator=generator, device=device)
        inside = torch.rand(count, 2, generator=generator, device=device)
        return self.extent * ((squares[square] + inside) / 2 - 1)


@attrs.frozen
class SwissRoll:
    """A spiral ``(a / a_max) (cos a, sin a) radius`` with ``a`` uniform on [1.5 pi, 4.5 pi], plus Gaussian noise.

    Args:
        radius: of the outer end.
        std: standard deviation of the noise, per coordinate.

    Raises:
        ConfigError: for a number out of range.

    Example:
        >>> bool((SwissRoll(std=0.0).sample(100).norm(dim=1) <= 2).all())
        True
    """

    radius: float = attrs.field(default=2.0, validator=positive)
    std: float = attrs.field(default=0.07, validator=not_negative)
    modes: ClassVar[None] = None

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``[count, 2]``; torch's default generator where ``None``."""
        turn = (1 + 2 * _uniform(count, generator)) / 3
        angle = 4.5 * math.pi * turn
        curve = self.radius * turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return curve + self.std * _normal(count, generator)


@attrs.frozen
class TwoMoons:
    """Two interleaved half circles of equal mass, centred on the origin, plus Gaussian noise.

    The upper one has its centre at ``(-1/2, -1/4) scale``, the lower one at ``(1/2, 1/4) scale``.

    Args:
        scale: radius of the half circles.
        std: standard deviation of the noise, per coordinate.

    Raises:
        ConfigError: for a number out of range.

    Example:
        >>> TwoMoons().sample(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    scale: float = attrs.field(default=1.5, validator=positive)
    std: float = attrs.field(default=0.1, validator=not_negative)
    modes: ClassVar[None] = None

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``[count, 2]``; torch's default generator where ``None``."""
        angle = math.pi * _uniform(count, generator)
        side = 1 - 2 * (_uniform(count, generator) < 0.5).float()
        moon = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        return self.scale * side[:, None] * moon + self.std * _normal(count, generator)


Toy = EightGaussians | UnequalMixture | Checkerboard | SwissRoll | TwoMoons

TOYS: Mapping[str, Toy] = {
    "8gaussians": EightGaussians(),
    "checkerboard": Checkerboard(),
    "swiss-roll": SwissRoll(),
    "two-moons": TwoMoons(),
    "unequal": UnequalMixture(),
}
"""The distributions by their names on the command line."""


class ToyDataset:
    """A 2-D toy as a data set: fresh draws at every update, no classes.

    Args:
        name: key of :data:`TOYS`, or a name for a distribution of your own.
        distribution: ``sample(count, *, generator) -> [count, d]`` and ``modes``; :data:`TOYS` by default.

    Raises:
        ConfigError: for an unknown name without a distribution, with the nearest names.

    Example:
        >>> data = ToyDataset("8gaussians")
        >>> data.batch(3, torch.Generator().manual_seed(0)).data.shape
        torch.Size([3, 2])
    """

    kind: Kind = "points"
    classes: int | None = None
    shape: tuple[int, ...] = (2,)

    def __init__(self, name: str, distribution: Toy | None = None) -> None:
        self.distribution = TOYS[choose(name, TOYS, "2-D toy")] if distribution is None else distribution
        self.name, self.title = name, f"2-D toy {name}"

    @property
    def modes(self) -> Modes | None:
        """The distribution's modes, if it is a mixture of round Gaussians."""
        return self.distribution.modes

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Fresh draws."""
        return Batch(self.sample(count, generator), None)

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """One group: ``each`` fresh draws."""
        return self.sample(each, generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """Fresh draws."""
        return self.sample(count, generator)

    def labels(self, count: int, generator: torch.Generator) -> None:
        """No classes."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh draws."""
        return self.distribution.sample(count, generator=generator)

    def split(self, name: SplitName) -> None:
        """No splits: every draw is new."""

    def finish(self, samples: Tensor) -> Tensor:
        """The samples, unchanged."""
        return samples
