"""Times: pure transforms of given draws, and thin samplers that draw.

Which times a network is trained at decides as much as the loss. A transform takes numbers that somebody drew
and returns times, so a released distribution can be reproduced draw by draw; a sampler draws with its own
``generator`` and applies the transform. Nothing else in the core draws.

Ranges belong to a path: a sampler that is given ``path=`` refuses at the call a range outside of it.
"""

import math
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.paths import time_of_noise_ratio
from onestep_core.precision import frozen
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed

Device: TypeAlias = torch.device | str | None


class TimePair(NamedTuple):
    """Source and target times of a jump, each ``[batch]``."""

    t: Tensor
    s: Tensor


@typed
def uniform_times(uniform: Time, *, low: float = 0.0, high: float = 1.0) -> Time:
    """``low + (high - low) u`` from ``u ~ U(0, 1)``, ``[batch]``.

    Example:
        >>> uniform_times(torch.tensor([0.0, 0.5]), low=1.0, high=3.0)
        tensor([1., 2.])
    """
    return low + (high - low) * uniform


@typed
def logit_normal_times(normal: Time, *, mean: float, std: float, low: float = 0.0, high: float = 1.0) -> Time:
    """``low + (high - low) sigmoid(mean + std n)`` from ``n ~ N(0, 1)``, ``[batch]``.

    Source: Esser et al., Scaling Rectified Flow Transformers, section 3.1, https://arxiv.org/abs/2403.03206.
    MeanFlow's released defaults: mean -0.4, std 1.0.

    Example:
        >>> logit_normal_times(torch.zeros(1), mean=0.0, std=1.0)
        tensor([0.5000])
    """
    return low + (high - low) * (mean + std * normal).sigmoid()


@typed
def log_normal_times(normal: Time, *, mean: float, std: float) -> Time:
    """``exp(mean + std n)`` from ``n ~ N(0, 1)``: EDM's noise levels (mean -1.2, std 1.2), ``[batch]``.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> log_normal_times(torch.zeros(1), mean=0.0, std=1.2)
        tensor([1.])
    """
    return (mean + std * normal).exp()


@typed
def truncated_log_normal_times(uniform: Time, *, mean: float, std: float, low: float, high: float) -> Time:
    """A log-normal restricted to ``[low, high]``, by its inverse distribution function, ``[batch]``.

    ``exp(mean + std Phi^-1(Phi(a) + u (Phi(b) - Phi(a))))`` with ``a = (log low - mean) / std``,
    ``b = (log high - mean) / std`` and ``u ~ U(0, 1)``.

    Raises:
        ConfigError: if ``0 < low < high`` does not hold.

    Source: NVlabs/FastGen, ``EDMNoiseSchedule.sample_t``.

    Example:
        >>> u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> truncated_log_normal_times(u, mean=-1.2, std=1.2, low=0.002, high=80.0)
        tensor([2.0000e-03, 8.0000e+01], dtype=torch.float64)
    """
    if not 0 < low < high:
        raise ConfigError(f"a log-normal between {low} and {high}: expected 0 < low < high")
    below, above = (_normal_distribution((math.log(end) - mean) / std) for end in (low, high))
    quantile = cast(Tensor, cast(Any, torch.special).ndtri(below + uniform * (above - below)))
    return (mean + std * quantile).exp()


