"""Operations on which torch's forward mode fails, and the equal ones on which it works.

===================================  ==============================================  ==================================
operation                            what happens in forward mode                    taken instead
===================================  ==============================================  ==================================
``scaled_dot_product_attention``     the fused kernels have no forward derivative    its MATH form
``layer_norm``, ``group_norm``       with weight and shift they do not compile;      without them, then scaled; of a
                                     ``group_norm`` fails on a view                  contiguous input
``baddbmm(beta=0)``                  compiled it ends the process                    ``alpha a b``
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


def _attention(*arguments: Any, **keywords: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*arguments, **keywords)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    result = F.layer_norm(input, normalized_shape, None, None, eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _group_norm(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    if torch.compiler.is_compiling():
        grouped = input.reshape(len(input), num_groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        result = (centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()).reshape(input.shape)
    else:
        result = F.group_norm(input.contiguous(), num_groups, None, None, eps)
    shape = (1, -1, *[1] * (input.dim() - 2))
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = torch.bmm(batch1, batch2) * alpha
    return product if beta == 0 else input * beta + product


_INSTEAD: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: _attention,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
}


class ForwardMode(TorchFunctionMode):
    """Replaces the operations of the table while it is active."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """The operation, or the one taken instead."""
        keywords = kwargs or {}
        instead = _INSTEAD.get(func)
        if instead is None or "out" in keywords:
            return func(*args, **keywords)
        return instead(*args, **keywords)
