"""Tangents through linear maps, products of matrices and convolutions."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_core.flow.derivatives.tangents.rows import batches, leading, products
from onestep_core.flow.derivatives.tangents.rules import FirstRows, function_rule, like, operation_rule

aten: Any = torch.ops.aten


@function_rule(F.linear, count=(2, 3), rows=leading(1, linear=True), complex=True)
def _linear(value: Tensor, arguments: Any, tangents: Any, *, bias: Any = None) -> Any:
    x, weight = arguments[0], arguments[1]
    first, second, third = (*tangents, None)[:3]
    result = None if first is None else F.linear(first, weight)
    if second is not None:
        turned = F.linear(x, second)
        result = turned if result is None else result.add_(turned)
    if third is not None:
        result = third if result is None else result + third
    return like(result, value)


@operation_rule(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, rows=products, complex=True)
@function_rule(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
    count=2, rows=products, complex=True,
)  # fmt: skip
def _product(value: Tensor, arguments: Any, tangents: Any) -> Any:
    (a, b), (first, second) = arguments, tangents
    if second is None:
        return torch.matmul(first, b)
    if first is None:
        return torch.matmul(a, second)
    return _sum_of_products(first, b, a, second)


def _sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """``a b + c d``; the second product is added where it is made."""
    result = torch.matmul(a, b)
    if result.dim() == 2 and c.dim() == d.dim() == 2 and result.dtype == c.dtype == d.dtype:
        return result.addmm_(c, d)
    if result.dim() == 3 and c.dim() == d.dim() == 3 and len(c) == len(d) and result.dtype == c.dtype == d.dtype:
        return result.baddbmm_(c, d)
    return result.add_(torch.matmul(c, d))


@operation_rule(aten.addmm.default, aten.baddbmm.default, complex=True)
def _shifted_product(value: Tensor, arguments: Any, tangents: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    shift, first, second = tangents
    _, a, b = arguments
    result = None
    if first is not None or second is not None:
        result = _product(value, (a, b), (first, second))
        result = result if alpha == 1 else result.mul_(alpha)
    if shift is not None and beta != 0:
        shift = shift if beta == 1 else shift * beta
        result = shift if result is None else result.add_(shift)
    return torch.zeros_like(value) if result is None else like(result, value)


def _samples(value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: Any) -> FirstRows | None:
    """A convolution keeps its samples apart; without an axis of samples the first axis is that of the channels."""
    return batches(value, arguments, cells, keywords) if arguments[0].dim() == arguments[1].dim() else None


def _bilinear(convolve: Callable[..., Tensor], value: Tensor, arguments: Any, tangents: Any) -> Any:
    """A convolution is linear in its input and in its weight; ``convolve`` is it without shift."""
    (first, second, third), (x, weight) = (*tangents, None)[:3], arguments[:2]
    result = None if first is None else convolve(first, weight)
    if second is not None:
        turned = convolve(x, second)
        result = turned if result is None else result.add_(turned)
    if third is not None:
        shift = third.view(-1, *[1] * (weight.dim() - 2))
        result = like(shift, value) if result is None else result.add_(shift)
    return result


@operation_rule(aten.convolution.default, rows=_samples, complex=True)
def _convolution(value: Tensor, arguments: Any, tangents: Any) -> Any:
    others = arguments[3:]
    return _bilinear(lambda x, w: aten.convolution(x, w, None, *others), value, arguments, tangents[:3])


def _convolves(function: Any) -> None:
    def tangent(value: Tensor, arguments: Any, tangents: Any, *, bias: Any = None, **keywords: Any) -> Any:
        others = arguments[3:]
        return _bilinear(lambda x, w: function(x, w, None, *others, **keywords), value, arguments, tangents[:3])

    function_rule(function, rows=_samples, complex=True)(tangent)


for _function in (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
    _convolves(_function)
