"""Tangents through what is linear in one argument, and through what joins tensors."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_core.flow.derivatives.tangents.cells import Cell
from onestep_core.flow.derivatives.tangents.rows import batches
from onestep_core.flow.derivatives.tangents.rules import FUNCTIONS, FirstRows, Rule, function_rule, operation_rule

aten: Any = torch.ops.aten


def _linear(function: Any) -> Callable[..., Any]:
    """The tangent of a function that is linear in its first argument, the only one with a tangent."""

    def tangent(value: Any, arguments: Any, tangents: Any, **keywords: Any) -> Any:
        return function(tangents[0], *arguments[1:], **keywords)

    return tangent


for _operation in (
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumsum.default, aten.flip.default,
    aten.roll.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.repeat.default,
    aten.tril.default, aten.triu.default, aten.trace.default,
    aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default,
):  # fmt: skip
    operation_rule(_operation, complex=True)(_linear(_operation))
del _operation

for _operation in (
    aten.reflection_pad1d.default, aten.reflection_pad2d.default,
    aten.reflection_pad3d.default, aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.im2col.default,
    aten.col2im.default, aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default,
    aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default, aten.upsample_linear1d.default, aten.upsample_bilinear2d.default,
    aten.upsample_trilinear3d.default, aten.upsample_bicubic2d.default, aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
):  # fmt: skip
    operation_rule(_operation, rows=batches, complex=True)(_linear(_operation))


@operation_rule(aten.constant_pad_nd.default, rows=batches, complex=True)
def _pad(value: Tensor, arguments: Any, tangents: Any) -> Any:
    return aten.constant_pad_nd(tangents[0], arguments[1], 0)


for _function in (F.interpolate, F.avg_pool2d, F.adaptive_avg_pool2d, F.pixel_shuffle, F.pixel_unshuffle):
    function_rule(_function, rows=batches, complex=True)(_linear(_function))


def _joined_rows(value: Tensor, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """Joining along another axis than that of the rows."""
    parts, every = arguments[0], cells[0]
    chosen = arguments[1] if len(arguments) > 1 else keywords.get("dim", 0)
    given = [cell for cell in every if cell is not None]
    first = given[0]
    if not isinstance(chosen, int) or not all(isinstance(cell, Cell) for cell in given) or first.axis is None:
        return None
    axis, count = first.axis, first.tangent.shape[first.axis]
    if any(cell.axis != axis or cell.tangent.shape[axis] != count for cell in given):
        return None
    if any(part.dim() != parts[0].dim() for part in parts):
        return None
    chosen %= value.dim()
    stacks = value.dim() > parts[0].dim()
    if not stacks and chosen == axis:
        return None
    out = axis + (stacks and chosen <= axis)
    return FirstRows(
        value.narrow(out, 0, count), [[part.narrow(axis, 0, count) for part in parts], *arguments[1:]], out
    )


def _join(function: Any) -> Callable[..., Any]:
    def tangent(value: Tensor, arguments: Any, tangents: Any, **keywords: Any) -> Any:
        parts = [
            torch.zeros_like(part, dtype=value.dtype) if along is None else along
            for part, along in zip(arguments[0], tangents[0], strict=True)
        ]
        return function(parts, *arguments[1:], **keywords)

    return tangent


operation_rule(aten.cat.default, rows=_joined_rows, complex=True)(_join(aten.cat.default))
operation_rule(aten.stack.default, rows=_joined_rows, complex=True)(_join(aten.stack.default))
function_rule(torch.cat, torch.concat, count=(1, 2), rows=_joined_rows, complex=True)(_join(torch.cat))
function_rule(torch.stack, count=(1, 2), rows=_joined_rows, complex=True)(_join(torch.stack))


@operation_rule(aten.native_dropout.default)
def _native_dropout(value: Any, arguments: Any, tangents: Any) -> Any:
    probability, train = arguments[1], arguments[2]
    if train is False:
        return tangents[0], None
    if probability == 1:
        return torch.zeros_like(tangents[0]), None
    return tangents[0] * value[1] / (1 - probability), None


@operation_rule(aten._pack_padded_sequence.default)
def _pack(value: Any, arguments: Any, tangents: Any) -> Any:
    return aten._pack_padded_sequence(tangents[0], *arguments[1:])[0], None


def _keeps_all(arguments: Sequence[Any], keywords: dict[str, Any]) -> bool:
    """Whether a dropout drops nothing: then it returns its argument itself."""
    given = dict(zip(("p", "training", "inplace"), arguments[1:], strict=False)) | keywords
    return given.get("p", 0.5) == 0 or given.get("training", True) is False


for _function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
    FUNCTIONS[_function] = Rule(lambda value, arguments, tangents, **keywords: tangents[0], accepts=_keeps_all)
