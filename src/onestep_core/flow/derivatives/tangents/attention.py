"""Tangents through the fused kernels of attention.

    o = P v,  P = softmax(scale q k^T + mask)
    S = scale (q' k^T + q k'^T)
    o' = P v' + (P * S) v - rowsum(P * S) o

The kernels return the logarithm of each row's sum, ``l``, so ``P = exp(scale q k^T + mask - l)`` is rebuilt, block by
block of rows: memory stays linear in the number of tokens. Products and sums are formed in at least float32.

Source of the idea: Dao et al., FlashAttention, section 3.1 (recomputation), https://arxiv.org/abs/2205.14135.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from onestep_core.flow.derivatives.tangents.rows import attention
from onestep_core.flow.derivatives.tangents.rules import function_rule, operation_rule

aten: Any = torch.ops.aten

_BLOCK = {"cpu": 2**18, "cuda": 2**26}
"""Most elements of one block of attention weights."""


def _flash_cpu_call(
    values: Any, *, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None
) -> Any:
    """The kernel that ``scaled_dot_product_attention`` chooses on the processor, with the rows' sums."""
    q, k, v = values
    if attn_mask is not None or dropout_p > 0 or scale is not None or q.device.type != "cpu":
        return None
    if aten._fused_sdp_choice(q, k, v, None, 0.0, is_causal) != SDPBackend.FLASH_ATTENTION.value:
        return None
    return (q, k, v, 0.0, is_causal), aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)


@function_rule(F.scaled_dot_product_attention, count=3, rows=attention, call=_flash_cpu_call)
@operation_rule(aten._scaled_dot_product_flash_attention_for_cpu.default, rows=attention)
def _flash_cpu(value: Any, arguments: Any, tangents: Any, *, attn_mask: Any = None, scale: float | None = None) -> Any:
    q, k, v, *others = arguments
    causal = bool(others[1]) if len(others) > 1 else False
    return attend(q, k, v, value[0], value[1], tangents[:3], attn_mask, causal, scale), None


@operation_rule(aten._scaled_dot_product_flash_attention.default, rows=attention)
def _flash(value: Any, arguments: Any, tangents: Any, *, scale: float | None = None) -> Any:
    q, k, v, *others = arguments
    causal = bool(others[1]) if len(others) > 1 else False
    tangent = attend(q, k, v, value[0], value[1], tangents[:3], None, causal, scale)
    return tangent, *[None] * (len(value) - 1)


