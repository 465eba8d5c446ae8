"""Curricula: numbers that change while a network trains.

How fine a consistency model's grid is, how slowly its target follows, how close the two times of a pair are, how much
of a jump is flow matching: plain functions of the training step, which the caller counts. Integers in, numbers out;
:func:`ect_times` maps a tensor. A grid of ``N`` points has ``N - 1`` intervals, one of which is drawn for every sample.

A ramp is the course from one value to another as the progress goes from 0 to 1; :func:`annealed` gives it its start and
end in steps.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from onestep_core.errors import ConfigError
from onestep_core.precision import double, full
from onestep_core.typing import Time, typed
from onestep_core.validators import require_count, require_finite, require_not_negative, require_share


def _check_step(step: int, total: int | None = None) -> None:
    require_count("step", step)
    if total is not None:
        require_count("total", total, least=1)


@typed
def progressive_points(step: int, *, total: int, start: int = 2, end: int = 150) -> int:
    """``N(k) = max(ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1), 1) + 1``: grid points of consistency training.

    Args:
        step: ``k``, training steps so far.
        total: ``K``, of the whole training.
        start: ``s0``, points at the first step, at least 1.
        end: ``s1``, one less than the points at the last step, not below ``start``.

    Raises:
        ConfigError: if a number is out of range.

    Source: Song et al., Consistency Models, appendix C (schedule functions), https://arxiv.org/abs/2303.01469;
    openai/consistency_models, ``create_ema_and_scales_fn`` (``progressive``), which adds the lower bound.

    Example:
        >>> [progressive_points(k, total=1000) for k in (0, 500, 1000)]
        [2, 107, 151]
    """
    _check_step(step, total)
    if not 1 <= start <= end:
        raise ConfigError(f"grids from {start} to {end} points: expected 1 <= start <= end")
    root = math.sqrt(step / total * ((end + 1) ** 2 - start**2) + start**2)
    return max(math.ceil(root - 1), 1) + 1


@typed
def doubling_points(step: int, *, total: int, start: int = 10, end: int = 1280) -> int:
    """``N(k) = min(s0 2^floor(k / K'), s1) + 1`` with ``K' = floor(K / (log2(floor(s1 / s0)) + 1))``: points in iCT.

    Args:
        step: ``k``, training steps so far.
        total: ``K``, of the whole training; long enough for every doubling.
        start: ``s0``, intervals at the first step, at least 1.
        end: ``s1``, most intervals, not below ``start``.

    Raises:
        ConfigError: if a number is out of range.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.4 and table 1,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> [doubling_points(k, total=800) for k in (0, 100, 799, 10_000)]
        [11, 21, 1281, 1281]
    """
    _check_step(step, total)
    if not 1 <= start <= end:
        raise ConfigError(f"grids from {start} to {end} intervals: expected 1 <= start <= end")
    stages = math.log2(end // start) + 1
    each = math.floor(total / stages)
    if each < 1:
        raise ConfigError(f"{total} steps for {stages:g} stages from {start} to {end} intervals: expected at least one")
    return min(start * 2 ** (step // each), end) + 1


@typed
def student_steps_at(step: int, *, every: int, start: int) -> int:
    """``max(s0 // 2^floor(k / d), 2)``, then 2 for ``2 d`` steps, then 1: steps of a progressively distilled student.

    The stage with two steps begins after ``d (log2 s0 - 1)`` and lasts twice as long as the others.

    Args:
        step: ``k``, training steps so far.
        every: ``d``, training steps a stage.
        start: ``s0``, sampling steps of the first student, at least 1.

    Raises:
        ConfigError: if a number is out of range.

    Source: Salimans and Ho, Progressive Distillation, algorithm 2, https://arxiv.org/abs/2202.00512;
    openai/consistency_models, ``create_ema_and_scales_fn`` (``progdist``).

    Example:
        >>> [student_steps_at(k, every=10, start=8) for k in (0, 10, 20, 39, 40)]
        [8, 4, 2, 2, 1]
    """
    _check_step(step, every)
    require_count("start", start, least=1)
    halved = start // 2 ** (step // every)
    if halved > 2:
        return halved
    return 2 if step < every * (math.log2(start) + 1) else 1


@typed
def target_decay(count: int, *, start: int = 2, initial: float = 0.9) -> float:
    """``mu = exp(s0 log(mu0) / count)``: how slowly the target follows, given the size of the grid.

    The paper divides by the number of points, ``target_decay(N)``; the released code by the number of intervals,
    ``target_decay(N - 1)``, so that with its defaults it starts at ``mu0^2``. iCT and ECT have no average: ``mu = 0``.

    Args:
        count: points of the grid (paper) or intervals (released code), at least 1.
        start: ``s0`` of :func:`progressive_points`.
        initial: ``mu0``, in (0, 1).

    Raises:
        ConfigError: if a number is out of range.

    Source: Song et al., Consistency Models, appendix C (schedule functions), https://arxiv.org/abs/2303.01469;
    openai/consistency_models, ``create_ema_and_scales_fn`` (``adaptive``).

    Example:
        >>> round(target_decay(2), 10), round(target_decay(1), 10)
        (0.9, 0.81)
    """
    require_count("count", count, least=1)
    require_count("start", start, least=1)
    if not 0 < initial < 1:
        raise ConfigError(f"initial = {initial}: expected 0 < initial < 1")
    return math.exp(start * math.log(initial) / count)


@typed
def ect_ratio(stage: int, *, factor: float = 2.0) -> float:
    """``1 - factor^-(stage + 1)``: how near the second time of a pair comes to the first, stage by stage.

    Args:
        stage: from 0; the released code raises it every so many training steps.
        factor: ``q``, above 1; 2 by default in the released code.

    Raises:
        ConfigError: if ``stage`` is negative or ``factor`` is not above 1.

    Source: Geng et al., Consistency Models Made Easy, https://arxiv.org/abs/2406.14548; locuslab/ect, ``ECMLoss``.

    Example:
        >>> [ect_ratio(stage) for stage in range(3)]
        [0.5, 0.75, 0.875]
    """
    require_count("stage", stage)
    if not factor > 1:
        raise ConfigError(f"factor = {factor}: expected a number above 1")
    return 1 - factor ** -(stage + 1)


_LARGEST_ERROR = 1e-4
"""Largest relative error of the difference of two times, from their rounding."""


@typed
def ect_times(t: Time, *, ratio: float, amplitude: float = 8.0, steepness: float = 1.0, floor: float = 0.0) -> Time:
    """``max(t (1 - (1 - ratio) (1 + amplitude sigmoid(-steepness t))), floor)``: the second time of a pair.

    The gap to ``t`` grows with ``t`` and is relatively widest at small ``t``; at the first stages most pairs end at
    the floor. For variance-exploding time, in which the data lie at zero.

    Args:
        t: noise levels, ``[batch]``, positive.
        ratio: see :func:`ect_ratio`.
        amplitude: ``k``; 0 for the constant ratio (``adj="const"`` in the released code).
        steepness: ``b``.
        floor: smallest result: 0 in the released ECT code, where the target then is the data (``end=0.0`` of
            :func:`~onestep_core.objectives.consistency.consistency_regression`); 0.002 in FastGen, whose target is
            always an evaluation. With a floor, :func:`~onestep_core.flow.times.keep_apart` serves smaller ``t``.

    Raises:
        ConfigError: if ``ratio`` is outside [0, 1) or another number is negative; if ``1 - ratio`` is so small that the
            difference of the two times would be wrong by more than 1e-4 in the precision of ``t``.

    Source: Geng et al., Consistency Models Made Easy (mapping function), https://arxiv.org/abs/2406.14548;
    locuslab/ect, ``ECMLoss.t_to_r_sigmoid``; NVlabs/FastGen, ``CMModel.t_to_r_sigmoid``.

    Example:
        >>> import torch
        >>> ect_times(torch.tensor([1.0, 80.0]), ratio=0.5)
        tensor([ 0., 40.])
    """
    if not 0 <= ratio < 1 or min(amplitude, steepness, floor) < 0:
        raise ConfigError(
            f"ratio = {ratio}, amplitude = {amplitude}, steepness = {steepness}, floor = {floor}: expected "
            "0 <= ratio < 1 and no negative number"
        )
    rounding = torch.finfo(full(t).dtype).eps / 2
    if 1 - ratio < rounding / _LARGEST_ERROR:
        raise ConfigError(
            f"1 - ratio = {1 - ratio:.3g} with times of {t.dtype}: t - m would be rounded by up to "
            f"{rounding / (1 - ratio):.1%}; give the times in float64, or take a smaller ratio"
        )
    # Rounded once, at the end: the difference to t is what the loss is made of.
    t64 = double(t)
    gap = (1 - ratio) * (1 + amplitude * (-steepness * t64).sigmoid())
    return (t64 - t64 * gap).clamp(min=floor).to(full(t).dtype)


Ramp: TypeAlias = Callable[[float, float, float], float]
"""``(progress, initial, final) -> value`` with progress between 0 and 1."""


def linear_ramp(progress: float, initial: float, final: float) -> float:
    """``initial + (final - initial) f``.

    Example:
        >>> linear_ramp(0.25, 1.0, 0.0)
        0.75
    """
    require_share("progress", progress)
    return initial + (final - initial) * progress


def exponential_ramp(progress: float, initial: float, final: float, *, power: float = 1.0) -> float:
    """``initial (final / initial)^(f^power)``: equal ratios in equal times at ``power = 1``.

    SoFlow's released code shortens its first jump so, from 0.1 to 0.002 of the whole.

    Raises:
        ConfigError: if ``initial`` is zero, or ``final`` has the other sign. At ``final = 0`` the value drops at once.

    Example:
        >>> exponential_ramp(0.5, 4.0, 1.0)
        2.0
    """
    require_share("progress", progress)
    require_not_negative("power", power)
    if initial == 0 or final / initial < 0:
        raise ConfigError(f"an exponential from {initial} to {final}: expected numbers of one sign, the first not zero")
    return initial * (final / initial) ** (progress**power)


def logarithmic_ramp(progress: float, initial: float, final: float) -> float:
    """``initial + (final - initial) log10(1 + 9 f)``: fast first, slow later.

    Example:
        >>> logarithmic_ramp(1.0, 1.0, 0.0)
        0.0
    """
    require_share("progress", progress)
    return initial + (final - initial) * math.log10(1 + 9 * progress)


def sigmoid_ramp(progress: float, initial: float, final: float, *, steepness: float = 25.0) -> float:
    """``initial + (final - initial) sigmoid(steepness (f - 1/2))``: the ends are approached and not reached.

    Example:
        >>> sigmoid_ramp(0.5, 1.0, 0.0)
        0.5
    """
    require_share("progress", progress)
    require_finite("steepness", steepness)
    # The logistic function; its exponential would overflow for a large steepness.
    return initial + (final - initial) * (1 + math.tanh(steepness * (progress - 0.5) / 2)) / 2


def annealed(step: float, *, begin: float, end: float, initial: float, final: float, ramp: Ramp = linear_ramp) -> float:
    """``initial`` before ``begin``, ``final`` after ``end``, the ramp in between; a step where the two coincide.

    Args:
        step: position in the training, in any unit.
        begin: step at which the change begins.
        end: step at which it ends, not before ``begin``.
        initial: first value.
        final: last value.
        ramp: course from one value to the other.

    Raises:
        ConfigError: if a number is not finite, or ``end`` comes before ``begin``.

    Example:
        >>> [annealed(step, begin=100, end=200, initial=1.0, final=0.0) for step in (0, 150, 300)]
        [1.0, 0.5, 0.0]
    """
    numbers = {"step": step, "begin": begin, "end": end, "initial": initial, "final": final}
    for name, number in numbers.items():
        require_finite(name, number)
    if end < begin:
        raise ConfigError(f"a change from step {begin} to step {end}: expected an end that is not before the beginning")
    if step < begin:
        return initial
    if step > end or begin == end:
        return final
    return ramp((step - begin) / (end - begin), initial, final)


def alpha_schedule(
    step: float,
    *,
    begin: float,
    end: float,
    initial: float = 1.0,
    final: float = 0.0,
    ramp: Ramp = sigmoid_ramp,
    margin: float = 0.005,
    upper: float | None = None,
) -> float:
    """alpha-Flow's curriculum: from trajectory flow matching at 1 to MeanFlow at 0, :func:`annealed` and snapped.

    Args:
        step: position in the training.
        begin: step at which the change begins; 0 in the released recipe.
        end: step at which it ends; the length of the training there.
        initial: first value.
        final: last value.
        ramp: course from one value to the other.
        margin: values below it become 0, and values above ``1 - margin`` become 1.
        upper: values above it become 1 as well.

    Returns:
        ``alpha`` in [0, 1]; at exactly 0 call ``meanflow_regression`` in place of ``alpha_flow_regression``.

    Raises:
        ConfigError: if ``end`` comes before ``begin``.

    Source: Zhang et al., AlphaFlow, section on curriculum learning, https://arxiv.org/abs/2510.20771;
    snap-research/alphaflow, ``AlphaFlowLoss.get_ratio``.

    Example:
        >>> [round(alpha_schedule(step, begin=0, end=400), 3) for step in (0, 180, 220, 400)]
        [1.0, 0.777, 0.223, 0.0]
    """
    require_finite("step", step)
    require_share("margin", margin)
    if upper is not None:
        require_finite("upper", upper)
    value = annealed(step, begin=begin, end=end, initial=initial, final=final, ramp=ramp)
    if value < margin:
        return 0.0
    return 1.0 if value > 1 - margin or (upper is not None and value > upper) else value
