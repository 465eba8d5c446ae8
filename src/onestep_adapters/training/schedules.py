"""Schedules: numbers as functions of the updates made so far."""

import math
from collections.abc import Callable
from typing import TypeAlias

from onestep_core.errors import ConfigError
from onestep_core.validators import require_call

Schedule: TypeAlias = Callable[[int], float]
"""A number as a function of the updates made so far."""


def require_schedule(name: str, value: object) -> None:
    """Refuse what is no function of the number of updates made.

    Raises:
        ConfigError: for a number, for example.
    """
    if not callable(value):
        raise ConfigError(
            f"{name} = {value!r}: expected a function of the number of updates made, such as cosine_decay(1e-3, steps) "
            "or constant_decay(0.999)"
        )
    require_call(name, value, ("step",))


def scheduled(name: str, schedule: Schedule, step: int) -> float:
    """The number of a schedule at an update.

    Raises:
        ConfigError: if it is no number.
    """
    try:
        return float(schedule(step))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {name} of update {step} is no number ({error}): expected one") from error


def cosine_decay(peak: float, steps: int, warmup: int = 0) -> Schedule:
    """``peak (i + 1) / warmup`` for ``i < warmup``, then ``peak (1 + cos(pi (i - warmup) / (steps - warmup))) / 2``.

    Args:
        peak: largest learning rate, positive.
        steps: where the rate reaches 0; it stays there.
        warmup: updates of the linear rise, fewer than ``steps``.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> rate = cosine_decay(1.0, 12, warmup=2)
        >>> [rate(i) for i in (0, 1, 2, 7, 12)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if not (math.isfinite(peak) and peak > 0):
        raise ConfigError(f"peak = {peak!r}: expected a positive learning rate")
    if not 0 <= warmup < steps:
        raise ConfigError(f"warmup = {warmup} of {steps} steps: expected 0 <= warmup < steps")

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup)))) / 2

    return rate