@operation_rule(
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
    rows=attention,
)  # fmt: skip
def _with_mask(value: Any, arguments: Any, tangents: Any, *, scale: float | None = None) -> Any:
    q, k, v, mask, _, *others = arguments
    causal = bool(others[1]) if len(others) > 1 else False
    tangent = attend(q, k, v, value[0], value[1], tangents[:3], mask, causal, scale)
    return tangent, *[None] * (len(value) - 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor | None,
    tangents: Any,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    bias: Tensor | None = None,
) -> Tensor:
    """The tangent of attention, in blocks of rows.

    Args:
        q: queries, ``[batch, head, query, channel]``.
        k: keys, ``[batch, group, key, channel]``: each group of them serves ``head / group`` heads.
        v: values, ``[batch, group, key, value channel]``.
        out: what the kernel returned, ``[batch, head, query, value channel]``.
        sums: logarithms of the rows' sums, ``[batch, head, query]``; without, they are found here.
        tangents: those of ``q``, ``k``, ``v``, ``None`` where there is none.
        mask: added to the logits, or of bool: ``True`` takes part; broadcasts to ``[batch, head, query, key]``.
        causal: whether query ``i`` sees the keys up to ``i`` alone.
        scale: factor of the logits, ``1 / sqrt(channel)`` by default.
        bias: tangent of the mask.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    if sums is not None and sums.numel() == 0:
        sums = None
    if sums is not None:
        sums = sums.reshape(batch, heads, -1)[..., :queries, None]
    mask = None if mask is None else _added(mask, batch, kind)
    bias = None if bias is None else _added(bias, batch, kind) / factor
    result = torch.empty_like(out)
    limit = _BLOCK.get(q.device.type, 2**26)
    rows = max(1, min(queries, limit // max(heads * keys, 1)))
    count = max(1, limit // max(heads * rows * keys, 1))
    for i in range(0, batch, count):
        some = slice(i, min(i + count, batch))

        def part(x: Tensor, some: slice = some) -> Tensor:
            """Samples and heads as one axis; of one sample it is no copy."""
            x = x[some]
            x = x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
            return (x[0] if len(x) == 1 else x.flatten(0, 1)).to(kind)

        dq, dk, dv = (None if x is None else part(x) for x in tangents)
        first, second, third = part(q), part(k).mT, part(v)
        logarithms = None if sums is None else part(sums)
        for j in range(0, queries, rows):
            row = (slice(None), slice(j, min(j + rows, queries)))
            if logarithms is not None and mask is None and not causal:
                # No row is without a key: one product less the sums.
                weights = torch.baddbmm(logarithms[row], first[row], second, beta=-1, alpha=factor).exp_()
            else:
                logits = torch.bmm(first[row], second).mul_(factor)
                if mask is not None:
                    logits += _block(mask, some, heads, row[1])
                if causal:
                    later = torch.ones(logits.shape[1:], dtype=torch.bool, device=q.device).triu_(1 + j)
                    logits.masked_fill_(later, -math.inf)
                shift = logits.logsumexp(-1, keepdim=True) if logarithms is None else logarithms[row]
                # A row that sees no key has the sum 0: its weights are 0, not 0 / 0.
                weights = logits.sub_(shift.masked_fill(shift == -math.inf, math.inf)).exp_()
            tangent = None if dv is None else torch.bmm(weights, dv)
            slope = None if dq is None else torch.bmm(dq[row], second)
            if dk is not None:
                slope = torch.bmm(first[row], dk.mT) if slope is None else slope.baddbmm_(first[row], dk.mT)
            if bias is not None:
                more = _block(bias, some, heads, row[1])
                slope = more.expand_as(weights).clone() if slope is None else slope.add_(more)
            if slope is not None:
                slope.mul_(weights)
                if tangent is None:
                    tangent = torch.bmm(slope, third).mul_(factor)
                else:
                    tangent.baddbmm_(slope, third, alpha=factor)
            place, seen = result[some, :, row[1]], out[some, :, row[1]]
            shape = (-1, heads, *place.shape[2:])
            if slope is None:
                place.copy_(torch.zeros_like(place) if tangent is None else tangent.view(shape))
            else:
                assert tangent is not None
                total = slope.sum(-1).view(-1, heads, slope.shape[1], 1)
                tangent, seen = tangent.view(shape), seen.to(kind)
                if place.dtype == kind:
                    torch.addcmul(tangent, total, seen, value=-factor, out=place)
                else:
                    place.copy_(tangent.addcmul_(total, seen, value=-factor))
    return result


def _added(mask: Tensor, batch: int, kind: torch.dtype) -> Tensor:
    """A mask of bool or numbers as numbers to add, ``[batch or 1, head or 1, query or 1, key or 1]``."""
    while mask.dim() < 4:
        mask = mask[None]
    # With ``moving`` the first samples alone are asked for.
    mask = mask[:batch]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, -math.inf)
    return mask.to(kind)


def _block(mask: Tensor, some: slice, heads: int, rows: slice) -> Tensor:
    """The mask of some samples and rows, ``[sample * head or 1, query or 1, key or 1]``."""
    mask = mask[some] if len(mask) > 1 else mask
    mask = mask[:, :, rows] if mask.shape[2] > 1 else mask
    if mask.shape[0] == mask.shape[1] == 1:
        return mask[0]
    count = some.stop - some.start
    return mask.expand(count, heads, *mask.shape[2:]).flatten(0, 1)
