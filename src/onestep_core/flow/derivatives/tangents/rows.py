"""Which rows an operation keeps apart.

A tangent may hold the first rows of one axis alone. Each plan here says, for one kind of operation, whether the first
rows of its value depend on the first rows of its arguments alone; then the rule is given those rows of everything.
Elsewhere the tangent is filled up with zeros, and the operation goes on with all rows: slower, never wrong.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from onestep_core.flow.derivatives.tangents.cells import Cell
from onestep_core.flow.derivatives.tangents.rules import FirstRows


def first_rows(cell: Any) -> tuple[int, int]:
    """The axis along which a tangent has rows left out, and how many it has."""
    return cell.axis, cell.tangent.shape[cell.axis]


def cut(value: Tensor, cell: Any, axis: int, count: int) -> Tensor:
    """The first rows of a value along an axis; with a tangent that leaves rows out there, they are cut once."""
    if cell is None or cell.axis is None:
        return value.narrow(axis, 0, count)
    part = cell.part
    if part is None:
        part = cell.part = value.narrow(axis, 0, count)
    return part


def aligned(cells: Sequence[Any], arguments: Sequence[Any]) -> tuple[int, int, int] | None:
    """The axis that all tangents share, counted from the last, how many rows they have there, and the values."""
    found: tuple[int, int, int] | None = None
    for cell, argument in zip(cells, arguments, strict=True):
        if cell is None:
            continue
        if not isinstance(cell, Cell) or cell.axis is None:
            return None
        this = (cell.axis - argument.dim(), cell.tangent.shape[cell.axis], argument.shape[cell.axis])
        if found is not None and this != found:
            return None
        found = this
    return found


def elementwise(
    value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any, *, behind: int = 0
) -> FirstRows | None:
    """Operations that broadcast: every argument as long as the axis is cut, whatever it is.

    Args:
        value: what the operation returned.
        arguments: its arguments.
        cells: their tangents.
        keywords: its keyword arguments.
        behind: how many of the last axes are mixed.
    """
    found = aligned(cells, arguments)
    if found is None:
        return None
    back, count, total = found
    axis = value.dim() + back
    if back >= -behind or axis < 0 or value.shape[back] != total:
        return None
    first: list[Any] = []
    for x, cell in zip(arguments, cells, strict=True):
        if cell is not None or (isinstance(x, Tensor) and x.dim() >= -back and x.shape[back] == total):
            x = cut(x, cell, back, count)
        first.append(x)
    return FirstRows(value.narrow(axis, 0, count), first, axis)


def products(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """Products of matrices ``a @ b``: batches are independent, and so are the rows of ``a`` if ``b`` is constant."""
    a, b = arguments[0], arguments[1]
    if cells[1] is None and b.dim() <= 2:
        return leading(1)(value, arguments, cells, keywords)
    if a.dim() < 3 and b.dim() < 3:
        return None
    return elementwise(value, arguments, cells, keywords, behind=2)


def leading(mixed: int | Callable[[Sequence[Any]], int], *, linear: bool = False) -> Callable[..., FirstRows | None]:
    """Operations on the last axes of their first argument, the only one with a tangent; ``mixed`` of them.

    The rule of a ``linear`` one does not look at that argument.
    """

    def plan(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
        cell = cells[0]
        if not isinstance(cell, Cell) or cell.axis is None or any(other is not None for other in cells[1:]):
            return None
        count = mixed if isinstance(mixed, int) else mixed(arguments)
        axis = cell.axis
        if axis >= arguments[0].dim() - count:
            return None
        rows, total = cell.tangent.shape[axis], arguments[0].shape[axis]

        def first(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(first(part) for part in x)
            return x.narrow(axis, 0, rows) if isinstance(x, Tensor) and x.dim() > axis and x.shape[axis] == total else x

        given = arguments if linear else [cut(arguments[0], cell, axis, rows), *arguments[1:]]
        return FirstRows(first(value), given, axis)

    return plan


def batches(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """Operations on ``[batch, channel, *space]`` that keep the samples apart, such as convolutions."""
    cell = cells[0]
    if not isinstance(cell, Cell) or cell.axis != 0 or arguments[0].dim() < 3:
        return None
    return leading(arguments[0].dim() - 1)(value, arguments, cells, keywords)


def along(dimension: Callable[[Sequence[Any]], int]) -> Callable[..., FirstRows | None]:
    """Operations along one axis of their first argument, such as a softmax."""

    def plan(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
        cell = cells[0]
        if not isinstance(cell, Cell) or cell.axis is None or cell.axis == dimension(arguments) % arguments[0].dim():
            return None
        return leading(0)(value, arguments, cells, keywords)

    return plan


def attention(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """Attention ``[batch, head, token, channel]``: the samples are independent."""
    found = aligned(cells, arguments)
    if found is None or found[0] != -4:
        return None
    _, count, total = found

    def first(x: Any, cell: Any = None) -> Any:
        if isinstance(x, tuple):
            return tuple(first(part) for part in x)
        return cut(x, cell, 0, count) if isinstance(x, Tensor) and x.dim() in (3, 4) and len(x) == total else x

    return FirstRows(first(value), [first(x, cell) for x, cell in zip(arguments, cells, strict=True)], 0)


def reshaped(before: Sequence[int], after: Sequence[int], axis: int, count: int) -> tuple[list[int], int] | None:
    """The shape that the first ``count`` rows have after a reshape, and their axis; ``None`` if they are no rows."""
    total, outer = before[axis], math.prod(before[:axis])
    here = 1
    for k, size in enumerate(after):
        if here == outer and size == total and math.prod(after[k + 1 :]) == math.prod(before[axis + 1 :]):
            return [*after[:k], count, *after[k + 1 :]], k
        here *= size
    if outer != 1 or not after:
        return None
    # All axes before are of length one: the first rows are the first part of the memory.
    lead = next((k for k, size in enumerate(after) if size != 1), None)
    if lead is None:
        return None
    moving, row = count * math.prod(before[axis + 1 :]), math.prod(after[lead + 1 :])
    if row == 0 or moving % row:
        return None
    return [*after[:lead], moving // row, *after[lead + 1 :]], lead
