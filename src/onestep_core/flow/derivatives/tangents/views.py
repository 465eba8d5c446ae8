"""Tangents through what changes how a tensor is seen, or only copies: the same change of the tangent."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onestep_core.flow.derivatives.tangents.cells import Cell
from onestep_core.flow.derivatives.tangents.rows import first_rows, reshaped
from onestep_core.flow.derivatives.tangents.rules import FirstRows, function_rule, operation_rule

aten: Any = torch.ops.aten


def _same(function: Any) -> Callable[..., Any]:
    """The tangent of a function that is linear in its first argument, the only one with a tangent: the function."""

    def tangent(value: Any, arguments: Any, tangents: Any, **keywords: Any) -> Any:
        return function(tangents[0], *arguments[1:], **keywords)

    return tangent


def _reshape_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    axis, count = first_rows(cells[0])
    found = reshaped(arguments[0].shape, value.shape, axis, count)
    if found is None:
        return None
    shape, axis = found
    return FirstRows(value.narrow(axis, 0, shape[axis]), arguments, axis)


def _reshape(value: Tensor, arguments: Any, tangents: Any, **keywords: Any) -> Any:
    # By the value's shape: an argument of -1, or a shape taken from elsewhere, says the same of both.
    return tangents[0].reshape(value.shape)


operation_rule(
    aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.reshape.default,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    rows=_reshape_rows, views=True, complex=True,
)(_reshape)  # fmt: skip


function_rule(
    Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.unflatten, Tensor.unsqueeze, torch.unsqueeze,
    Tensor.squeeze, torch.squeeze, Tensor.reshape_as, Tensor.view_as,
    rows=_reshape_rows, views=True, complex=True,
)(_reshape)  # fmt: skip
# `x.view(dtype)` reads the bits as other numbers: that is no rule of this kind.
function_rule(
    Tensor.view, rows=_reshape_rows, views=True, complex=True,
    when=lambda arguments: not isinstance(arguments[1], torch.dtype) if len(arguments) > 1 else True,
)(_reshape)  # fmt: skip


def _moved(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], order: Sequence[int]) -> FirstRows | None:
    axis, count = first_rows(cells[0])
    axis = list(order).index(axis)
    return FirstRows(value.narrow(axis, 0, count), arguments, axis)


def _permute_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    if keywords or len(arguments) < 2:
        return None
    order = arguments[1] if isinstance(arguments[1], tuple | list | torch.Size) else arguments[1:]
    return _moved(value, arguments, cells, [axis % value.dim() for axis in order])


def _transpose_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    if keywords:
        return None
    order = list(range(value.dim()))
    first, second = (arguments[1:3]) if len(arguments) > 1 else (-1, -2)
    if value.dim() > 1:
        order[first], order[second] = order[second], order[first]
    return _moved(value, arguments, cells, order)


def _through(function: Any, *keys: Any, operations: Sequence[Any] = (), rows: Any = None, views: bool = True) -> None:
    rule = _same(function)
    operation_rule(*operations, rows=rows, views=views, complex=True)(rule)
    function_rule(*keys, rows=rows, views=views, complex=True)(rule)


_through(Tensor.permute, Tensor.permute, torch.permute, operations=[aten.permute.default], rows=_permute_rows)
_through(
    torch.transpose, Tensor.transpose, torch.transpose, torch.swapaxes, Tensor.swapaxes,
    operations=[aten.transpose.int], rows=_transpose_rows,
)  # fmt: skip
_through(torch.t, Tensor.t, torch.t, operations=[aten.t.default], rows=_transpose_rows)
# The getters of the properties `mT` and `T`.
_through(lambda x: x.mT, Tensor.mT.__get__, rows=_transpose_rows)
_through(lambda x: x.T, Tensor.T.__get__)


def _axis_rows(position: int, removes: bool) -> Callable[..., FirstRows | None]:
    """Functions that choose along one axis, given at ``position``; ``removes`` it or not."""

    def plan(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
        axis, count = first_rows(cells[0])
        if any(other is not None for other in cells[1:]):
            return None
        chosen = arguments[position] if len(arguments) > position else keywords.get("dim", 0)
        if not isinstance(chosen, int):
            return None
        chosen %= arguments[0].dim()
        if chosen == axis:
            return None
        axis -= removes and chosen < axis
        cut = [part.narrow(axis, 0, count) for part in value] if isinstance(value, tuple | list) else None
        return FirstRows(value.narrow(axis, 0, count) if cut is None else tuple(cut), arguments, axis)

    return plan


def _chosen(function: Any, keys: Sequence[Any], operations: Sequence[Any], *, position: int, removes: bool) -> None:
    plan = _axis_rows(position, removes)

    def tangent(value: Any, arguments: Any, tangents: Any, *, dim: int | None = None) -> Any:
        return function(tangents[0], *arguments[1:]) if dim is None else function(tangents[0], *arguments[1:], dim=dim)

    operation_rule(*operations, rows=plan, views=True, complex=True)(tangent)
    function_rule(*keys, rows=plan, views=True, complex=True)(tangent)


_chosen(torch.chunk, [Tensor.chunk, torch.chunk], [], position=2, removes=False)
_chosen(torch.split, [Tensor.split, torch.split], [aten.split.Tensor, aten.split_with_sizes.default],
        position=2, removes=False)  # fmt: skip
_chosen(torch.unbind, [Tensor.unbind, torch.unbind], [aten.unbind.int], position=1, removes=True)
_chosen(torch.select, [Tensor.select, torch.select], [aten.select.int], position=1, removes=True)
_chosen(torch.narrow, [Tensor.narrow, torch.narrow], [], position=1, removes=False)
_chosen(aten.slice.Tensor, [], [aten.slice.Tensor], position=1, removes=False)


def _index_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """``x[index]`` with numbers, slices, ``None`` and ``...``: rows are kept if their axis is taken whole."""
    cell, index = cells[0], arguments[1]
    if not isinstance(cell, Cell) or cell.axis is None:
        return None
    index = list(index) if isinstance(index, tuple) else [index]
    if any(not (part is None or part is Ellipsis or isinstance(part, slice | int)) for part in index):
        return None
    if any(isinstance(part, bool) for part in index):
        return None
    used = sum(part is not None and part is not Ellipsis for part in index)
    rest = arguments[0].dim() - used
    place = next((k for k, part in enumerate(index) if part is Ellipsis), len(index))
    index[place : place + 1] = [slice(None)] * rest
    axis = out = 0
    for part in index:
        if part is None:
            out += 1
            continue
        if axis == cell.axis:
            if part != slice(None):
                return None
            return FirstRows(value.narrow(out, 0, cell.tangent.shape[cell.axis]), arguments, out)
        axis, out = axis + 1, out + isinstance(part, slice)
    return None


@function_rule(Tensor.__getitem__, count=2, rows=_index_rows, views=True, complex=True)
def _index(value: Any, arguments: Any, tangents: Any) -> Any:
    return tangents[0][arguments[1]]


def _expand_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    axis, count = first_rows(cells[0])
    axis += value.dim() - arguments[0].dim()
    return FirstRows(value.narrow(axis, 0, count), arguments, axis)


@operation_rule(aten.expand.default, rows=_expand_rows, views=True, complex=True)
@function_rule(
    Tensor.expand, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to,
    rows=_expand_rows, views=True, complex=True,
)  # fmt: skip
def _expand(value: Tensor, arguments: Any, tangents: Any, *, implicit: bool = False) -> Any:
    return tangents[0].expand(value.shape)


def _every_row(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    axis, count = first_rows(cells[0])
    return FirstRows(value.narrow(axis, 0, count), arguments, axis)


def _cast(value: Tensor, arguments: Any, tangents: Any, **keywords: Any) -> Any:
    return tangents[0].to(device=value.device, dtype=value.dtype, copy=keywords.get("copy", False))


operation_rule(aten._to_copy.default, rows=_every_row, complex=True)(_cast)
function_rule(
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as, Tensor.cuda,
    Tensor.cpu, rows=_every_row, views=True, complex=True,
)(_cast)  # fmt: skip
_through(lambda x, **k: x.contiguous(**k), Tensor.contiguous, rows=_every_row)
_through(lambda x, **k: x.clone(**k), Tensor.clone, torch.clone, operations=[aten.clone.default], rows=_every_row,
         views=False)  # fmt: skip


@operation_rule(aten.as_strided.default, views=True, complex=True)
def _as_strided(value: Tensor, arguments: Any, tangents: Any) -> Any:
    offset = value.storage_offset() - arguments[0].storage_offset() + tangents[0].storage_offset()
    return tangents[0].as_strided(value.shape, value.stride(), offset)


for _view in (aten.alias.default, aten.diagonal.default, aten.unfold.default, aten.view_as_real.default,
              aten.view_as_complex.default, aten._conj.default, aten._neg_view.default):  # fmt: skip
    operation_rule(_view, views=True, complex=True)(_same(_view))
