"""2-D toys: distributions on R^2, with new samples for every batch.

A distribution is an immutable object with a method ``sample(count, *, generator) -> [count, 2]``, float32 on the
generator's device, and an attribute ``modes``: the modes of a mixture of isotropic Gaussians of equal width, else
``None``. Every toy has a scale of about 1 to 2, similar to the noise.

:data:`TOYS` maps command-line names to distributions with default numbers.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, get_args

import attrs
import torch
from torch import Tensor

from onestep_adapters.data.dataset import Batch, Kind, Modes, SplitName
from onestep_adapters.names import choose
from onestep_core.errors import ConfigError
from onestep_core.validators import not_negative, open_share, positive, require_count

DARK_SQUARES = ((0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3))
"""Column and row of the squares of the checkerboard that have probability mass."""


def _device(generator: torch.Generator | None) -> torch.device:
    if generator is not None and not isinstance(generator, torch.Generator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(generator).__name__} as generator: expected torch.Generator().manual_seed(0)")
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
    """Mixture of eight isotropic Gaussians of equal weight, with means on a circle.

    Args:
        radius: radius of the circle.
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
        """Means, counter-clockwise from the positive x axis, ``[8, 2]``."""
        angle = torch.arange(8, device="cpu") * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    @property
    def weights(self) -> Tensor:
        """Weights of the modes, all 1/8, ``[8]``."""
        return torch.full((8,), 1 / 8, device="cpu")

    @property
    def modes(self) -> Modes:
        """The eight modes."""
        return Modes(self.means, self.weights, self.std)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples, ``[count, 2]``; ``generator=None`` uses torch's default generator."""
        return _mixture(self.means, self.weights, self.std, count, generator)


@attrs.frozen
class UnequalMixture:
    """Two isotropic Gaussians of unequal weight, with means ``(-distance / 2, 0)`` and ``(distance / 2, 0)``.

    It tests the weights of modes: a generator can cover both modes with wrong weights.

    Args:
        first_weight: weight of the left mode, strictly between 0 and 1.
        distance: distance between the means.
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
        """Means, left then right, ``[2, 2]``."""
        return torch.tensor([[-self.distance / 2, 0.0], [self.distance / 2, 0.0]], device="cpu")

    @property
    def weights(self) -> Tensor:
        """Weights of the modes, left then right, ``[2]``."""
        return torch.tensor([self.first_weight, 1 - self.first_weight], device="cpu")

    @property
    def modes(self) -> Modes:
        """The two modes."""
        return Modes(self.means, self.weights, self.std)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples, ``[count, 2]``; ``generator=None`` uses torch's default generator."""
        return _mixture(self.means, self.weights, self.std, count, generator)


@attrs.frozen
class Checkerboard:
    """Uniform on the eight dark squares of a 4 x 4 checkerboard on ``[-extent, extent]^2``.

    Args:
        extent: half of the side of the board.

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
        """Independent samples, ``[count, 2]``; ``generator=None`` uses torch's default generator."""
        device = _device(generator)
        squares = torch.tensor(DARK_SQUARES, dtype=torch.float32, device=device)
        square = torch.randint(len(DARK_SQUARES), (count,), generator=generator, device=device)
        inside = torch.rand(count, 2, generator=generator, device=device)
        return self.extent * ((squares[square] + inside) / 2 - 1)


@attrs.frozen
class SwissRoll:
    """A spiral ``(a / a_max) (cos a, sin a) radius`` with ``a`` uniform on [1.5 pi, 4.5 pi], plus Gaussian noise.

    Args:
        radius: distance of the outer end from the origin.
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
        """Independent samples, ``[count, 2]``; ``generator=None`` uses torch's default generator."""
        turn = (1 + 2 * _uniform(count, generator)) / 3
        angle = 4.5 * math.pi * turn
        curve = self.radius * turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return curve + self.std * _normal(count, generator)


@attrs.frozen
class TwoMoons:
    """Two interleaved half circles of equal weight, plus Gaussian noise; the mean is the origin.

    The centre of the upper half circle is ``(-1/2, -1/4) scale``, that of the lower one ``(1/2, 1/4) scale``.

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
        """Independent samples, ``[count, 2]``; ``generator=None`` uses torch's default generator."""
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
"""The distributions by command-line name."""


class ToyDataset:
    """A 2-D toy as a data set: new samples at every update, no classes.

    Args:
        name: key of :data:`TOYS`, or a name for a distribution of your own.
        distribution: an object with ``sample(count, *, generator) -> [count, 2]`` and ``modes``; by default
            ``TOYS[name]``.

    Raises:
        ConfigError: if the name is unknown and no distribution is given; the message lists the most similar names.

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
        """The modes of the distribution if it is a mixture of isotropic Gaussians of equal width, else ``None``."""
        return self.distribution.modes

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """``count`` new samples."""
        return Batch(self.sample(count, generator), None)

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """One group of ``each`` new samples, because there are no classes."""
        return self.sample(each, generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` new samples."""
        return self.sample(count, generator)

    def labels(self, count: int, generator: torch.Generator) -> None:
        """``None``: there are no classes."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``count`` new samples.

        Raises:
            ConfigError: if ``count`` is no whole number, at least 1.
        """
        require_count("count", count, least=1)
        return self.distribution.sample(count, generator=generator)

    def split(self, name: SplitName) -> None:
        """``None``: there is no fixed set of samples.

        Raises:
            ConfigError: if there is no split of this name.
        """
        choose(name, get_args(SplitName), "split")

    def finish(self, samples: Tensor) -> Tensor:
        """Return the samples unchanged."""
        return samples