def _normal_distribution(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@typed
def power_law(uniform: Time, *, low: float, high: float, power: float) -> Time:
    """Numbers in ``[low, high]`` with density proportional to ``x^-power``, from ``u ~ U(0, 1)``, ``[batch]``.

    ``(low^q + u (high^q - low^q))^(1/q)`` with ``q = 1 - power``; ``low (high / low)^u`` at ``power = 1``.
    Drifting models draw their guidance scales from it.

    Raises:
        ConfigError: if ``0 < low <= high`` does not hold.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``train.py`` (low 1, high 4, power 1 by default, 5 in the released configuration).

    Example:
        >>> power_law(torch.tensor([0.0, 1.0]), low=1.0, high=4.0, power=3.0).round(decimals=4)
        tensor([1., 4.])
    """
    if not 0 < low <= high:
        raise ConfigError(f"a power law between {low} and {high}: expected 0 < low <= high")
    q = 1 - power
    if abs(q) < 1e-6:
        return low * (high / low) ** uniform
    return (low**q + uniform * (high**q - low**q)) ** (1 / q)


@typed
def ordered(t: Time, s: Time) -> TimePair:
    """The later of two times as the source, the earlier as the target: for paths with the noise at the end.

    Example:
        >>> ordered(torch.tensor([0.2]), torch.tensor([0.7]))
        TimePair(t=tensor([0.7000]), s=tensor([0.2000]))
    """
    return TimePair(torch.maximum(t, s), torch.minimum(t, s))


@typed
def not_after(t: Time, s: Time) -> TimePair:
    """``s -> min(s, t)``: targets that lie after their source are moved onto it.

    The released PyTorch MeanFlow (``v1``) makes its pairs so; more of them end with ``s = t`` than were asked for.

    Example:
        >>> not_after(torch.tensor([0.2]), torch.tensor([0.7]))
        TimePair(t=tensor([0.2000]), s=tensor([0.2000]))
    """
    return TimePair(t, torch.minimum(t, s))


@typed
def stay_where(t: Time, s: Time, mask: Bool[Tensor, "batch"]) -> TimePair:
    """``s -> t`` where ``mask`` holds: pairs on which an average velocity is an instantaneous one.

    Args:
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        mask: which pairs stay, ``[batch]``, boolean.

    Example:
        >>> stay_where(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2]), torch.tensor([True, False])).s
        tensor([0.9000, 0.2000])
    """
    return TimePair(t, torch.where(mask, t, s))


@typed
def limit_duration(t: Time, s: Time, *, longest: float) -> TimePair:
    """``s -> t - clip(t - s, 0, longest)``: jumps backwards in time of bounded length.

    FastGen's MeanFlow limits the factor of its derivative to 0.999, the released JAX code to 1.

    Raises:
        ConfigError: if ``longest`` is negative.

    Example:
        >>> limit_duration(torch.tensor([1.0]), torch.tensor([0.0]), longest=0.75).s
        tensor([0.2500])
    """
    if longest < 0:
        raise ConfigError(f"longest = {longest}: expected a duration, not negative")
    return TimePair(t, t - (t - s).clamp(0.0, longest))


def _checked(low: float, high: float, path: Path | None) -> None:
    if not low <= high:
        raise ConfigError(f"times between {low} and {high}: expected low <= high")
    if path is None:
        return
    first, last = sorted((path.data_time, path.noise_time))
    if low < first or high > last:
        raise ConfigError(
            f"times between {low} and {high} leave the path's range [{first}, {last}]: "
            "narrow the draw or choose another path"
        )


def sample_uniform(
    count: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    path: Path | None = None,
    generator: torch.Generator | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``count`` times from ``U(low, high)``.

    Args:
        count: how many.
        low: smallest time.
        high: largest time.
        path: where given, the range must lie inside the path's.
        generator: source of randomness; torch's default one where ``None``.
        device: of the result; must be the generator's.
        dtype: of the result.

    Raises:
        ConfigError: if the range is empty or leaves the path's.

    Example:
        >>> sample_uniform(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    _checked(low, high, path)
    draw = torch.rand(count, generator=generator, device=device, dtype=dtype)
    return uniform_times(draw, low=low, high=high)


def sample_logit_normal(
    count: int,
    *,
    mean: float = -0.4,
    std: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    path: Path | None = None,
    generator: torch.Generator | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``count`` times by :func:`logit_normal_times`. Arguments and errors as :func:`sample_uniform`.

    Example:
        >>> bool((sample_logit_normal(100) < 1).all())
        True
    """
    _checked(low, high, path)
    draw = torch.randn(count, generator=generator, device=device, dtype=dtype)
    return logit_normal_times(draw, mean=mean, std=std, low=low, high=high)


def sample_log_normal(
    count: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.002,
    high: float = 80.0,
    path: Path | None = None,
    generator: torch.Generator | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``count`` noise levels by :func:`truncated_log_normal_times`. Otherwise as :func:`sample_uniform`.

    Example:
        >>> bool((sample_log_normal(100) <= 80).all())
        True
    """
    _checked(low, high, path)
    draw = torch.rand(count, generator=generator, device=device, dtype=dtype)
    return truncated_log_normal_times(draw, mean=mean, std=std, low=low, high=high).clamp(low, high)


@typed
def lower_noise_ratio(t: Time, s: Time, *, path: Path, decrement: float) -> Time:
    """The time whose ``sigma / alpha`` is that of ``t`` less ``decrement``, not beyond ``s``: ``[batch]``.

    The middle time of inductive moment matching, ``r(s, t) = max(s, eta^-1(eta(t) - decrement))``: a constant step in
    the noise-to-signal ratio ``eta``, so that steps in time are short near the data and near the noise. It equals
    ``s`` for the last one, and ``t`` itself where the decrement is below the resolution of the times.

    Args:
        t: source times, ``[batch]``.
        s: target times, ``[batch]``, nearer to the data.
        path: gives ``alpha`` and ``sigma``; finite ends. The paper's ``eta`` is that of the path without
            :class:`~onestep_core.flow.NoiseScaled`.
        decrement: positive. The paper takes ``(eta_max - eta_min) / 2^k``: 160, 0 and 15 on CIFAR-10.

    Raises:
        ConfigError: if ``decrement`` is not positive, or an end of the path is infinite.

    Source: Zhou et al., Inductive Moment Matching, section 4, https://arxiv.org/abs/2503.07565.

    Example:
        >>> from onestep_core.flow import Linear
        >>> t, s = torch.tensor([0.75, 0.75]), torch.tensor([0.0, 0.7])
        >>> lower_noise_ratio(t, s, path=Linear(), decrement=2.0)
        tensor([0.5000, 0.7000])
    """
    if not decrement > 0:
        raise ConfigError(f"decrement = {decrement}: expected a positive step of sigma / alpha")
    t, s = frozen(t), frozen(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (path.coefficients(time) for time in (t, s))
    ratio = sigma_t / alpha_t - decrement
    middle = time_of_noise_ratio(ratio.clamp(min=0.0), path=path)
    return torch.where(sigma_s / alpha_s >= ratio, s, middle)
