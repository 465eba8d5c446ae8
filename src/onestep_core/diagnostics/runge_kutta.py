"""Cooper and Verner's eighth-order Runge-Kutta rule, as the mean slope of one step: eleven evaluations."""

import math
from collections.abc import Callable

from torch import Tensor

_R = math.sqrt(21.0)
_STAGES: tuple[dict[int, float], ...] = (
    {},
    {0: 1 / 2},
    {0: 1 / 4, 1: 1 / 4},
    {0: 1 / 7, 1: -(7 + 3 * _R) / 98, 2: (21 + 5 * _R) / 49},
    {0: (11 + _R) / 84, 2: (18 + 4 * _R) / 63, 3: (21 - _R) / 252},
    {0: (5 + _R) / 48, 2: (9 + _R) / 36, 3: (-231 + 14 * _R) / 360, 4: (63 - 7 * _R) / 80},
    {
        0: (10 - _R) / 42,
        2: (-432 + 92 * _R) / 315,
        3: (633 - 145 * _R) / 90,
        4: (-504 + 115 * _R) / 70,
        5: (63 - 13 * _R) / 35,
    },
    {0: 1 / 14, 4: (14 - 3 * _R) / 126, 5: (13 - 3 * _R) / 63, 6: 1 / 9},
    {0: 1 / 32, 4: (91 - 21 * _R) / 576, 5: 11 / 72, 6: -(385 + 75 * _R) / 1152, 7: (63 + 13 * _R) / 128},
    {
        0: 1 / 14,
        4: 1 / 9,
        5: -(733 + 147 * _R) / 2205,
        6: (515 + 111 * _R) / 504,
        7: -(51 + 11 * _R) / 56,
        8: (132 + 28 * _R) / 245,
    },
    {
        4: (-42 + 7 * _R) / 18,
        5: (-18 + 28 * _R) / 45,
        6: -(273 + 53 * _R) / 72,
        7: (301 + 53 * _R) / 72,
        8: (28 - 28 * _R) / 45,
        9: (49 - 7 * _R) / 18,
    },
)
_NODES = tuple(sum(stage.values()) for stage in _STAGES)
_WEIGHTS = {0: 9 / 180, 7: 49 / 180, 8: 64 / 180, 9: 49 / 180, 10: 9 / 180}


def mean_slope(slope: Callable[[Tensor, Tensor], Tensor], y: Tensor, place: Tensor, step: Tensor) -> Tensor:
    """``(y(place + step) - y(place)) / step`` to eighth order; ``slope`` itself at ``step = 0``."""
    slopes: list[Tensor] = []
    moves: list[Tensor] = []
    for node, stage in zip(_NODES, _STAGES, strict=True):
        moved = y
        # By `alpha`: the forward derivative of a product with a number costs as much as all the rest.
        for index, factor in stage.items():
            moved = moved.add(moves[index], alpha=factor)
        slopes.append(slope(moved, place.add(step, alpha=node)))
        moves.append(step.unsqueeze(1) * slopes[-1])
    first, *others = _WEIGHTS.items()
    mean = first[1] * slopes[first[0]]
    for index, factor in others:
        mean = mean.add(slopes[index], alpha=factor)
    return mean
