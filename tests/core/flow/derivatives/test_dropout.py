"""One mask for value and tangent, the mask of the plain call, and no draw besides."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onestep_core as one
from tests.core.flow.derivatives.case import F64, Case, difference, drawn, jump, normal, two_backwards
from tests.core.flow.derivatives.checks import assert_close, copies, seeded
from tests.core.flow.derivatives.zoo.libraries import of

PURE: dict[str, Any] = {
    "Dropout": nn.Dropout(0.4),
    "Dropout in place": lambda x: nn.Dropout(0.4, inplace=True)(x * 1.0),
    "Dropout1d": lambda x: nn.Dropout1d(0.4)(x.flatten(2)).view_as(x),
    "Dropout2d": nn.Dropout2d(0.4),
    "Dropout3d": lambda x: nn.Dropout3d(0.4)(x[..., None])[..., 0],
    "dropout of a view": lambda x: F.dropout(x.transpose(1, 2), 0.4).transpose(1, 2),
    "native dropout": lambda x: torch.native_dropout(x, 0.4, True)[0],
    "stochastic depth": lambda x: x * (torch.rand(x.shape[0], 1, 1, 1) > 0.4),
    "a mask of bernoulli": lambda x: x * torch.empty(x.shape).bernoulli_(0.6) / 0.6,
    "a mask like the state": lambda x: x * torch.bernoulli(torch.full_like(x, 0.6)) / 0.6,
    "noise like the state": lambda x: x * torch.rand_like(x) * torch.randn_like(x).exp(),
    "a permutation": lambda x: x[torch.randperm(len(x))].flip(0) * x.new_empty(1).uniform_(),
}
"""Linear functions of the state: the tangent along ``v`` is the function of ``v`` with the same mask."""


@pytest.mark.parametrize("function", PURE.values(), ids=PURE)
def test_one_mask(function):
    z, v = normal(torch.Generator().manual_seed(0), 2, 9, 4, 5, 6).unbind(0)
    value, tangent = seeded(one.single_pass, function, (z,), (v,))
    after = torch.get_rng_state()
    assert torch.equal(value, seeded(function, z))
    assert torch.equal(torch.get_rng_state(), after), "the derivative draws other numbers than the plain call"
    assert_close(tangent, seeded(function, v), 1e-14, "tangent")
    again, _ = one.single_pass(function, (z,), (v,))
    assert not torch.equal(again, value), "each call draws its own mask"


def alpha(generator: torch.Generator, make: Any) -> Case:
    return jump(make(0.3), generator, 3, 4, 5, 5, times=0)


def attention(generator: torch.Generator, **masks: Any) -> Case:
    def function(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, **masks)

    primals, tangents = (tuple(normal(generator, 2, 2, 5, 4) for _ in range(3)) for _ in range(2))
    return Case(function, primals, tangents)


def multi_head(generator: torch.Generator, need_weights: bool) -> Case:
    module = drawn(nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True), generator)
    return jump(
        lambda z, t: module(z, z * t[:, None, None], z, need_weights=need_weights)[0],
        generator,
        2,
        5,
        8,
        module=module,
        times=1,
    )


def recurrent(generator: torch.Generator, kind: Any) -> Case:
    module = drawn(kind(3, 4, num_layers=3, dropout=0.4, batch_first=True), generator)
    return jump(lambda z: module(z)[0], generator, 2, 5, 3, module=module, times=0)


def encoder(generator: torch.Generator) -> Case:
    module = drawn(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, activation=F.gelu, batch_first=True), generator)
    return jump(module, generator, 2, 5, 8, module=module, times=0)


def label_dropout(generator: torch.Generator) -> Case:
    """In training diffusers' DiT replaces each label by "none" with the probability 0.1: at this seed some of 16."""
    module = drawn(
        of(
            "diffusers",
            "DiTTransformer2DModel",
            sample_size=4,
            in_channels=2,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            norm_num_groups=2,
            num_embeds_ada_norm=10,
            dropout=0.2,
        ),
        generator,
    ).train()
    label = torch.arange(16) % 10
    return jump(
        lambda z, t: module(z, 10 * t, class_labels=label).sample, generator, 16, 2, 4, 4, module=module, times=1
    )


