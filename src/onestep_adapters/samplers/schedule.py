"""Checks of time grids, and noise, for all samplers.

A grid is checked once, on the CPU; a tensor on another device is copied to the CPU. Noise is an argument: a tensor of
draws, or a function that draws.
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
from onestep_core.validators import require_call

Noise: TypeAlias = Float[Tensor, "draws batch *shape"] | Callable[[int, Tensor], Tensor]
"""Draws ``[draws, batch, *shape]``, step ``i`` uses ``noise[i]``; or a function ``(step, like) -> draw``."""

NEARLY_CLEAN = 0.1
"""A last time is nearly clean if its noise ratio is at most this share of the ratio at the time before."""

_TOLERANCE = 1e-6
"""Tolerance of angles, in radians: pi/2 rounded to float32 is accepted."""


class Grid(NamedTuple):
    """``times [steps + 1]`` on the CPU; whether the last time has no noise at all, and whether it has nearly none."""

    times: Tensor
    clean: bool
    nearly_clean: bool

    @property
    def steps(self) -> int:
        """Number of intervals."""
        return len(self.times) - 1


class Points(NamedTuple):
    """``times`` on the CPU in the precision of the states, and ``angle = atan2(sigma, alpha)``: data 0, noise pi/2."""

    times: Tensor
    angle: Tensor


def checked_points(times: Times, z: Tensor, *, path: Path) -> Points:
    """The times ``[points]``, in any order, after a check that they lie on the path.

    Raises:
        ConfigError: if there is no time, or a time is not on the path (``alpha`` or ``sigma`` negative or not finite).
    """
    points = torch.as_tensor(times, dtype=full(z).dtype, device="cpu").detach()
    if points.ndim != 1 or len(points) < 1:
        raise ConfigError(f"times of shape {tuple(points.shape)}: expected one axis, [points]")
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
    """``times`` in the precision of ``z``, after a check that they run from noise to data.

    Raises:
        ConfigError: as :func:`checked_points`; if there are fewer than two times, or a time does not have less noise
            than the time before.
    """
    points, angle = checked_points(times, z, path=path)
    if len(points) < 2 or not bool((angle.diff() < 0).all()):
        raise ConfigError(
            f"the grid {points.tolist()} does not run from noise to data: expected at least two times, each with less "
            f"noise than the one before, from {path.noise_time} towards {path.data_time}"
        )
    alpha, sigma = path.coefficients(points[-2:].double())
    # In products: the ratio of the time before may be infinite.
    little = sigma[1] * alpha[0] <= NEARLY_CLEAN * sigma[0] * alpha[1]
    return Grid(points, bool(sigma[1] == 0), bool(little))


def checked_landings(landings: Times, then: Points, z: Tensor, *, path: Path) -> Tensor:
    """One landing for each time of ``then``; noise is added from the landing up to that time.

    Raises:
        ConfigError: as :func:`checked_points`; if their numbers differ, or a landing has more noise than its time.
    """
    points, angle = checked_points(landings, z, path=path)
    if points.shape != then.times.shape:
        raise ConfigError(
            f"{len(points)} landings for {len(then.times)} steps: expected one landing per step: landings [steps] "
            "and times [steps + 1]"
        )
    if bool((angle > then.angle + _TOLERANCE).any()):
        raise ConfigError(
            f"landings {points.tolist()} before the times {then.times.tolist()}: expected no landing with more noise "
            "than the time that follows it, because a step can only add noise"
        )
    return points


def at(time: Tensor, z: Tensor) -> Tensor:
    """One time of a grid for every sample, ``[batch]``."""
    return time.to(z.device).expand(z.shape[0])


def drawing(noise: Noise | None, wanted: Sequence[bool]) -> Callable[[int, Tensor], Tensor]:
    """A function ``(step, like) -> draw`` from either form of ``noise``; ``wanted`` says which steps need a draw.

    Raises:
        ConfigError: if a step needs noise and ``noise`` is ``None`` or has too few draws. Further draws are not used,
            as in released code that gives one to every time.
    """
    last = max((step for step, want in enumerate(wanted) if want), default=-1)
    if isinstance(noise, Tensor):
        if noise.shape[0] <= last:
            raise ConfigError(
                f"{noise.shape[0]} draws of noise given: expected at least {last + 1}, because step {last} uses "
                f"noise[{last}]"
            )
        return lambda step, like: noise[step].to(like)
    if noise is None and last >= 0:
        raise ConfigError(f"no noise for step {last}: give a tensor of draws, or noise=standard_normal(generator)")
    if noise is None:
        return _none
    require_call("noise", noise, ("step", "like"))
    return noise


def _none(step: int, like: Tensor) -> Tensor:
    raise ConfigError(f"step {step} takes no noise")


def standard_normal(generator: torch.Generator | None = None) -> Callable[[int, Tensor], Tensor]:
    """A function ``(step, like) -> randn``: fresh noise for a sampler, ``noise=standard_normal(generator)``.

    Args:
        generator: random generator on the device of the samples; ``None`` for torch's default generator.

    Example:
        >>> draw = standard_normal(torch.Generator().manual_seed(0))
        >>> draw(0, torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    if generator is not None and not isinstance(generator, torch.Generator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(generator).__name__} as generator: expected torch.Generator().manual_seed(0)")

    def draw(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    return draw
