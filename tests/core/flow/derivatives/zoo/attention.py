"""Attention: the fused function with all its arguments, and the layers of torch that use it."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from tests.core.flow.derivatives.case import F64, Case, add, drawn, fragment, jump, listed, normal, two_backwards

sdpa = F.scaled_dot_product_attention
QKV = ((2, 2, 5, 4),) * 3
CROSS = ((2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4))
KEPT = torch.tensor(
    [[True, False, True], [True, True, True], [False, True, True], [True, False, False], [False, True, True]]
)
BIAS = torch.linspace(-1, 1, 15, dtype=F64).view(5, 3)


def by_kernel(backend: SDPBackend, *qkv: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return sdpa(*qkv)


FUSED: dict[str, Any] = {
    "sdpa": (sdpa, *QKV),
    "sdpa of three dimensions": (sdpa, (2, 5, 4), (2, 3, 4), (2, 3, 4)),
    "sdpa of two dimensions": (sdpa, (5, 4), (3, 4), (3, 4)),
    "sdpa of five dimensions": (sdpa, (2, 1, 2, 5, 4), (2, 1, 2, 3, 4), (2, 1, 2, 3, 4)),
    "sdpa of one sample": (sdpa, (1, 1, 5, 4), (1, 1, 5, 4), (1, 1, 5, 4)),
    "sdpa with another length of keys": (sdpa, *CROSS),
    "sdpa with another width of values": (sdpa, (2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 6)),
    "sdpa causal": (partial(sdpa, is_causal=True), *QKV),
    "sdpa causal with another length of keys": (partial(sdpa, is_causal=True), *CROSS),
    "sdpa with a boolean mask": (partial(sdpa, attn_mask=KEPT), *CROSS),
    "sdpa with a mask of each sample": (
        partial(sdpa, attn_mask=torch.stack([KEPT, ~KEPT | KEPT.roll(1, 0)])[:, None]),
        *CROSS,
    ),
    "sdpa with a bias": (partial(sdpa, attn_mask=BIAS), *CROSS),
    "sdpa with a bias of minus infinity": (partial(sdpa, attn_mask=BIAS.where(KEPT, -torch.inf)), *CROSS),
    "sdpa with a bias that has a tangent": (sdpa, *CROSS, (2, 1, 5, 3)),
    "sdpa with a scale": (partial(sdpa, scale=0.3), *QKV),
    "sdpa causal with a scale and grouped heads": (
        partial(sdpa, scale=0.3, is_causal=True, enable_gqa=True),
        (2, 4, 5, 4),
        (2, 2, 5, 4),
        (2, 2, 5, 4),
    ),
    "sdpa of grouped heads": (partial(sdpa, enable_gqa=True), (2, 4, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
    "sdpa of one head of keys": (partial(sdpa, enable_gqa=True), (2, 4, 5, 4), (2, 1, 3, 4), (2, 1, 3, 4)),
    "sdpa with dropout": (partial(sdpa, dropout_p=0.3), *CROSS),
    "sdpa of itself": (lambda x: sdpa(x, x, x), (2, 2, 5, 4)),
    "sdpa with a tangent of the queries alone": (
        lambda q: sdpa(q, q.detach()[:, :, :3], BIAS[:3, :1].expand(2, 2, 3, 4)),
        (2, 2, 5, 4),
    ),
    "sdpa with a tangent of the keys alone": (lambda k: sdpa(k.detach(), k, k.detach().sin()), (2, 2, 5, 4)),
    "sdpa with a tangent of the values alone": (lambda v: sdpa(v.detach(), v.detach(), v), (2, 2, 5, 4)),
    "sdpa of a broadcast batch": (
        lambda q, k, v: sdpa(q, k.expand(2, 2, 3, 4), v.expand(2, 2, 3, 4)),
        (2, 2, 5, 4),
        (1, 2, 3, 4),
        (1, 1, 3, 4),
    ),
    "sdpa of keys that broadcast by themselves": (sdpa, (2, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
    "sdpa of one projection": (
        lambda x: sdpa(*x.view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(2, 5, 8),
        (2, 5, 24),
    ),
    "sdpa of transposed heads": (
        lambda q, k, v: sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
        (2, 5, 2, 4),
        (2, 3, 2, 4),
        (2, 3, 2, 4),
    ),
    "sdpa of many tokens": (sdpa, (1, 1, 600, 4), (1, 1, 530, 4), (1, 1, 530, 4)),
    "sdpa by its plain kernel": (lambda q, k, v: by_kernel(SDPBackend.MATH, q, k, v), *CROSS),
    "attention by products": (
        lambda q, k, v: ((q @ k.transpose(-2, -1)) / 2 + BIAS).softmax(-1) @ v,
        *CROSS,
    ),
    "linear attention": (
        lambda q, k, v: torch.einsum(
            "bhqd,bhde->bhqe", q.softmax(-1), torch.einsum("bhkd,bhke->bhde", k.softmax(-2), v)
        ),
        *CROSS,
    ),
}
for _name, (_function, *_shapes) in FUSED.items():
    add("attention", _name, fragment(_function, *_shapes))


add(
    "attention",
    "sdpa by its flash kernel",
    fragment(lambda q, k, v: by_kernel(SDPBackend.FLASH_ATTENTION, q, k, v), *CROSS, equivalent=sdpa),
)
add(
    "attention",
    "sdpa with a mask of a class of its own",
    fragment(
        lambda q, k, v: sdpa(q, k, v, attn_mask=causal_lower_right(3, 5)),
        (2, 2, 3, 4),
        (2, 2, 5, 4),
        (2, 2, 5, 4),
        equivalent=lambda q, k, v: sdpa(q, k, v, attn_mask=torch.ones(3, 5, dtype=torch.bool).tril(2)),
    ),
    rounded=True,  # the class calls another kernel for plain tensors
)


def multi_head(
    *, need_weights: bool, batch_first: bool, masked: bool = False, cross: bool = False, **options: Any
) -> Any:
    def factory(generator: torch.Generator) -> Case:
        module = drawn(nn.MultiheadAttention(8, 2, batch_first=batch_first, **options), generator)
        masks: dict[str, Any] = {}
        tokens = 3 if cross else 5
        if masked:
            ignored = torch.zeros(2, tokens, dtype=torch.bool)
            ignored[1, -1] = True
            masks = {"key_padding_mask": ignored, "attn_mask": normal(generator, 5, tokens) > 1.5}
        other = normal(generator, 2, 3, 8)

        def function(z: Tensor, t: Tensor) -> Any:
            x = z * (1 + t[:, None, None])
            y = other * t[:, None, None] if cross else x
            if not batch_first:
                x, y = x.transpose(0, 1), y.transpose(0, 1)
            out, weights = module(x, y, y.sin(), need_weights=need_weights, **masks)
            return (out, weights) if need_weights else out

        return jump(function, generator, 2, 5, 8, module=module, times=1)

    return factory


add("attention", "MultiheadAttention", multi_head(need_weights=False, batch_first=True))
add("attention", "MultiheadAttention with weights", multi_head(need_weights=True, batch_first=True))
add("attention", "MultiheadAttention, batch second", multi_head(need_weights=False, batch_first=False))
add("attention", "MultiheadAttention with weights, batch second", multi_head(need_weights=True, batch_first=False))
add("attention", "MultiheadAttention with masks", multi_head(need_weights=False, batch_first=True, masked=True))
add(
    "attention",
    "MultiheadAttention with masks and weights",
    multi_head(need_weights=True, batch_first=True, masked=True),
)
add("attention", "MultiheadAttention across", multi_head(need_weights=False, batch_first=True, masked=True, cross=True))
add(
    "attention",
    "MultiheadAttention with a key of its own and dropout",
    multi_head(need_weights=False, batch_first=True, add_bias_kv=True, add_zero_attn=True, dropout=0.2),
)


@listed("attention")
def MultiheadAttention_of_itself(generator: torch.Generator) -> Case:
    """Query, key and value are one tensor, which takes a shorter way inside."""
    module = drawn(nn.MultiheadAttention(8, 2, batch_first=True), generator)
    return jump(lambda z: module(z, z, z, need_weights=False)[0], generator, 2, 5, 8, module=module, times=0)


def encoder(*, train: bool, frozen: bool = False, padded: bool = False, **options: Any) -> Any:
    def factory(generator: torch.Generator) -> Case:
        block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)
        module = drawn(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), generator).train(train)
        module.requires_grad_(not frozen)
        ignored = torch.zeros(2, 5, dtype=torch.bool)
        ignored[1, -2:] = padded
        keywords = {"src_key_padding_mask": ignored} if padded else {}
        return jump(lambda z, t: module(z + t[:, None, None], **keywords), generator, 2, 5, 8, module=module, times=1)

    return factory


add("attention", "TransformerEncoder", encoder(train=True, dropout=0.0))
add(
    "attention",
    "TransformerEncoder, norm first",
    encoder(train=True, norm_first=True, dropout=0.1, activation="gelu"),
    oracle=two_backwards,
)
add("attention", "TransformerEncoder eval", encoder(train=False))
add(  # without a graph torch takes a fused kernel for the whole layer, where it sees plain tensors
    "attention",
    "TransformerEncoder eval without a graph",
    encoder(train=False, frozen=True),
    oracle=two_backwards,
    gradient=False,
    rounded=True,
)
add("attention", "TransformerEncoder eval, norm first, padded", encoder(train=False, norm_first=True, padded=True))


@listed("attention")
def TransformerDecoder(generator: torch.Generator) -> Case:
    block = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    module, memory = drawn(nn.TransformerDecoder(block, 2), generator), normal(generator, 2, 3, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=F64)

    def function(z: Tensor, t: Tensor) -> Tensor:
        return module(z, memory * t[:, None, None], tgt_mask=causal, tgt_is_causal=True)

    return jump(function, generator, 2, 5, 8, module=module, times=1)


@listed("attention")
def TransformerDecoder_eval_norm_first(generator: torch.Generator) -> Case:
    block = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    module, memory = drawn(nn.TransformerDecoder(block, 1), generator).eval(), normal(generator, 2, 3, 8)
    return jump(lambda z: module(z, memory), generator, 2, 5, 8, module=module, times=0)
