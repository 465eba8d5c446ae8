"""What every sampler here shares: its grid of times and its noise.

A grid is configuration, so it is looked at once, on the host: a tensor on another device is read back. Noise is
an argument: draws that somebody made, or a function that makes them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.protocols import Path, Times

Noise: TypeAlias = Float[Tensor, "draws batch *shape"] | Callable[[int, Tensor], Tensor]
"""Draws ``[draws, batch, *shape]``, of which step ``i`` takes ``noise[i]``, or ``(step, like) -> draw``."""

_TOLERANCE = 1e-6
"""Of angles, in radians: a float32 rounding of pi/2 is no error."""


class Grid(NamedTuple):
    """``times [steps + 1]`` on the host, and whether the last has no noise at all."""

    times: Tensor
    clean: bool

    @property
    def steps(self) -> int:
        """Number of intervals."""
        return len(self.times) - 1


class Points(NamedTuple):
    """``times`` on the host in the precision of the states, and their place between data (0) and noise (pi/2)."""

    times: Tensor
    angle: Tensor


def checked_points(times: Times, z: Tensor, *, path: Path) -> Points:
    """Times of a path, ``[points]``, in any order.

    Raises:
        ConfigError: if there is none, or one is no point of the path (``alpha`` or ``sigma`` negative or not finite).
    """
    points = torch.as_tensor(times, dtype=full(z).dtype, device="cpu").detach()
    if points.ndim != 1 or len(points) < 1:
        raise ConfigError(f"times of shape {tuple(points.shape)}: expected a row of them, [points]")
    alpha, sigma = path.coefficients(points.double())
    angle = torch.atan2(sigma, alpha)
    inside = alpha.isfinite() & sigma.isfinite() & (angle > -_TOLERANCE) & (angle < math.pi / 2 + _TOLERANCE)
    if not bool(inside.all()):
        raise ConfigError(
            f"times {points[~inside].tolist()} are no points of the path, which has its data at {path.data_time} and "
            f"its noise at {path.noise_time}: expected times in the path's own unit"
        )
    return Points(points, angle)


def checked_grid(times: Times, z: Tensor, *, path: Path) -> Grid:
    """``times`` in the precision of ``z``, from noise to data.

    Raises:
        ConfigError: as :func:`checked_points`; if there are fewer than two times, or one is not less noisy than the
            one before.
    """
    points, angle = checked_points(times, z, path=path)
    if len(points) < 2 or not bool((angle.diff() < 0).all()):
        raise ConfigError(
            f"the grid {points.tolist()} does not run from noise to data: expected at least two times, each less noisy "
            f"than the one before, from {path.noise_time} towards {path.data_time}"
        )
    return Grid(points, bool(path.coefficients(points[-1:].double())[1] == 0))


def checked_landings(landings: Times, then: Points, z: Tensor, *, path: Path) -> Tensor:
    """One landing for each time of ``then``, to which noise leads back up.

    Raises:
        ConfigError: as :func:`checked_points`; if their numbers differ, or a landing is noisier than what follows.
    """
    points, angle = checked_points(landings, z, path=path)
    if points.shape != then.times.shape:
        raise ConfigError(
            f"{len(points)} landings for {len(then.times)} steps: expected one landing a step, [steps] beside times "
            "[steps + 1]"
        )
    if bool((angle > then.angle + _TOLERANCE).any()):
        raise ConfigError(
            f"landings {points.tolist()} before the times {then.times.tolist()}: expected no landing noisier than the "
            "time that follows it; noise only leads up"
        )
    return points


def at(time: Tensor, z: Tensor) -> Tensor:
    """One time of a grid for every sample, ``[batch]``."""
    return time.to(z.device).expand(z.shape[0])


def drawing(noise: Noise | None, wanted: Sequence[bool]) -> Callable[[int, Tensor], Tensor]:
    """``(step, like) -> draw`` from either form of ``noise``, for the steps that want one.

    Raises:
        ConfigError: if a step wants noise and there is none, or fewer draws than its number.
    """
    last = max((step for step, want in enumerate(wanted) if want), default=-1)
    if isinstance(noise, Tensor):
        if noise.shape[0] <= last:
            raise ConfigError(
                f"{noise.shape[0]} draws of noise given: expected at least {last + 1}, step {last} takes noise[{last}]"
            )
        return lambda step, like: noise[step].to(like)
    if noise is None and last >= 0:
        raise ConfigError(f"no noise for step {last}: expected draws, or noise=standard_normal(generator)")
    return noise if noise is not None else _none


def _none(step: int, like: Tensor) -> Tensor:
    raise ConfigError(f"step {step} takes no noise")


def standard_normal(generator: torch.Generator | None = None) -> Callable[[int, Tensor], Tensor]:
    """``(step, like) -> randn``: fresh noise for a sampler, as ``noise=standard_normal(generator)``.

    Args:
        generator: source of randomness, on the device of the samples; torch's default one where ``None``.

    Example:
        >>> draw = standard_normal(torch.Generator().manual_seed(0))
        >>> draw(0, torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    def draw(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    return draw
