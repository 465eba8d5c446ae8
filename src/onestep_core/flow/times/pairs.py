"""Pairs of times: the source and the target of a jump, and the time between them.

All are pure functions of times that the caller drew.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import time_of_noise_ratio
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed
from onestep_core.validators import require_count, require_positive, require_share


class TimePair(NamedTuple):
    """Source and target times of a jump, each ``[batch]``."""

    t: Tensor
    s: Tensor


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

    The released PyTorch MeanFlow (``v1``) makes its pairs this way; more of them have ``s = t`` than its option says.

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
    require_positive("longest", longest)
    if longest < 0:
        raise ConfigError(f"longest = {longest}: expected a duration, not negative")
    return TimePair(t, t - (t - s).clamp(0.0, longest))


@typed
def time_between(t: Time, s: Time, *, share: float | Time) -> Time:
    """``t + share (s - t)``: the middle time at a share of the jump, ``[batch]``; 0 is ``t``, 1 is ``s``.

    In at least float32: times in half precision are near 1 so far apart that a small share of a jump would be none. The
    objectives step to the time that they are given, and hand it to networks in the type of ``t``.

    Example:
        >>> time_between(torch.tensor([1.0]), torch.tensor([0.5]), share=0.25)
        tensor([0.8750])
    """
    require_share("share", share)
    start = full(t)
    return start + share * (full(s) - start)


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
def log_steps(
    count: int, *, finest: int = 7, biased: bool = False, device: torch.device | str | None = None
) -> Int[Tensor, "batch"]:
    """The step sizes ``2^-k`` of a batch of shortcut jumps, as their ``k``, ``[count]``, integer, falling.

    Every ``k`` from ``finest - 1`` to 0 gets ``count // finest`` samples. With ``biased``, a quarter each has ``k = 1``
    and ``k = 0`` and the larger ``k`` get ``count // 2 // finest``. What is left has ``k = 0``, the whole jump.

    Args:
        count: number of jumps.
        finest: the ``k`` of an instantaneous velocity, at least 1 (2 with ``biased``); 7 for the released 128 steps.
        biased: more of the two longest jumps.
        device: device of the result.

    Raises:
        ConfigError: if a count is negative or ``finest`` too small.

    Source: kvfrans/shortcut-models, ``targets_shortcut.py`` (``bootstrap_dt_bias``). There guidance enters at
    ``k = finest - 1`` alone, from where longer jumps inherit it.

    Example:
        >>> log_steps(7, finest=3)
        tensor([2, 2, 1, 1, 0, 0, 0])
    """
    require_count("count", count)
    require_count("finest", finest, least=1 + biased)
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
    t, s = without_gradient(t), without_gradient(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (path.coefficients(time) for time in (t, s))
    ratio = sigma_t / alpha_t - decrement
    middle = time_of_noise_ratio(ratio.clamp(min=0.0), path=path)
    return torch.where(sigma_s / alpha_s >= ratio, s, middle)
