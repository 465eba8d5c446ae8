"""Products and attention in forward mode while torch compiles.

``torch.func.jvp`` takes the tangent of a constant weight for a matrix of zeros. Compiled, it is multiplied: a linear
layer costs three products instead of two. Attention has no forward derivative but in its MATH form. Here the function
runs on the values as the network calls it, so that attention stays fused, and its tangent follows from a formula in
which constants take no part. Both keep their graph, so second derivatives stay what they are.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def parted(argument: Any) -> tuple[Any, Any]:
    """Value and tangent of an argument; ``None`` for the tangent of a constant."""
    if not isinstance(argument, Tensor) or not (argument.is_floating_point() or argument.is_complex()):
        return argument, None
    if torch._C._functorch.is_batchedtensor(argument):
        # A vmap lies between the derivative and this function: forward mode goes through it by itself.
        return argument, None
    value, tangent = forward_ad.unpack_dual(argument, level=0)
    return value, tangent


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    tangent = tangent.to(value.dtype).expand(value.shape)
    return forward_ad.make_dual(value, tangent, level=0)


def multilinear(function: Callable[..., Tensor], *factors: Any) -> Any:
    """``function(*factors)``, linear in each; the tangent is the sum of it with one factor replaced by its own."""
    pairs = [parted(factor) for factor in factors]
    values = [value for value, _ in pairs]
    tangent: Any = None
    for place, (_, along) in enumerate(pairs):
        if along is not None:
            term = function(*values[:place], along, *values[place + 1 :])
            tangent = term if tangent is None else tangent + term
    return function(*factors) if tangent is None else _dual(function(*values), tangent)


def shifted(function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Any:
    """A linear layer or a convolution: linear in input and weight, then shifted."""
    given = {**dict(zip(("input", "weight", "bias"), arguments, strict=False)), **keywords}
    if "input" not in given or "weight" not in given:
        return function(*arguments, **keywords)
    input, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    (x, along), (matrix, turn), (_, drift) = parted(input), parted(weight), parted(bias)
    if drift is not None or (along is None and turn is None):
        return function(*arguments, **keywords)
    others = arguments[3:]
    tangent = None if along is None else function(along, matrix, None, *others, **given)
    if turn is not None:
        turned = function(x, turn, None, *others, **given)
        tangent = turned if tangent is None else tangent + turned
    assert tangent is not None
    return _dual(function(x, matrix, bias, *others, **given), tangent)


def product(function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Any:
    """A product of two factors."""
    if len(arguments) != 2 or keywords:
        return function(*arguments, **keywords)
    return multilinear(function, *arguments)


def einsum(equation: Any, *operands: Any, **keywords: Any) -> Any:
    """``torch.einsum`` with an equation in letters."""
    if not isinstance(equation, str) or (len(operands) == 1 and not isinstance(operands[0], Tensor)):
        return torch.einsum(equation, *operands, **keywords)
    return multilinear(lambda *factors: torch.einsum(equation, *factors), *operands)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the kernel that the network would use.

    With ``P = softmax(scale q k^T + mask)``, ``S = P * scale (q' k^T + q k'^T)``: ``o' = S v - rowsum(S) o + P v'``.
    """
    (q, dq), (k, dk), (v, dv) = parted(query), parted(key), parted(value)
    known = dropout_p == 0 and parted(attn_mask)[1] is None and not enable_gqa
    if not known or (dq is None and dk is None and dv is None):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, scale=scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.matmul(q, k.mT) * factor
    if is_causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # A row without a key has weights of 0: its logits stay, so that no gradient is 0 / 0.
        none = ~attn_mask.any(-1, keepdim=True)
        logits = logits.masked_fill(~(attn_mask | none), -math.inf)
        weights = torch.softmax(logits, -1).masked_fill(none, 0)
    else:
        weights = torch.softmax(logits if attn_mask is None else logits + attn_mask, -1)
    tangent = None if dv is None else torch.matmul(weights, dv)
    slope = None if dq is None else torch.matmul(dq, k.mT)
    if dk is not None:
        other = torch.matmul(q, dk.mT)
        slope = other if slope is None else slope + other
    if slope is not None:
        slope = weights * (slope * factor)
        moved = torch.matmul(slope, v) - slope.sum(-1, keepdim=True) * out
        tangent = moved if tangent is None else tangent + moved
    assert tangent is not None
    return _dual(out, tangent)


INSTEAD: dict[Any, Callable[..., Any]] = {
    **{
        function: partial(shifted, function)
        for function in (
            F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
        )
    },
    **{
        function: partial(product, function)
        for function in (
            torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
        )
    },
    torch.einsum: einsum,
}  # fmt: skip
"""Functions, and what is called in their place."""
