"""Curricula: numbers that change while a network trains.

How fine a consistency model's grid is, how slowly its target follows, how close the two times of a pair are: plain
functions of the training step, which the caller counts. Integers in, numbers out; :func:`ect_times` maps a tensor.

A grid of ``N`` points has ``N - 1`` intervals, one of which is drawn for every sample.
"""

import math

from onestep_core.errors import ConfigError
from onestep_core.typing import Time, typed


def _check_step(step: int, total: int | None = None) -> None:
    if step < 0 or (total is not None and not total > 0):
        of = "" if total is None else f" of {total}"
        raise ConfigError(f"step {step}{of}: expected a count from 0 and a positive total")


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


def halving_steps(step: int, *, every: int, start: int) -> int:
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
        >>> [halving_steps(k, every=10, start=8) for k in (0, 10, 20, 39, 40)]
        [8, 4, 2, 2, 1]
    """
    _check_step(step, every)
    if start < 1:
        raise ConfigError(f"a student of {start} steps: expected at least one")
    halved = start // 2 ** (step // every)
    if halved > 2:
        return halved
    return 2 if step < every * (math.log2(start) + 1) else 1


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
    if count < 1 or not 0 < initial < 1:
        raise ConfigError(f"count = {count}, initial = {initial}: expected count >= 1 and 0 < initial < 1")
    return math.exp(start * math.log(initial) / count)


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
    if stage < 0 or not factor > 1:
        raise ConfigError(f"stage = {stage}, factor = {factor}: expected a stage from 0 and a factor above 1")
    return 1 - factor ** -(stage + 1)


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
        ConfigError: if ``ratio`` is outside [0, 1) or another number is negative.

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
    gap = (1 - ratio) * (1 + amplitude * (-steepness * t).sigmoid())
    return (t - t * gap).clamp(min=floor)
