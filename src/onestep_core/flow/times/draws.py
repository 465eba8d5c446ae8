"""Draws of one time: pure transforms of given numbers, and thin samplers that draw.

Which times a network is trained at matters as much as the loss. A transform takes numbers that the caller drew and
returns times, so a published distribution can be reproduced draw by draw. A sampler draws with its own ``generator``
and applies the transform. Transforms are computed in float64, rounded once to the type of the given numbers, and stay
in their range.

A range of times belongs to a path: a sampler that is given ``path=`` refuses a range that lies outside of it.
"""

import math
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import double
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed
from onestep_core.validators import readable, require_count, require_finite, require_not_negative

Device: TypeAlias = torch.device | str | None


@typed
def uniform_times(uniform: Time, *, low: float = 0.0, high: float = 1.0) -> Time:
    """``low + (high - low) u`` from ``u ~ U(0, 1)``, ``[batch]``.

    Example:
        >>> uniform_times(torch.tensor([0.0, 0.5]), low=1.0, high=3.0)
        tensor([1., 2.])
    """
    _require_spread(low, high, 1.0)
    return _within(low + (high - low) * double(uniform), low, high, like=uniform)


@typed
def logit_normal_times(normal: Time, *, mean: float, std: float, low: float = 0.0, high: float = 1.0) -> Time:
    """``low + (high - low) sigmoid(mean + std n)`` from ``n ~ N(0, 1)``, ``[batch]``.

    Source: Esser et al., Scaling Rectified Flow Transformers, section 3.1, https://arxiv.org/abs/2403.03206.
    MeanFlow's released defaults: mean -0.4, std 1.0.

    Example:
        >>> logit_normal_times(torch.zeros(1), mean=0.0, std=1.0)
        tensor([0.5000])
    """
    require_finite("mean", mean)
    _require_spread(low, high, std)
    return _within(low + (high - low) * (mean + std * double(normal)).sigmoid(), low, high, like=normal)


@typed
def log_normal_times(normal: Time, *, mean: float, std: float) -> Time:
    """``exp(mean + std n)`` from ``n ~ N(0, 1)``: EDM's noise levels (mean -1.2, std 1.2), ``[batch]``.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> log_normal_times(torch.zeros(1), mean=0.0, std=1.2)
        tensor([1.])
    """
    require_finite("mean", mean)
    _require_spread(0.0, math.inf, std)
    return (mean + std * double(normal)).exp().to(normal.dtype)


@typed
def truncated_log_normal_times(uniform: Time, *, mean: float, std: float, low: float, high: float) -> Time:
    """A log-normal restricted to ``[low, high]``, by its inverse distribution function, ``[batch]``.

    ``exp(mean + std Phi^-1(Phi(a) + u (Phi(b) - Phi(a))))`` with ``a = (log low - mean) / std``,
    ``b = (log high - mean) / std`` and ``u ~ U(0, 1)``.

    Raises:
        ConfigError: if ``0 < low < high`` does not hold, or ``std`` is not positive.

    Source: NVlabs/FastGen, ``EDMNoiseSchedule.sample_t``.

    Example:
        >>> u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> truncated_log_normal_times(u, mean=-1.2, std=1.2, low=0.002, high=80.0)
        tensor([2.0000e-03, 8.0000e+01], dtype=torch.float64)
    """
    if not 0 < low < high:
        raise ConfigError(f"a log-normal between {low} and {high}: expected 0 < low < high")
    _require_spread(low, high, std)
    u = double(uniform)
    below, above = (torch.full_like(u, (math.log(end) - mean) / std) for end in (low, high))
    return _within((mean + std * _truncated_normal(u, below, above)).exp(), low, high, like=uniform)


