"""The tangent of one value.

A value of the network and its tangent are two tensors. The tangent lies outside the value, so that it dies with its
last reader and not with autograd's saved copy of the value.

*Views.* Where a value is a view of another one, its tangent is the same view of the other's tangent. Then an operation
that writes into the value in place can write into the tangent in place, and all views see it. For this the tangent of
a viewed value has the strides of the value, and memory of its own (:func:`mirrored`).

*Rows.* With ``moving`` a tangent can hold the first rows of one axis alone; those left out are zero.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Cell:
    """The tangent of one value.

    Attributes:
        tangent: of the shape of the value, or, along ``axis``, of its first rows.
        axis: the axis along which rows are left out; ``None`` if the tangent is whole.
        aliased: whether a view may share its memory: then it is written in place, never replaced.
        owned: whether no tangent of an unrelated value shares its memory.
        part: the rows of the value that the tangent has, where an operation asked for them; no other tensor.
    """

    __slots__ = ("aliased", "axis", "owned", "part", "tangent")

    def __init__(
        self,
        tangent: Tensor,
        axis: int | None = None,
        *,
        aliased: bool = False,
        owned: bool = True,
        part: Tensor | None = None,
    ) -> None:
        self.tangent = tangent
        self.axis = axis
        self.aliased = aliased
        self.owned = owned
        self.part = part

    def put(self, tangent: Tensor, axis: int | None = None) -> None:
        """Replace the tangent after the value was written in place; ``axis`` as before if it is viewed."""
        if self.aliased:
            self.tangent.copy_(tangent)
        else:
            self.tangent, self.axis, self.owned, self.part = tangent, axis, False, None


def differentiable(value: Any) -> bool:
    """Whether the value is a tensor that can have a tangent."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def same_strides(tangent: Tensor, value: Tensor) -> bool:
    """Whether both are seen through the same strides; those of axes of length one say nothing."""
    first, second = tangent.stride(), value.stride()
    if first == second:
        return True
    return all(a == b or n <= 1 for a, b, n in zip(first, second, value.shape, strict=True))


def mirrored(value: Tensor, cell: Cell) -> Tensor:
    """The tangent, with the strides of the value and in memory of its own, so that it can be viewed like the value."""
    tangent = cell.tangent
    if cell.aliased or (cell.owned and same_strides(tangent, value)):
        return tangent
    extent = _extent(tangent.shape, value.stride())
    if extent is None:
        # Elements of the value share memory (it was expanded), so nothing can be written through it.
        fresh = tangent.contiguous()
    else:
        # Gaps between the elements, and rows left out, are zero.
        fresh = tangent.new_zeros(extent).as_strided(tangent.shape, value.stride())
        fresh.copy_(tangent)
    cell.tangent, cell.owned = fresh, True
    return fresh


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """How many elements of memory a tensor spans; ``None`` if two of its elements share one."""
    extent = 1
    for stride, count in sorted(zip(strides, shape, strict=True)):
        if count > 1:
            if stride < extent:
                return None
            extent += stride * (count - 1)
    return extent if math.prod(shape) else 0
