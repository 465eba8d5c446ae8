"""Operations on which torch's forward mode fails, and the equal ones on which it works.

===================================  ==============================================  ==================================
operation                            what happens in forward mode                    taken instead
===================================  ==============================================  ==================================
``scaled_dot_product_attention``     the fused kernels have no forward derivative    its MATH form; compiled, a
``multi_head_attention_forward``                                                     formula for the tangent
``layer_norm``, ``batch_norm``,      the tangent takes mean and deviation for        written out, where there is a graph
``instance_norm``                    constants: its gradient is wrong, without error
determinants, ``solve``,             the same fault                                  refused, where there is a graph
``householder_product``,
``max_unpool``
``batch_norm`` in evaluation         it does not compile                             written out
``layer_norm``, ``group_norm``       with weight and shift they do not compile;      without them, then scaled; of a
                                     ``group_norm`` fails on a view                  contiguous input
``glu``                              its tangent has no gradient                     ``a sigmoid(b)``
``baddbmm(beta=0)``                  compiled it ends the process                    ``alpha a b``
``Tensor.unflatten``                 it does not compile                             ``torch.unflatten``
products and convolutions            compiled, constant weights are multiplied by    a formula in which constants take
                                     tangents of zeros                               no part, see :mod:`compiled`
===================================  ==============================================  ==================================

Measured with torch 2.13. :func:`~onestep_core.single_pass` needs none of this outside of ``torch.func`` and
``torch.compile``.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives import compiled
from onestep_core.flow.derivatives.tangents.refusals import name_of


def _attention(*arguments: Any, **keywords: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*arguments, **keywords)


def _multi_head_attention(*arguments: Any, **keywords: Any) -> Any:
    # The mode is off inside of the function, which calls the kernel itself.
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*arguments, **keywords)


def _standardised(input: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon)`` over the axes, in at least float32."""
    low = input.dtype in (torch.float16, torch.bfloat16)
    x = input.float() if low else input
    centred = x - x.mean(axes, keepdim=True)
    result = centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    # As the function itself: autocast leaves it in float32.
    return result.to(input.dtype) if low and not torch.is_autocast_enabled(input.device.type) else result


def _scaled(result: Tensor, weight: Any, bias: Any) -> Tensor:
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _of_channels(parameter: Any, input: Tensor) -> Any:
    return None if parameter is None else parameter.reshape(1, -1, *[1] * (input.dim() - 2))


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        result = _standardised(input, list(range(-len(normalized_shape), 0)), eps)
    else:
        result = F.layer_norm(input, normalized_shape, None, None, eps)
    return _scaled(result, weight, bias)


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Tensor:
    if torch.compiler.is_compiling():
        result = _standardised(input.reshape(len(input), num_groups, -1), [-1], eps).reshape(input.shape)
    else:
        result = F.group_norm(input.contiguous(), num_groups, None, None, eps)
    return _scaled(result, _of_channels(weight, input), _of_channels(bias, input))


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training and torch.compiler.is_compiling():
        mean, root = (_of_channels(x, input) for x in (running_mean, (running_var + eps).rsqrt()))
        return _scaled((input - mean) * root, _of_channels(weight, input), _of_channels(bias, input))
    if not training or running_mean is not None or running_var is not None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result = _standardised(input, [0, *range(2, input.dim())], eps)
    return _scaled(result, _of_channels(weight, input), _of_channels(bias, input))


def _torch_batch_norm(
    input: Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Tensor:
    return _batch_norm(input, mean, variance, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, own: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    return _instance_norm(input, mean, variance, weight, bias, own, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None or running_var is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    result = _standardised(input, list(range(2, input.dim())), eps)
    return _scaled(result, _of_channels(weight, input), _of_channels(bias, input))


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = (
        compiled.multilinear(torch.bmm, batch1, batch2) if torch.compiler.is_compiling() else torch.bmm(batch1, batch2)
    )
    product = product * alpha
    return product if beta == 0 else input * beta + product


_INSTEAD: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    F.glu: _glu,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
}


_WRONG: frozenset[Any] = frozenset({
    torch.det, torch.logdet, torch.slogdet, torch.linalg.det, torch.linalg.slogdet, Tensor.det, Tensor.logdet,
    Tensor.slogdet, torch.linalg.solve, torch.linalg.solve_ex, torch.linalg.tensorsolve,
    torch.linalg.householder_product, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d,
})  # fmt: skip


class ForwardMode(TorchFunctionMode):
    """Replaces the operations of the table while it is active.

    Args:
        nested: whether another transform is around it, for which the fused kernels of attention have no rule.
    """

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        self.nested = nested

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """The operation, or the one taken instead."""
        keywords = kwargs or {}
        if "out" in keywords:
            return func(*args, **keywords)
        if func in _WRONG and torch.is_grad_enabled():
            raise UnsupportedDerivative(name_of(func), "in torch the gradient of its tangent is wrong, without error")
        if torch.compiler.is_compiling():
            if getattr(func, "__name__", "") == "unflatten":
                return torch.unflatten(*args, **keywords)
            if func is F.scaled_dot_product_attention and not self.nested:
                return compiled.attention(*args, **keywords)
            if func in compiled.INSTEAD:
                return compiled.INSTEAD[func](*args, **keywords)
        instead = _INSTEAD.get(func)
        return func(*args, **keywords) if instead is None else instead(*args, **keywords)