@typed
def truncated_logit_normal_times(
    uniform: Time, *, mean: float, std: float, low: float | Time = 0.0, high: float | Time = 1.0
) -> Time:
    """A logit-normal restricted to ``[low, high]``, by its inverse distribution function, ``[batch]``.

    ``sigmoid(mean + std Phi^-1(Phi(a) + u (Phi(b) - Phi(a))))`` with ``a = (logit low - mean) / std``,
    ``b = (logit high - mean) / std`` and ``u ~ U(0, 1)``. The ends may differ from sample to sample: terminal velocity
    matching draws the length ``l`` of a jump first, then where it ends in ``[0, 1 - l]``.

    Args:
        uniform: draws ``u``, ``[batch]``.
        mean: mean of the normal.
        std: standard deviation of the normal.
        low: smallest time, a number or ``[batch]``, in [0, 1).
        high: largest time, a number or ``[batch]``, in (0, 1].

    Raises:
        ConfigError: if the ends are numbers and ``0 <= low < high <= 1`` does not hold, or ``std`` is not positive.

    Source: lumalabs/tvm, ``TVMLoss.sample_ts`` (mean -0.4, std 1; lengths logit-normal with mean -0.8, std 1).

    Example:
        >>> u = torch.tensor([0.0, 1.0])
        >>> truncated_logit_normal_times(u, mean=0.0, std=1.0, low=0.25, high=torch.tensor([0.5, 0.75]))
        tensor([0.2500, 0.7500])
    """
    fixed = [end for end in (low, high) if not isinstance(end, Tensor)]
    if not (all(0 <= end <= 1 for end in fixed) and (len(fixed) < 2 or fixed[0] < fixed[1])):
        raise ConfigError(f"a logit-normal between {low} and {high}: expected 0 <= low < high <= 1")
    _require_spread(0.0, 1.0, std)
    u = double(uniform)
    least, most = (double(end) if isinstance(end, Tensor) else torch.full_like(u, end) for end in (low, high))
    drawn = _truncated_normal(u, (least.logit() - mean) / std, (most.logit() - mean) / std)
    return _within((mean + std * drawn).sigmoid(), least, most, like=uniform)


_TAIL = 1e-290
"""Probabilities below are computed by their logarithms."""


