"""Times: pure transforms of given draws, and thin samplers that draw.

Which times a network is trained at decides as much as the loss. A transform takes numbers that somebody drew
and returns times, so a released distribution can be reproduced draw by draw; a sampler draws with its own
``generator`` and applies the transform. Nothing else in the core draws.

Ranges belong to a path: a sampler that is given ``path=`` refuses at the call a range outside of it.
"""

import math
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import time_of_noise_ratio
from onestep_core.precision import frozen
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed

Device: TypeAlias = torch.device | str | None


class TimePair(NamedTuple):
    """Source and target times of a jump, each ``[batch]``."""

    t: Tensor
    s: Tensor


class Interval(NamedTuple):
    """Ends of a range of times, one range a sample, each ``[batch]``."""

    low: Tensor
    high: Tensor


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
        mean: of the normal.
        std: of the normal.
        low: smallest time, a number or ``[batch]``, in [0, 1).
        high: largest time, a number or ``[batch]``, in (0, 1].

    Raises:
        ConfigError: if the ends are numbers and ``0 <= low < high <= 1`` does not hold.

    Source: lumalabs/tvm, ``TVMLoss.sample_ts`` (mean -0.4, std 1; lengths logit-normal with mean -0.8, std 1).

    Example:
        >>> u = torch.tensor([0.0, 1.0])
        >>> truncated_logit_normal_times(u, mean=0.0, std=1.0, low=0.25, high=torch.tensor([0.5, 0.75]))
        tensor([0.2500, 0.7500])
    """
    fixed = [end for end in (low, high) if not isinstance(end, Tensor)]
    if not (all(0 <= end <= 1 for end in fixed) and (len(fixed) < 2 or fixed[0] < fixed[1])):
        raise ConfigError(f"a logit-normal between {low} and {high}: expected 0 <= low < high <= 1")
    ends = (end if isinstance(end, Tensor) else torch.full_like(uniform, end) for end in (low, high))
    special = cast(Any, torch.special)
    below, above = (special.ndtr((torch.logit(end) - mean) / std) for end in ends)
    return (mean + std * cast(Tensor, special.ndtri(below + uniform * (above - below)))).sigmoid()


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
def guidance_scales(
    uniform: Time, chance: Time, *, low: float = 1.0, high: float = 4.0, power: float = 3.0, plain: float = 0.0
) -> Time:
    """Guidance scales in training: 1 where ``chance < plain``, elsewhere :func:`power_law` of ``uniform``, ``[batch]``.

    A generator that takes the scale as an input is trained with one a class and update; most should be small, and some
    exactly 1, which is no guidance.

    Args:
        uniform: draws of the scale, from ``U(0, 1)``, ``[batch]``.
        chance: draws of whether there is guidance, from ``U(0, 1)``, ``[batch]``.
        low: smallest scale, positive; 1 is no guidance.
        high: largest scale.
        power: of the density ``alpha^-power``; 3 or 5 in the paper.
        plain: share of the scales that are 1; a half in the paper's largest model.

    Raises:
        ConfigError: if ``0 < low <= high`` or ``0 <= plain <= 1`` does not hold.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``train.py`` (``no_cfg_frac`` is the plain share).

    Example:
        >>> guidance_scales(torch.tensor([1.0, 1.0]), torch.tensor([0.3, 0.7]), plain=0.5).round(decimals=4)
        tensor([1., 4.])
    """
    if not 0 <= plain <= 1:
        raise ConfigError(f"plain = {plain}: expected a share between 0 and 1")
    return torch.where(chance < plain, 1.0, power_law(uniform, low=low, high=high, power=power))


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


@typed
def between(t: Time, s: Time, *, share: float | Time) -> Time:
    """``t + share (s - t)``: the middle time at a share of the jump, ``[batch]``; 0 is ``t``, 1 is ``s``.

    Example:
        >>> between(torch.tensor([1.0]), torch.tensor([0.5]), share=0.25)
        tensor([0.8750])
    """
    return t + share * (s - t)


@typed
def interval_around(
    below: Time, above: Time, *, middle: float = 0.5, everywhere: Bool[Tensor, "batch"] | None = None
) -> Interval:
    """``[middle u, middle + (1 - middle) u']``: a random interval of guidance around ``middle``, one a sample.

    Args:
        below: draws ``u ~ U(0, 1)``, ``[batch]``.
        above: draws ``u' ~ U(0, 1)``, ``[batch]``.
        middle: a time inside every interval, in [0, 1].
        everywhere: which samples get ``[0, 1]``, ``[batch]``, boolean; none by default.

    Raises:
        ConfigError: if ``middle`` is outside [0, 1].

    Source: Lyy-iiis/imeanflow, ``sample_cfg_interval``; there the pairs with ``s = t`` get ``[0, 1]``.

    Example:
        >>> interval_around(torch.tensor([0.5]), torch.tensor([0.5]))
        Interval(low=tensor([0.2500]), high=tensor([0.7500]))
    """
    if not 0 <= middle <= 1:
        raise ConfigError(f"middle = {middle}: expected a time between 0 and 1")
    low = uniform_times(below, low=0.0, high=middle)
    high = uniform_times(above, low=middle, high=1.0)
    if everywhere is None:
        return Interval(low, high)
    return Interval(torch.where(everywhere, 0.0, low), torch.where(everywhere, 1.0, high))


def log_steps(
    count: int, *, finest: int = 7, biased: bool = False, device: torch.device | str | None = None
) -> Int[Tensor, "batch"]:
    """The step sizes ``2^-k`` of a batch of shortcut jumps, as their ``k``, ``[count]``, integer, falling.

    Every ``k`` from ``finest - 1`` to 0 gets ``count // finest`` samples. With ``biased``, a quarter each has ``k = 1``
    and ``k = 0`` and the larger ``k`` get ``count // 2 // finest``. What is left has ``k = 0``, the whole jump.

    Args:
        count: how many jumps.
        finest: the ``k`` of an instantaneous velocity, at least 1 (2 with ``biased``); 7 for the released 128 steps.
        biased: more of the two longest jumps.
        device: of the result.

    Raises:
        ConfigError: if a count is negative or ``finest`` too small.

    Source: kvfrans/shortcut-models, ``targets_shortcut.py`` (``bootstrap_dt_bias``). There guidance enters at
    ``k = finest - 1`` alone, from where longer jumps inherit it.

    Example:
        >>> log_steps(7, finest=3)
        tensor([2, 2, 1, 1, 0, 0, 0])
    """
    if count < 0 or finest < 1 + biased:
        raise ConfigError(f"{count} jumps with finest = {finest}: expected a count and at least {1 + biased} halvings")
    if biased:
        levels = [k for k in range(finest - 1, 1, -1) for _ in range(count // 2 // finest)] + [1] * (count // 4)
    else:
        levels = [k for k in range(finest - 1, -1, -1) for _ in range(count // finest)]
    return torch.tensor(levels + [0] * (count - len(levels)), dtype=torch.int64, device=device)


@typed
def dyadic_times(uniform: Time, log_step: Int[Tensor, "batch"]) -> TimePair:
    """Jumps of length ``2^-k`` from the grid ``0, 2^-k, ..., 1 - 2^-k``: ``t = floor(2^k u) 2^-k``, ``s = t + 2^-k``.

    Time runs from noise at 0 to data at 1, as on ``reverse(Linear())``.

    Args:
        uniform: draws ``u`` in [0, 1), ``[batch]``.
        log_step: the ``k`` of each jump, ``[batch]``, integer.

    Source: Frans et al., One Step Diffusion via Shortcut Models, section 3, https://arxiv.org/abs/2410.12557.

    Example:
        >>> dyadic_times(torch.tensor([0.9, 0.9]), torch.tensor([0, 2]))
        TimePair(t=tensor([0.0000, 0.7500]), s=tensor([1., 1.]))
    """
    steps = torch.exp2(log_step.to(uniform.dtype))
    t = (uniform * steps).floor() / steps
    return TimePair(t, t + 1 / steps)


@typed
def keep_apart(t: Time, s: Time, *, gap: float) -> TimePair:
    """``t -> max(t, s + gap)``: sources that do not lie after their target by ``gap`` are moved there.

    For pairs whose target has a floor that lies above some sources. In float32 a gap below 1e-7 of ``s`` is none.

    Args:
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        gap: smallest ``t - s``, positive; 1e-6 in FastGen.

    Raises:
        ConfigError: if ``gap`` is not positive.

    Source: NVlabs/FastGen, ``CMModel.single_train_step``.

    Example:
        >>> keep_apart(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]), gap=0.25).t
        tensor([1.2500, 2.0000])
    """
    if not gap > 0:
        raise ConfigError(f"gap = {gap}: expected a positive duration")
    return TimePair(torch.maximum(t, s + gap), s)


@typed
def boundary_times(t: Time, mask: Bool[Tensor, "batch"], *, transition: float, margin: float = 1e-8) -> Time:
    """``transition + margin`` where ``mask`` holds: samples that learn where a second stage meets the first.

    Args:
        t: times of the second stage, ``[batch]``, from ``transition`` up.
        mask: which samples sit on the boundary, ``[batch]``, boolean; the released code takes
            ``int(batch * 0.25)`` at random.
        transition: where :func:`~onestep_core.flow.preconditioning.truncated` changes networks.
        margin: how far inside; in float32 the released 1e-8 is nothing beside times near 1, and the transition
            itself belongs to the second stage.

    Source: Lee et al., Truncated Consistency Models, section 3, https://arxiv.org/abs/2410.14895; NVlabs/FastGen,
    ``TCMModel.single_train_step``.

    Example:
        >>> boundary_times(torch.tensor([3.0, 5.0]), torch.tensor([True, False]), transition=1.0)
        tensor([1., 5.])
    """
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
        mean: of the logarithm.
        std: of the logarithm, positive.

    Returns:
        Indices from 0 to ``points - 2``, ``[batch]``.

    Raises:
        ConfigError: if there is no interval or ``std`` is not positive.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.5 and table 1,
    https://arxiv.org/abs/2310.14189 (there the grid increases).

    Example:
        >>> levels = torch.tensor([80.0, 1.0, 0.3, 0.002])
        >>> discretized_log_normal(torch.tensor([0.0, 0.35, 0.999]), levels)
        tensor([0, 1, 2])
    """
    if grid.shape[0] < 2 or not std > 0:
        raise ConfigError(f"a grid of {grid.shape[0]} levels, std = {std}: expected at least two and a positive std")
    below = cast(Tensor, cast(Any, torch.special).ndtr((grid.log() - mean) / std))
    passed = (below[0] - below) / (below[0] - below[-1])
    return (torch.searchsorted(passed, uniform.to(passed.dtype), right=True) - 1).clamp(0, grid.shape[0] - 2)


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


def sample_guidance_scales(
    count: int,
    *,
    low: float = 1.0,
    high: float = 4.0,
    power: float = 3.0,
    plain: float = 0.0,
    generator: torch.Generator | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``count`` scales by :func:`guidance_scales`. Otherwise as :func:`sample_uniform`.

    Raises:
        ConfigError: as :func:`guidance_scales`.

    Example:
        >>> bool((sample_guidance_scales(100) <= 4).all())
        True
    """
    uniform, chance = torch.rand(2, count, generator=generator, device=device, dtype=dtype)
    return guidance_scales(uniform, chance, low=low, high=high, power=power, plain=plain)


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