NETWORKS: dict[str, Any] = {
    "AlphaDropout": (partial(alpha, make=nn.AlphaDropout), 1e-12),
    "FeatureAlphaDropout": (partial(alpha, make=nn.FeatureAlphaDropout), 1e-12),
    "RReLU": (partial(alpha, make=nn.RReLU), 1e-12),
    "attention": (attention, 1e-12),
    "attention, causal": (partial(attention, is_causal=True), 1e-12),
    "attention with a bias": (partial(attention, attn_mask=torch.eye(5, dtype=F64)), 1e-12),
    "MultiheadAttention": (partial(multi_head, need_weights=False), 1e-12),
    "MultiheadAttention with weights": (partial(multi_head, need_weights=True), 1e-12),
    "RNN": (partial(recurrent, kind=nn.RNN), 1e-12),
    "GRU": (partial(recurrent, kind=nn.GRU), 1e-12),
    "LSTM": (partial(recurrent, kind=nn.LSTM), 1e-12),
    "TransformerEncoderLayer": (encoder, 1e-12),
    "label dropout of DiTTransformer2DModel": (label_dropout, 1e-6),
}


@pytest.mark.parametrize(("factory", "tolerance"), NETWORKS.values(), ids=NETWORKS)
def test_one_mask_in_networks(factory, tolerance):
    """The oracle is reverse mode, twice: ``torch.func.jvp`` may draw another mask than the plain call.

    (A mask is drawn in the order of memory, and forward mode may lay an operand out otherwise.)
    """
    torch.manual_seed(0)
    case = factory(torch.Generator().manual_seed(1))
    value, tangent = seeded(one.single_pass, case.function, case.primals, case.tangents)
    after = torch.get_rng_state()
    plain = seeded(case.function, *case.primals)
    assert torch.equal(torch.get_rng_state(), after), "the derivative draws other numbers than the plain call"
    assert_close(copies(value), copies(plain), 0.0, "value")
    assert_close(tangent, seeded(two_backwards, case.function, case.primals, case.tangents), tolerance, "tangent")
    other = one.single_pass(case.function, case.primals, case.tangents)
    assert not torch.equal(other[1], tangent), "each call draws its own mask"


@pytest.mark.parametrize("name", ["MultiheadAttention", "LSTM"])
def test_the_oracle_itself_has_one_mask(name):
    """Two backward passes against a difference, whose calls all have one seed."""
    torch.manual_seed(0)
    case = NETWORKS[name][0](torch.Generator().manual_seed(1))
    expected = difference(partial(seeded, case.function), case.primals, case.tangents, step=1e-3)
    assert_close(
        copies(seeded(two_backwards, case.function, case.primals, case.tangents)), copies(expected), 1e-9, "tangent"
    )


def test_evaluation_has_no_mask():
    layer = nn.Dropout(0.5).eval()
    z, v = torch.randn(2, 4, 5, dtype=F64)
    value, tangent = one.single_pass(layer, (z,), (v,))
    assert torch.equal(value, z)
    assert torch.equal(tangent, v)


def test_everything_dropped():
    z, v = torch.randn(2, 4, 5, dtype=F64)
    _, tangent = one.single_pass(nn.Dropout(1.0), (z,), (v,))
    assert tangent.eq(0).all()


def line(z, t):
    return F.dropout(z, 0.5) * t[:, None].sin()


TWICE = {
    "two_pass": one.two_pass,
    "central_difference": partial(one.central_difference, step=1e-4),
    "derivative_along": one.derivative_along(lambda t: (t[:, None] * torch.ones(4, 6, dtype=F64), t), 1e-4),
}


@pytest.mark.parametrize("way", TWICE.values(), ids=TWICE)
def test_evaluations_of_their_own_draw_one_mask(way):
    """``d/dt m t sin(t) = m (sin(t) + t cos(t))`` with the mask ``m`` of the value."""
    torch.manual_seed(0)
    t = torch.rand(4, dtype=F64) + 0.5
    z = t[:, None] * torch.ones(4, 6, dtype=F64)
    value, tangent = seeded(way, line, (z, t), (torch.ones_like(z), torch.ones_like(t)))
    after = torch.get_rng_state()
    plain = seeded(line, z, t)
    assert torch.equal(torch.get_rng_state(), after), "the derivative draws other numbers than the plain call"
    assert torch.equal(value, plain)
    mask = plain / (z * t[:, None].sin())
    assert 0 < (mask == 0).sum() < mask.numel()
    assert_close(tangent, mask * (t.sin() + t * t.cos())[:, None], 1e-7, "tangent")