def _truncated_normal(uniform: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Standard normal numbers restricted to ``[low, high]``; an upper tail is computed as the mirrored lower one."""
    special = cast(Any, torch.special)
    upper = low > 0
    # The exponential of log_ndtr: ndtr itself loses the lower tail, in float64 below -8.
    start, end = (cast(Tensor, special.log_ndtr(torch.where(upper, -x, x))).exp() for x in (low, high))
    drawn = cast(Tensor, special.ndtri(start + uniform * (end - start)))
    drawn = torch.where(torch.maximum(start, end) < _TAIL, _far_tail(uniform, low, high, upper), drawn)
    return torch.where(upper, -drawn, drawn)


def _far_tail(uniform: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> Tensor:
    """Numbers so far out that probabilities underflow: Newton's method for their logarithms."""
    log_ndtr = cast(Any, torch.special).log_ndtr
    ends = [log_ndtr(torch.where(upper, -x, x)) for x in (low, high)]
    wanted = torch.logaddexp(ends[0] + torch.log1p(-uniform), ends[1] + uniform.log())
    drawn = -(-2 * wanted).clamp(min=1.0).sqrt()
    for _ in range(5):
        logarithm = log_ndtr(drawn)
        slope = (-drawn.square() / 2 - math.log(2 * math.pi) / 2 - logarithm).exp()
        drawn = drawn + (wanted - logarithm) / slope
    return drawn


def _within(times: Tensor, low: float | Tensor, high: float | Tensor, *, like: Tensor) -> Tensor:
    """``times`` in the type of ``like`` and, after rounding, still in the range."""
    rounded = times.to(like.dtype)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        least, most = (torch.as_tensor(end).to(rounded) for end in (low, high))
        return torch.minimum(torch.maximum(rounded, least), most)
    return rounded.clamp(low, high)


def _require_spread(low: float, high: float, std: float) -> None:
    if not (low <= high and 0 < std < math.inf):
        raise ConfigError(f"times between {low} and {high}, std = {std}: expected low <= high and a positive std")


@typed
def boundary_times(t: Time, mask: Bool[Tensor, "batch"], *, transition: float, margin: float = 1e-8) -> Time:
    """``transition + margin`` where ``mask`` holds: samples that learn where a second stage meets the first.

    Args:
        t: times of the second stage, ``[batch]``, from ``transition`` up.
        mask: which samples sit on the boundary, ``[batch]``, boolean; the released code takes
            ``int(batch * 0.25)`` at random.
        transition: time at which :func:`~onestep_core.flow.preconditioning.truncated` changes networks.
        margin: distance from the transition; in float32 the released 1e-8 has no effect on times near 1; the transition
            itself belongs to the second stage.

    Source: Lee et al., Truncated Consistency Models, section 3, https://arxiv.org/abs/2410.14895; NVlabs/FastGen,
    ``TCMModel.single_train_step``.

    Example:
        >>> boundary_times(torch.tensor([3.0, 5.0]), torch.tensor([True, False]), transition=1.0)
        tensor([1., 5.])
    """
    require_finite("transition", transition)
    require_not_negative("margin", margin)
    return torch.where(mask, transition + margin, t)


@typed
def discretized_log_normal(
    uniform: Time, grid: Float[Tensor, "points"], *, mean: float = -1.1, std: float = 2.0
) -> Int[Tensor, "batch"]:
    """Intervals of a grid, each as likely as a log-normal makes it, from ``u ~ U(0, 1)``, ``[batch]``.

    Interval ``i`` lies between ``grid[i]`` and ``grid[i + 1]`` and has probability proportional to
    ``|erf(x_i) - erf(x_(i+1))|``, ``x = (log grid - mean) / (sqrt(2) std)``. The pair is ``t, m = grid[i],
    grid[i + 1]``.

    Args:
        uniform: draws, ``[batch]``.
        grid: positive noise levels from the noise to the data, ``[points]``, decreasing, at least two:
            ``karras_grid(n)[:-1]``.
        mean: mean of the logarithm.
        std: standard deviation of the logarithm, positive.

    Returns:
        Indices from 0 to ``points - 2``, ``[batch]``.

    Raises:
        ConfigError: if there is no interval, ``std`` is not positive, ``mean`` not finite, or the levels are not in
            order (on the CPU, outside of compiled functions and ``torch.func``).

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.5 and table 1,
    https://arxiv.org/abs/2310.14189 (there the grid increases).

    Example:
        >>> levels = torch.tensor([80.0, 1.0, 0.3, 0.002])
        >>> discretized_log_normal(torch.tensor([0.0, 0.35, 0.999]), levels)
        tensor([0, 1, 2])
    """
    require_finite("mean", mean)
    if grid.shape[0] < 2 or not 0 < std < math.inf:
        raise ConfigError(f"a grid of {grid.shape[0]} levels, std = {std}: expected at least two and a positive std")
    below = cast(Tensor, cast(Any, torch.special).ndtr((double(grid).log() - mean) / std))
    passed = (below[0] - below) / (below[0] - below[-1])
    if readable(passed) and not bool(passed.isfinite().all() and (passed.diff() >= 0).all()):
        raise ConfigError(
            f"a log-normal of mean {mean} and std {std} on the levels {_ends(grid)}: expected levels of zero or more "
            "that decrease, where the log-normal has a probability above zero"
        )
    return (torch.searchsorted(passed, double(uniform), right=True) - 1).clamp(0, grid.shape[0] - 2)


def _ends(grid: Tensor) -> str:
    values = [float(level) for level in grid]
    return str(values) if len(values) < 5 else f"{values[0]:g}, {values[1]:g}, ..., {values[-1]:g}"


def drawn_on(device: Device, generator: torch.Generator | None) -> Device:
    """The device of a draw: the given one, else the generator's, else torch's default."""
    return generator.device if device is None and generator is not None else device


def _checked(count: int, low: float, high: float, path: Path | None, dtype: torch.dtype | None) -> None:
    require_count("count", count)
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype = {dtype}: expected a floating-point type, as times have")
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


@typed
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
        count: number of times.
        low: smallest time.
        high: largest time.
        path: where given, the range must lie inside the path's.
        generator: source of randomness; torch's default one where ``None``.
        device: device of the result; the generator's where ``None``. Another than the generator's is torch's error.
        dtype: type of the result.

    Raises:
        ConfigError: if the range is empty or leaves the path's.

    Example:
        >>> sample_uniform(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    _checked(count, low, high, path, dtype)
    draw = torch.rand(count, generator=generator, device=drawn_on(device, generator), dtype=dtype)
    return uniform_times(draw, low=low, high=high)


@typed
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
    _checked(count, low, high, path, dtype)
    draw = torch.randn(count, generator=generator, device=drawn_on(device, generator), dtype=dtype)
    return logit_normal_times(draw, mean=mean, std=std, low=low, high=high)


@typed
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
    _checked(count, low, high, path, dtype)
    draw = torch.rand(count, generator=generator, device=drawn_on(device, generator), dtype=dtype)
    return truncated_log_normal_times(draw, mean=mean, std=std, low=low, high=high).clamp(low, high)
