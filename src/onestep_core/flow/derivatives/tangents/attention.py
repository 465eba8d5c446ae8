"""Tangents through the fused kernels of attention.

    o = P v,  P = softmax(scale q k^T + mask)
    S = scale (q' k^T + q k'^T)
    o' = P v' + (P * S) v - rowsum(P * S) o

The kernels return the logarithm of each row's sum, ``l``, so ``P = exp(scale q k^T + mask - l)`` is rebuilt, block by
block of rows: memory stays linear in the number of tokens. Products and sums are formed in at least float32.

Source of the idea: Dao et al., FlashAttention, section 3.1 (recomputation), https://arxiv.org/abs/2205.14135.
"""

# pyright: reportPrivateUsage=false

import math
from typing import Any

import torch
from torch import Tensor

from onestep_core.flow.derivatives.tangents.rows import attention
from onestep_core.flow.derivatives.tangents.rules import operation_rule

aten: Any = torch.ops.aten

_BLOCK = {"cpu": 2**20, "cuda": 2**26}
"""Most elements of one block of attention weights."""
_ALL = slice(None)


@operation_rule(aten._scaled_dot_product_flash_attention_for_cpu.default, rows=attention)
def _flash_cpu(value: Any, arguments: Any, tangents: Any, *, attn_mask: Any = None, scale: float | None = None) -> Any:
    q, k, v, _, causal = (*arguments, 0.0, False)[:5]
    return attend(q, k, v, value[0], value[1], tangents[:3], attn_mask, causal, scale), None


@operation_rule(aten._scaled_dot_product_flash_attention.default, rows=attention)
def _flash(value: Any, arguments: Any, tangents: Any, *, scale: float | None = None) -> Any:
    q, k, v, dropout, causal, _ = (*arguments, 0.0, False, False)[:6]
    if dropout > 0:
        return NotImplemented
    tangent = attend(q, k, v, value[0], value[1], tangents[:3], None, causal, scale)
    return tangent, *[None] * (len(value) - 1)


@operation_rule(
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
    rows=attention,
)  # fmt: skip
def _with_mask(value: Any, arguments: Any, tangents: Any, *, scale: float | None = None) -> Any:
    q, k, v, mask, _, dropout, causal, *_ = (*arguments, 0.0, False)[:7]
    sums = value[1]
    if dropout > 0 or sums is None or sums.numel() == 0:
        return NotImplemented
    tangent = attend(q, k, v, value[0], sums, tangents[:3], mask, causal, scale)
    return tangent, *[None] * (len(value) - 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    tangents: Any,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """The tangent of attention, in blocks of rows.

    Args:
        q: queries, ``[batch, head, query, channel]``.
        k: keys, ``[batch, group, key, channel]``: each group of them serves ``head / group`` heads.
        v: values, ``[batch, group, key, value channel]``.
        out: what the kernel returned, ``[batch, head, query, value channel]``.
        sums: logarithms of the rows' sums, ``[batch, head, query]``.
        tangents: those of ``q``, ``k``, ``v``, ``None`` where there is none.
        mask: added to the logits, or of bool: ``True`` takes part; broadcasts to ``[batch, head, query, key]``.
        causal: whether query ``i`` sees the keys up to ``i`` alone.
        scale: factor of the logits, ``1 / sqrt(channel)`` by default.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, queries, _ = q.shape
    keys, groups = k.shape[2], k.shape[1]
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32

    def flat(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if x.shape[1] != heads:
            x = x.repeat_interleave(heads // groups, 1)
        return x.to(kind).reshape(batch * heads, *x.shape[2:])

    dq, dk, dv = (flat(x) for x in tangents)
    first, second, third = flat(q), flat(k), flat(v)
    assert first is not None and second is not None and third is not None
    whole, logarithms = flat(out), sums.reshape(batch, heads, -1)[..., :queries].to(kind).reshape(batch * heads, -1, 1)
    assert whole is not None
    # A row that sees no key has the sum 0: its weights are 0, not 0 / 0.
    logarithms = logarithms.masked_fill(logarithms == -math.inf, math.inf)
    if mask is not None:
        mask = _added(mask, batch, kind)
    result = first.new_empty(batch * heads, queries, v.shape[-1])
    limit = _BLOCK.get(q.device.type, 2**26)
    rows = max(1, min(queries, limit // max(keys, 1)))
    count = max(1, limit // max(rows * keys, 1))
    for i in range(0, batch * heads, count):
        pick = slice(i, i + count)
        kt, kdt = second[pick].mT, None if dk is None else dk[pick].mT
        for j in range(0, queries, rows):
            row = (pick, slice(j, j + rows))
            logits = torch.baddbmm(logarithms[row], first[row], kt, beta=-1, alpha=scale)
            if mask is not None:
                logits += _block(mask, i, min(i + count, batch * heads), heads)[
                    :, row[1] if mask.shape[2] > 1 else _ALL
                ]
            if causal:
                later = torch.ones(logits.shape[1:], dtype=torch.bool, device=q.device).triu_(1 + j)
                logits.masked_fill_(later, -math.inf)
            weights = logits.exp_()
            tangent = None if dv is None else torch.bmm(weights, dv[pick])
            slope = None
            if dq is not None:
                slope = torch.bmm(dq[row], kt)
            if kdt is not None:
                slope = torch.bmm(first[row], kdt) if slope is None else slope.baddbmm_(first[row], kdt)
            if slope is not None:
                slope.mul_(weights)
                tangent = torch.bmm(slope, third[pick]) if tangent is None else tangent.baddbmm_(
                    slope, third[pick], alpha=scale
                )  # fmt: skip
                if dv is None:
                    tangent.mul_(scale)
                tangent.addcmul_(slope.sum(-1, keepdim=True), whole[row], value=-scale)
            assert tangent is not None
            result[row] = tangent
    return result.view(batch, heads, queries, -1).to(out.dtype)


def _added(mask: Tensor, batch: int, kind: torch.dtype) -> Tensor:
    """A mask of bool or numbers as numbers to add, ``[batch or 1, head or 1, query or 1, key or 1]``."""
    while mask.dim() < 4:
        mask = mask[None]
    # With ``moving`` the first samples alone are asked for.
    mask = mask[:batch]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, -math.inf)
    return mask.to(kind)


def _block(mask: Tensor, start: int, stop: int, heads: int) -> Tensor:
    """The mask of some of the ``batch * head`` maps, ``[map or 1, query or 1, key or 1]``."""
    if mask.shape[0] == mask.shape[1] == 1:
        return mask[0]
    index = torch.arange(start, stop, device=mask.device)
    zero = torch.zeros_like(index)
    return mask[index // heads if mask.shape[0] > 1 else zero, index % heads if mask.shape[1] > 1 else zero]
