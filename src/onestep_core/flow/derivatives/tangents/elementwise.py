"""Tangents through arithmetic and activations, element by element."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_core.flow.derivatives.tangents.rows import elementwise
from onestep_core.flow.derivatives.tangents.rules import function_rule, like, operation_rule

aten: Any = torch.ops.aten


@operation_rule(aten.add.Tensor, rows=elementwise, complex=True)
@function_rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, count=2, rows=elementwise, complex=True)
def _add(value: Tensor, arguments: Any, tangents: Any, *, alpha: Any = 1) -> Any:
    first, second = tangents
    if second is None:
        return like(first, value)
    if first is None:
        return like(second if alpha == 1 else second * alpha, value)
    return torch.add(first, second, alpha=alpha)


@operation_rule(aten.sub.Tensor, rows=elementwise, complex=True)
@function_rule(torch.sub, Tensor.sub, Tensor.__sub__, torch.subtract, count=2, rows=elementwise, complex=True)
def _subtract(value: Tensor, arguments: Any, tangents: Any, *, alpha: Any = 1) -> Any:
    return _add(value, arguments, tangents, alpha=-alpha)


@operation_rule(aten.rsub.Scalar, aten.rsub.Tensor, rows=elementwise, complex=True)
@function_rule(Tensor.__rsub__, torch.rsub, count=2, rows=elementwise, complex=True)
def _subtract_from(value: Tensor, arguments: Any, tangents: Any, *, alpha: Any = 1) -> Any:
    first, second = tangents[0], tangents[1]
    if first is None:
        return like(second, value)
    turned = first * -alpha
    return like(turned, value) if second is None else second + turned


@operation_rule(aten.mul.Tensor, aten.mul.Scalar, rows=elementwise, complex=True)
@function_rule(
    torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, count=2, rows=elementwise, complex=True
)
def _multiply(value: Tensor, arguments: Any, tangents: Any) -> Any:
    (a, b), (first, second) = arguments, tangents
    if second is None:
        return first * b
    if first is None:
        return second * a
    if a is b and first is second:
        return (first * a).mul_(2)
    if first.dtype == second.dtype == a.dtype == b.dtype and not value.is_complex():
        return (first * b).addcmul_(second, a)
    return first * b + second * a


@operation_rule(aten.div.Tensor, aten.div.Scalar, rows=elementwise, complex=True)
@function_rule(torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__, count=2, rows=elementwise, complex=True)
def _divide(value: Tensor, arguments: Any, tangents: Any) -> Any:
    (_, b), (first, second) = arguments, tangents
    if second is None:
        return first / b
    if first is None:
        return -value * (second / b)
    return (first - value * second) / b


@operation_rule(aten.add.Scalar, aten.sub.Scalar, rows=elementwise, complex=True)
def _shift(value: Tensor, arguments: Any, tangents: Any, *, alpha: Any = 1) -> Any:
    return tangents[0]


@operation_rule(aten.pow.Tensor_Scalar, rows=elementwise)
@function_rule(torch.square, Tensor.square, count=1, rows=elementwise)
def _power(value: Tensor, arguments: Any, tangents: Any) -> Any:
    x, exponent = arguments[0], arguments[1] if len(arguments) > 1 else 2
    if exponent == 0:
        return torch.zeros_like(tangents[0])
    if exponent == 2:
        return (tangents[0] * x).mul_(2)
    return tangents[0] * (exponent * x ** (exponent - 1))


def _of_value(rule: Callable[[Any, Any], Any], *keys: Any, operation: Any) -> None:
    """A function of one argument whose derivative is found from its value."""

    def tangent(value: Tensor, arguments: Any, tangents: Any) -> Any:
        return rule(tangents[0], value)

    operation_rule(operation, rows=elementwise)(function_rule(*keys, count=1, rows=elementwise)(tangent))


def _of_argument(rule: Callable[[Any, Any], Any], *keys: Any, operation: Any) -> None:
    """A function of one argument whose derivative is found from its argument."""

    def tangent(value: Tensor, arguments: Any, tangents: Any) -> Any:
        return rule(tangents[0], arguments[0])

    operation_rule(operation, rows=elementwise)(function_rule(*keys, count=1, rows=elementwise)(tangent))


# The Jacobian of an elementwise function is diagonal, so the kernel of its backward pass is that of its tangent.
_of_value(lambda t, y: aten.tanh_backward(t, y), torch.tanh, Tensor.tanh, operation=aten.tanh.default)
_of_value(lambda t, y: aten.sigmoid_backward(t, y), torch.sigmoid, Tensor.sigmoid, operation=aten.sigmoid.default)
_of_value(lambda t, y: t * y, torch.exp, Tensor.exp, operation=aten.exp.default)
_of_value(lambda t, y: t * (y + 1), torch.expm1, Tensor.expm1, operation=aten.expm1.default)
_of_value(lambda t, y: t / (2 * y), torch.sqrt, Tensor.sqrt, operation=aten.sqrt.default)
_of_value(lambda t, y: t * y**3 * -0.5, torch.rsqrt, Tensor.rsqrt, operation=aten.rsqrt.default)
_of_value(lambda t, y: -t * y * y, torch.reciprocal, Tensor.reciprocal, operation=aten.reciprocal.default)
_of_value(lambda t, y: aten.threshold_backward(t, y, 0), torch.relu, Tensor.relu, operation=aten.relu.default)
_of_argument(lambda t, x: t / x, torch.log, Tensor.log, operation=aten.log.default)
_of_argument(lambda t, x: t / (1 + x), torch.log1p, Tensor.log1p, operation=aten.log1p.default)
_of_argument(lambda t, x: t * x.cos(), torch.sin, Tensor.sin, operation=aten.sin.default)
_of_argument(lambda t, x: -t * x.sin(), torch.cos, Tensor.cos, operation=aten.cos.default)
_of_argument(lambda t, x: t * x.sgn(), torch.abs, Tensor.abs, Tensor.__abs__, operation=aten.abs.default)
_of_argument(lambda t, x: -t, torch.neg, Tensor.neg, Tensor.__neg__, operation=aten.neg.default)


@operation_rule(aten.silu.default, rows=elementwise)
@function_rule(F.silu, count=1, rows=elementwise)
def _silu(value: Tensor, arguments: Any, tangents: Any, *, inplace: bool = False) -> Any:
    return aten.silu_backward(tangents[0], arguments[0])


@operation_rule(aten.gelu.default, rows=elementwise)
@function_rule(F.gelu, count=1, rows=elementwise)
def _gelu(value: Tensor, arguments: Any, tangents: Any, *, approximate: str = "none") -> Any:
    return aten.gelu_backward(tangents[0], arguments[0], approximate=approximate)


@operation_rule(aten.where.self, rows=elementwise)
@function_rule(torch.where, count=3, rows=elementwise)
def _where(value: Tensor, arguments: Any, tangents: Any) -> Any:
    first, second = tangents[1], tangents[2]
    return torch.where(arguments[0], 0 if first is None else first, 0 if second is None else second)


@operation_rule(aten.clamp.default, rows=elementwise)
def _clamp(value: Tensor, arguments: Any, tangents: Any) -> Any:
    x, (low, high) = arguments[0], (*arguments[1:], None, None)[:2]
    inside: Any = torch.ones_like(x, dtype=torch.bool)
    if low is not None:
        inside &= x >= low
    if high is not None:
        inside &= x <= high
    return torch.where(inside, tangents[0], 0)


@operation_rule(aten.masked_fill.Scalar, rows=elementwise)
def _masked_fill(value: Tensor, arguments: Any, tangents: Any) -> Any:
    return torch.where(arguments[1], 0, tangents[0])


@operation_rule(aten.rrelu_with_noise.default, aten.rrelu_with_noise_.default)
def _rrelu(value: Tensor, arguments: Any, tangents: Any) -> Any:
    x: Any
    x, noise, low, high, training = (*arguments, 1 / 8, 1 / 3, False)[:5]
    return tangents[0] * noise if training else torch.where(x > 0, tangents[0], tangents[0] * ((low + high) / 2))
