"""Steps of progressive distillation: how many the student has in each stage, and the times of one of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import double
from onestep_core.typing import typed
from onestep_core.validators import require_count


class StepTimes(NamedTuple):
    """A student's step from ``t`` to ``s`` and the middle time ``m`` at which its teacher stops; each ``[batch]``."""

    t: Tensor
    m: Tensor
    s: Tensor


@typed
def progressive_times(
    index: Int[Tensor, "batch"],
    steps: int,
    *,
    levels: Callable[[Tensor], Tensor],
    dtype: torch.dtype | None = None,
) -> StepTimes:
    """Times of step ``index`` of ``steps``, and the middle one: two steps of a grid with twice as many.

    Args:
        index: 0 for the step that starts at the noise, ``steps - 1`` for the one that ends at the data, ``[batch]``.
        steps: steps of the student, at least 1.
        levels: from a fraction, 0 at the noise and 1 at the data, to a time: :func:`uniform_levels` or
            :func:`karras_levels`, their numbers bound.
        dtype: type of the result.

    Returns:
        ``levels`` of ``i / N``, ``(i + 1/2) / N``, ``(i + 1) / N``.

    Raises:
        ConfigError: if there is no step.

    Source: Salimans and Ho, Progressive Distillation, algorithm 2 (uniform, indices from the data),
    https://arxiv.org/abs/2202.00512; openai/consistency_models, ``progdist_losses`` (Karras levels).

    Example:
        >>> from functools import partial
        >>> from onestep_core.flow import Linear, uniform_levels
        >>> progressive_times(torch.tensor([0, 1]), 2, levels=partial(uniform_levels, path=Linear()))
        StepTimes(t=tensor([1.0000, 0.5000]), m=tensor([0.7500, 0.2500]), s=tensor([0.5000, 0.0000]))
    """
    require_count("steps", steps, least=1)
    i = double(index)
    return StepTimes(*(levels((i + part) / steps).to(dtype or torch.get_default_dtype()) for part in (0.0, 0.5, 1.0)))


@typed
def halving_stages(teacher_steps: int, *, student_steps: int = 1) -> tuple[int, ...]:
    """Steps of the student in every stage of progressive distillation: each has half as many as its teacher.

    Args:
        teacher_steps: steps of the first teacher, ``student_steps`` times a power of two.
        student_steps: steps of the last student, at least 1.

    Raises:
        ConfigError: if halving ``teacher_steps`` does not arrive at ``student_steps``.

    Source: Salimans and Ho, Progressive Distillation, algorithm 2, https://arxiv.org/abs/2202.00512.

    Example:
        >>> halving_stages(16)
        (8, 4, 2, 1)
    """
    require_count("teacher_steps", teacher_steps)
    stages: list[int] = []
    steps = teacher_steps
    while student_steps >= 1 and steps > student_steps and steps % 2 == 0:
        steps //= 2
        stages.append(steps)
    if not stages or steps != student_steps:
        raise ConfigError(
            f"from {teacher_steps} steps to {student_steps} by halving: expected student_steps times 2, 4, 8, ..., "
            "with student_steps at least 1"
        )
    return tuple(stages)
