"""Laws in the plane whose samples never run out.

A law is frozen configuration with ``sample(count, *, generator) -> [count, 2]``, float32 on the generator's
device. Mixtures of equal round Gaussians also name their modes: ``means`` ``[modes, 2]``, ``weights``
``[modes]`` and ``std``, one number. All have a scale near 1 to 2, so noise of unit variance reaches every one.

:data:`TOYS` maps the names of the command line to laws with their default constants.
"""

import math
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from onestep_core.errors import ConfigError

DARK_SQUARES = ((0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3))
"""Column and row of the checkerboard's squares that carry mass."""


def _positive(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{attribute.name} = {value!r}: expected a positive finite number")


def _not_negative(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"{attribute.name} = {value!r}: expected a finite number of at least 0")


def _share(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{attribute.name} = {value!r}: expected a share strictly between 0 and 1")


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
        >>> law = EightGaussians()
        >>> law.sample(4, generator=torch.Generator().manual_seed(0)).shape, law.means.shape
        (torch.Size([4, 2]), torch.Size([8, 2]))
    """

    radius: float = attrs.field(default=2.0, validator=_positive)
    std: float = attrs.field(default=0.15, validator=_positive)

    @property
    def means(self) -> Tensor:
        """Centres, counter-clockwise from the positive x axis, ``[8, 2]``."""
        angle = torch.arange(8) * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    @property
    def weights(self) -> Tensor:
        """Masses, all 1/8, ``[8]``."""
        return torch.full((8,), 1 / 8)

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

    first_weight: float = attrs.field(default=0.3, validator=_share)
    distance: float = attrs.field(default=3.0, validator=_positive)
    std: float = attrs.field(default=0.3, validator=_positive)

    @property
    def means(self) -> Tensor:
        """Centres, left then right, ``[2, 2]``."""
        return torch.tensor([[-self.distance / 2, 0.0], [self.distance / 2, 0.0]])

    @property
    def weights(self) -> Tensor:
        """Masses, left then right, ``[2]``."""
        return torch.tensor([self.first_weight, 1 - self.first_weight])

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

    extent: float = attrs.field(default=2.0, validator=_positive)

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

    radius: float = attrs.field(default=2.0, validator=_positive)
    std: float = attrs.field(default=0.07, validator=_not_negative)

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

    scale: float = attrs.field(default=1.5, validator=_positive)
    std: float = attrs.field(default=0.1, validator=_not_negative)

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
"""The laws by their names on the command line."""
