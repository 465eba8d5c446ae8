"""Curricula: numbers that change while training proceeds.

A curriculum is a pure function of the step; the caller counts steps and passes the number on. A ramp says how one
value turns into another as the progress goes from 0 to 1; :func:`annealed` places it in time.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

from onestep_core.errors import ConfigError

# ----------------------------------------------------------------------- Ramps, and alpha-Flow's schedule made of them

Ramp: TypeAlias = Callable[[float, float, float], float]
"""``(progress, initial, final) -> value`` with progress between 0 and 1."""


def linear_ramp(progress: float, initial: float, final: float) -> float:
    """``initial + (final - initial) f``.

    Example:
        >>> linear_ramp(0.25, 1.0, 0.0)
        0.75
    """
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
    if initial == 0 or final / initial < 0:
        raise ConfigError(f"an exponential from {initial} to {final}: expected numbers of one sign, the first not zero")
    return initial * (final / initial) ** (progress**power)


def logarithmic_ramp(progress: float, initial: float, final: float) -> float:
    """``initial + (final - initial) log10(1 + 9 f)``: fast first, slow later.

    Example:
        >>> logarithmic_ramp(1.0, 1.0, 0.0)
        0.0
    """
    return initial + (final - initial) * math.log10(1 + 9 * progress)


def sigmoid_ramp(progress: float, initial: float, final: float, *, steepness: float = 25.0) -> float:
    """``initial + (final - initial) sigmoid(steepness (f - 1/2))``: the ends are approached and not reached.

    Example:
        >>> sigmoid_ramp(0.5, 1.0, 0.0)
        0.5
    """
    return initial + (final - initial) / (1 + math.exp(-steepness * (progress - 0.5)))


def annealed(step: float, *, begin: float, end: float, initial: float, final: float, ramp: Ramp = linear_ramp) -> float:
    """``initial`` before ``begin``, ``final`` after ``end``, the ramp in between; a step where the two coincide.

    Args:
        step: where training is, in any unit.
        begin: where the change begins.
        end: where it ends, not before ``begin``.
        initial: first value.
        final: last value.
        ramp: how the one turns into the other.

    Raises:
        ConfigError: if ``end`` comes before ``begin``.

    Example:
        >>> [annealed(step, begin=100, end=200, initial=1.0, final=0.0) for step in (0, 150, 300)]
        [1.0, 0.5, 0.0]
    """
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
        step: where training is.
        begin: where the change begins; 0 in the released recipe.
        end: where it ends; the length of the training there.
        initial: first value.
        final: last value.
        ramp: how the one turns into the other.
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
    value = annealed(step, begin=begin, end=end, initial=initial, final=final, ramp=ramp)
    if value < margin:
        return 0.0
    return 1.0 if value > 1 - margin or (upper is not None and value > upper) else value
