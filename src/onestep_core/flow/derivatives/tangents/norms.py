"""Tangents through normalisations and softmax.

The Jacobian of a normalisation without weight and shift is symmetric, and so is that of a softmax: the kernel of the
backward pass is that of the tangent.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_core.flow.derivatives.tangents.rows import along, batches, leading
from onestep_core.flow.derivatives.tangents.rules import function_rule, operation_rule

aten: Any = torch.ops.aten


def _scaled(tangent: Tensor, weight: Tensor | None, normal: Tensor | None, second: Any, third: Any) -> Tensor:
    """The tangent of ``normal weight + shift``; all but the first in a shape that broadcasts."""
    result = tangent if weight is None else tangent * weight
    if second is not None and normal is not None:
        result = result + normal * second
    return result if third is None else result + third


def _layer_norm_call(
    values: Any, *, normalized_shape: Any = None, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    x, shape, weight, bias, eps = (*values, *(normalized_shape, weight, bias, eps)[len(values) - 1 :])
    arguments: Any = (x, shape, weight, bias, eps)
    return arguments, torch.native_layer_norm(*arguments)


@function_rule(
    F.layer_norm, torch.layer_norm, count=(1, 2, 3, 4, 5), rows=leading(lambda arguments: len(arguments[1])),
    call=_layer_norm_call,
)  # fmt: skip
@operation_rule(aten.native_layer_norm.default, rows=leading(lambda arguments: len(arguments[1])))
def _layer_norm(value: Any, arguments: Any, tangents: Any) -> Any:
    x, shape, weight, _, _ = arguments
    _, mean, rstd = value
    first, _, second, third, _ = tangents
    mean, rstd = mean.to(x.dtype), rstd.to(x.dtype)
    result = x.new_zeros(x.shape) if first is None else first
    if first is not None:
        # Under autocast the value may be of lower precision than weight, mean and root.
        kind = value[2].dtype
        result = aten.native_layer_norm_backward(
            first.to(kind).contiguous(), x.to(kind).contiguous(), shape, value[1], value[2], None, None,
            [True, False, False],
        )[0].to(x.dtype)  # fmt: skip
    return _scaled(result, weight, (x - mean) * rstd if second is not None else None, second, third), None, None


def _group_norm_call(
    values: Any, *, num_groups: int = 0, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    x, groups, weight, bias, eps = (*values, *(num_groups, weight, bias, eps)[len(values) - 1 :])
    if x.dim() < 3 or x.shape[1] % groups or x.device.type != "cpu" or not x.numel():
        return None
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    # The kernel reads weight and shift as if they were contiguous.
    weight, bias = (None if part is None else part.contiguous() for part in (weight, bias))
    arguments: Any = (x, weight, bias, len(x), x.shape[1], x[0, 0].numel(), groups, eps)
    return arguments, torch.native_group_norm(*arguments)


@function_rule(F.group_norm, count=(1, 2, 3, 4, 5), rows=batches, call=_group_norm_call, alone=True)
@operation_rule(aten.native_group_norm.default, rows=batches)
def _group_norm(value: Any, arguments: Any, tangents: Any) -> Any:
    x, weight, _, _, channels, space, groups, _ = arguments
    _, mean, rstd = value
    first, second, third = tangents[:3]
    result = torch.zeros_like(x)
    if first is not None:
        memory = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        result = aten.native_group_norm_backward(
            first.contiguous(memory_format=memory), x.contiguous(memory_format=memory), mean, rstd, None,
            len(x), channels, space, groups, [True, False, False],
        )[0]  # fmt: skip
    shape = (1, channels, *[1] * (x.dim() - 2))
    weight, second, third = (None if part is None else part.view(shape) for part in (weight, second, third))
    normal = None
    if second is not None:
        grouped = x.reshape(len(x), groups, -1)
        normal = ((grouped - mean[..., None]) * rstd[..., None]).view(x.shape).to(x.dtype)
    return _scaled(result, weight, normal, second, third), None, None


def _rms_norm_call(values: Any, *, normalized_shape: Any = None, weight: Any = None, eps: float | None = None) -> Any:
    """What ``rms_norm`` runs, with the inverse root of the mean square."""
    x, shape, weight, eps = (*values, *(normalized_shape, weight, eps)[len(values) - 1 :])
    arguments: Any = (x, shape, weight, eps)
    return arguments, aten._fused_rms_norm(x, shape, weight, eps)


@function_rule(F.rms_norm, torch.rms_norm, count=(1, 2, 3, 4), rows=leading(lambda arguments: len(arguments[1])),
               call=_rms_norm_call)  # fmt: skip
@operation_rule(aten._fused_rms_norm.default, rows=leading(lambda arguments: len(arguments[1])))
def _rms_norm(value: Any, arguments: Any, tangents: Any) -> Any:
    x, shape, weight = arguments[:3]
    normal, root = value
    axes = list(range(-len(shape), 0))
    working = x if x.dtype in (torch.float32, torch.float64) else x.float()
    first, second = tangents[0], tangents[2] if len(tangents) > 2 else None
    root = root.to(working.dtype)
    normal = normal if weight is None else working * root
    result = torch.zeros_like(normal)
    if first is not None:
        first = first.to(working.dtype)
        result = first * normal
        mean = result.mean(axes, keepdim=True).mul_(root)
        result = torch.mul(first, root, out=result).addcmul_(normal, mean, value=-1)
    return _scaled(result, weight, normal, second, None), None


@operation_rule(aten._softmax.default, rows=along(lambda arguments: arguments[1]))
def _softmax(value: Tensor, arguments: Any, tangents: Any) -> Any:
    return aten._softmax_backward_data(tangents[0], value, arguments[1], value.dtype)


@function_rule(F.softmax, torch.softmax, Tensor.softmax, count=(1, 2), rows=along(lambda arguments: arguments[1]),
               when=lambda arguments: len(arguments) == 2)  # fmt: skip
def _softmax_function(value: Tensor, arguments: Any, tangents: Any, *, dtype: Any = None) -> Any:
    return aten._softmax_backward_data(tangents[0].to(value.dtype), value, arguments[1], value.dtype)


@operation_rule(aten._log_softmax.default, rows=along(lambda arguments: arguments[1]))
def _log_softmax(value: Tensor, arguments: Any, tangents: Any) -> Any:
    first = tangents[0]
    return first - (first * value.exp()).sum(arguments[1], keepdim=True)


@operation_rule(
    aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default,
    aten._native_batch_norm_legit.default, aten._native_batch_norm_legit.no_stats,
)  # fmt: skip
def _batch_norm(value: Any, arguments: Any, tangents: Any) -> Any:
    x, weight = arguments[:2]
    *_, training, _, epsilon = arguments
    first, second, third = tangents[:3]
    axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    if not training and (tangents[3] is not None or tangents[4] is not None):
        return NotImplemented
    if training:
        mean, root = value[1], value[2]
    else:
        mean, root = arguments[3], (arguments[4] + epsilon).rsqrt()
    working = x if x.dtype in (torch.float32, torch.float64) else x.float()
    mean, root = mean.view(shape), root.view(shape)
    normal = (working - mean) * root
    result = torch.zeros_like(working) if first is None else first
    if first is not None and training:
        result = first - first.mean(axes, keepdim=True) - normal * (first * normal).mean(axes, keepdim=True)
    weight, second, third = (None if part is None else part.view(shape) for part in (weight, second, third))
    return _scaled(result * root, weight, normal, second, third), *[None] * (len(value) - 1)


@operation_rule(aten._cdist_forward.default, aten._euclidean_dist.default)
def _distances(value: Tensor, arguments: Any, tangents: Any) -> Any:
    (x, y, *power), (first, second) = arguments, tangents[:2]
    p = power[0] if power else 2.0
    result = torch.zeros_like(value)
    # One row of differences at a time: memory stays that of the distances.
    for i in range(x.shape[-2]):
        difference = x[..., i, None, :] - y
        moved = 0 if first is None else first[..., i, None, :]
        moved = moved if second is None else moved - second
        if p == 0:
            continue
        length = value[..., i, :, None]
        if p == math.inf:
            slope = difference.sgn() * (difference.abs() == length)
        else:
            slope = difference.sgn() * (difference.abs() / length) ** (p - 1)
        result[..., i, :] = torch.where(length == 0, 0, slope * moved).sum(-1)
    return result
