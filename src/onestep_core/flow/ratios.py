"""Noise ratios: ``sigma / alpha``, the measure of noise that all paths share.

Divided by ``alpha``, the state of any path is data plus ``ratio`` times noise. On EDM's path the time *is* the ratio,
so a rule that is written for its noise levels serves every path: how far a stochastic sampler lands below its next
time (:func:`times_with_less_noise`), how far it goes up before a step (:func:`times_with_more_noise`), where the
middle of two times is.

A ratio is infinite where ``alpha`` is zero, so the noise end of most paths can be a start but has no finite
neighbour above it. Times are never checked by value; numbers are.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.protocols import Path, RatioPath
from onestep_core.typing import Time, typed

_HALVINGS = 64
"""Number of halvings of the range between the ends: enough for the last digit of a float64 time."""


@typed
def noise_ratio(t: Time, *, path: Path) -> Time:
    """``sigma(t) / alpha(t)``, ``[batch]``; infinite where ``alpha`` is zero.

    Args:
        t: times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Example:
        >>> from onestep_core.flow import Linear
        >>> noise_ratio(torch.tensor([0.0, 0.5, 1.0]), path=Linear())
        tensor([0., 1., inf])
    """
    alpha, sigma = path.coefficients(t)
    return sigma / alpha.clamp(min=0.0)


@typed
def time_of_noise_ratio(ratio: Float[Tensor, "*count"], *, path: Path) -> Float[Tensor, "*count"]:
    """The time at which ``sigma / alpha`` is ``ratio``; the nearer end of the path where it never is.

    By bisection, for every path whose ratio grows from the data to the noise. First derivatives pass, ``dt/dratio =
    alpha^2 / (sigma' alpha - sigma alpha')``; second ones do not.

    Args:
        ratio: not negative, any shape.
        path: has finite ends.

    Raises:
        ConfigError: if an end of the path is infinite.

    Example:
        >>> from onestep_core.flow import Linear
        >>> time_of_noise_ratio(torch.tensor([0.0, 1.0, 3.0]), path=Linear())
        tensor([0.0000, 0.5000, 0.7500])
    """
    if not (math.isfinite(path.data_time) and math.isfinite(path.noise_time)):
        raise ConfigError(
            f"a path from {path.data_time} to {path.noise_time} cannot be searched: expected finite ends; give the "
            "path a closed form, `time_at`"
        )
    wanted = ratio.detach().flatten()
    clean, noisy = (torch.full_like(wanted, end) for end in (path.data_time, path.noise_time))
    for _ in range(_HALVINGS):
        middle = (clean + noisy) / 2
        alpha, sigma = path.coefficients(middle)
        beyond = sigma > wanted * alpha
        clean, noisy = torch.where(beyond, clean, middle), torch.where(beyond, middle, noisy)
    (alpha, sigma), (alpha_rate, sigma_rate) = path.coefficients(clean), path.rates(clean)
    slope = alpha.square() / (sigma_rate * alpha - sigma * alpha_rate)
    slope = torch.where(slope.isfinite(), slope, 0.0).detach().reshape(ratio.shape)
    # Zero, with the derivative of the ratio.
    moved = torch.where(ratio.isfinite(), ratio - ratio.detach(), 0.0)
    return clean.reshape(ratio.shape) + slope * moved


@typed
def time_at(ratio: Time, *, path: Path) -> Time:
    """The path's own ``time_at``, which may go on beyond its ends, or else :func:`time_of_noise_ratio`.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> time_at(torch.tensor([100.0]), path=VarianceExploding(0.002, 80.0))
        tensor([100.])
    """
    return path.time_at(ratio) if isinstance(path, RatioPath) else time_of_noise_ratio(ratio, path=path)


@typed
def times_with_less_noise(times: Time, *, gamma: float, path: Path, floor: float | None = None) -> Time:
    """The times whose ratio is ``sqrt(1 - gamma^2) (ratio - floor) + floor``: where CTM's sampler lands.

    From there noise of variance ``ratio^2 - landing^2``, in units of ``alpha``, leads back to ``times``.

    Args:
        times: where the state will be after the noise, ``[batch]``.
        gamma: share of fresh noise, in [0, 1]; 0 returns ``times``, 1 the time at ``floor``.
        path: gives ``alpha`` and ``sigma``.
        floor: the ratio below which nothing lands. By default that of the path's data end: 0.002 on EDM's path,
            as in the released code, and 0, the paper's rule, where the data end is clean. ``floor=0.0`` is the
            paper's rule on every path.

    Raises:
        ConfigError: if ``gamma`` is not in [0, 1] or ``floor`` is negative.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling), https://arxiv.org/abs/2310.02279. The released
    code has the floor 0.002 for every ``sigma_min``.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> times_with_less_noise(torch.tensor([2.0]), gamma=0.6, path=VarianceExploding(0.0, 80.0))
        tensor([1.6000])
    """
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma = {gamma}: expected a share of fresh noise between 0 and 1")
    if floor is not None and not floor >= 0:
        raise ConfigError(f"floor = {floor}: expected a noise ratio, not negative")
    if gamma == 0:
        return times
    least: Tensor | float = noise_ratio(torch.full_like(times, path.data_time), path=path) if floor is None else floor
    return time_at(math.sqrt(1 - gamma**2) * (noise_ratio(times, path=path) - least) + least, path=path)


@typed
def times_with_more_noise(times: Time, *, growth: float, path: Path, low: float = 0.0, high: float = math.inf) -> Time:
    """The times whose ratio is ``1 + growth`` times as large, where it lies in ``[low, high]``: EDM's churn.

    Args:
        times: where the state is, ``[batch]``.
        growth: not negative, 0 returns ``times``; EDM takes ``min(churn / steps, sqrt(2) - 1)``.
        path: gives ``alpha`` and ``sigma``.
        low: ratios below stay.
        high: ratios above stay.

    Raises:
        ConfigError: if ``growth`` is negative or ``low <= high`` does not hold.

    Source: Karras et al., Elucidating the Design Space, algorithm 2, https://arxiv.org/abs/2206.00364.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> times_with_more_noise(torch.tensor([80.0, 2.0]), growth=0.25, path=VarianceExploding(), high=50.0)
        tensor([80.0000,  2.5000])
    """
    if not growth >= 0 or not low <= high:
        raise ConfigError(
            f"growth = {growth} for ratios between {low} and {high}: expected no negative growth and low <= high"
        )
    if growth == 0:
        return times
    ratio = noise_ratio(times, path=path)
    active = (ratio >= low) & (ratio <= high) & ratio.isfinite()
    return torch.where(active, time_at((1 + growth) * ratio, path=path), times)
