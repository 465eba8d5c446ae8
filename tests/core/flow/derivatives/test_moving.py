"""``moving=n``: the tangent of the first ``n`` rows, zeros below, the value of all rows.

Where a function mixes rows, the given tangents of rows from ``n`` on count as zero: the caller says that these rows do
not move. So with ``m`` the projection on the first ``n`` rows the tangent is ``m J m v`` in each case.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import onestep_core as one
from onestep_adapters.backbones import DiT
from tests.core.flow.derivatives.case import (
    F64,
    Case,
    Oracle,
    differentiable,
    drawn,
    forward_mode,
    jump,
    normal,
    two_backwards,
)
from tests.core.flow.derivatives.checks import QUIET, assert_close, copies, error, expected_tangent, gradients, seeded
from tests.core.flow.derivatives.checks import with_gradient as collecting
from tests.core.flow.derivatives.programs import Program
from tests.core.flow.derivatives.test_programs import drawn as settings
from tests.core.flow.derivatives.zoo import ZOO
from tests.core.flow.derivatives.zoo.backbones import UNet
from tests.core.flow.derivatives.zoo.libraries import of

pytestmark = QUIET

BATCH = 5


def first(tree: Any, count: int) -> Any:
    """The first rows of every tensor, zeros below."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().clone()
        leaf[count:] = 0
        return leaf

    return tree_map(cut, tree)


def check(
    build: Any, oracle: Oracle, count: int, tolerance: float, *, whole: bool = False, rounded: bool = False
) -> None:
    """Value, tangent and gradients with ``moving=count``; with ``whole`` against the tangent of all rows too."""
    plain, reference, case = build(), build(), build()
    collecting((plain.primals, case.primals))
    value = seeded(plain.function, *plain.primals)
    masked = reference._replace(tangents=tuple(None if v is None else first(v, count) for v in reference.tangents))
    tangent = first(expected_tangent(masked, oracle), count)
    given = copies(case.tangents)
    got_value, got_tangent = seeded(one.single_pass, case.function, case.primals, case.tangents, moving=count)
    assert_close(copies(got_value), copies(value), 1e-13 if rounded else 0.0, "value")
    assert_close(copies(got_tangent), tangent, tolerance, "tangent")
    for leaf in tree_leaves(got_tangent):
        assert bool(leaf[count:].eq(0).all()), "the tangent of a row that does not move"
    assert_close(gradients(case, got_value), gradients(plain, value), 1e-10, "gradient")
    assert_close(copies(case.tangents), given, 0.0, "the given tangent")
    if whole:
        rows = first(expected_tangent(build(), oracle), count)
        assert_close(copies(got_tangent), rows, tolerance, "tangent of the whole")


def dit(generator: torch.Generator) -> Case:
    """The classes of the whole batch are bound to the network."""
    module = drawn(DiT((1, 4, 4), width=16, depth=2, heads=2, times=2, classes=3, frequencies=4), generator)
    label = torch.arange(BATCH) % 4
    return jump(partial(module, label=label), generator, BATCH, 1, 4, 4, module=module)


def unet(generator: torch.Generator) -> Case:
    module = drawn(UNet(), generator)
    return jump(module, generator, BATCH, 1, 8, 8, module=module)


def conditional_unet(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "UNet2DConditionModel",
            sample_size=8,
            in_channels=2,
            out_channels=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=6,
            attention_head_dim=2,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            layers_per_block=1,
        ),
        generator,
    )
    text = normal(generator, BATCH, 3, 6)
    return jump(lambda z, t: module(z, t, text).sample, generator, BATCH, 2, 8, 8, module=module, times=1)


def square(generator: torch.Generator) -> Case:
    """Batch, tokens and channels are all of one size, so sizes do not tell which axis is which."""
    block = nn.TransformerEncoderLayer(5, 1, 5, dropout=0.0, batch_first=True, activation="gelu")
    module = drawn(block, generator)
    return jump(
        lambda z, t: module(z + t[:, None, None]).transpose(1, 2), generator, BATCH, 5, 5, module=module, times=1
    )


def batch_second(generator: torch.Generator) -> Case:
    """Sequence first, as in the original transformer and in recurrent networks."""
    attention = nn.MultiheadAttention(4, 2)
    module = drawn(nn.ModuleDict({"attention": attention, "recurrent": nn.GRU(4, 4)}), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        x = (z * t[:, None, None]).permute(1, 0, 2)
        x = x + module["attention"](x, x, x, need_weights=False)[0]
        return module["recurrent"](x)[0].transpose(0, 1)

    return jump(function, generator, BATCH, 3, 4, module=module, times=1)


def convolutional(generator: torch.Generator) -> Case:
    module = drawn(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1)), generator
    )
    condition = normal(generator, BATCH, 2, 1, 1)
    return jump(
        lambda z, t: module((z * t[:, None, None, None] + condition).to(memory_format=torch.channels_last)),
        generator,
        BATCH,
        2,
        5,
        5,
        module=module,
        times=1,
    )


def with_norm(train: bool, generator: torch.Generator) -> Case:
    module = drawn(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 4)), generator).train(
        train
    )
    return jump(lambda z, t: module(z * t[:, None]), generator, BATCH, 4, module=module, times=1)


def with_dropout(generator: torch.Generator) -> Case:
    module = drawn(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.4), nn.SiLU(), nn.Linear(16, 4)), generator)
    return jump(module, generator, BATCH, 4, module=module, times=0)


def guided(generator: torch.Generator) -> Case:
    """The batch is doubled and halved again, so that rows ``n`` to ``BATCH + n`` lie between those that move."""
    module, label = drawn(nn.Linear(4, 4), generator), normal(generator, 2 * BATCH, 4)

    def function(z: Tensor, t: Tensor) -> Tensor:
        one_, two = (module(torch.cat([z, z]) * torch.cat([t, t])[:, None]) * label).sin().chunk(2)
        return one_ + 3 * (two - one_)

    return jump(function, generator, BATCH, 4, module=module, times=1)


def per_sample_weights(generator: torch.Generator) -> Case:
    """Weights of each sample are closed over: products, and a grouped convolution with the batch in its channels."""
    weight, kernel = normal(generator, BATCH, 4, 4), normal(generator, BATCH * 4, 1, 3)

    def function(z: Tensor) -> Tensor:
        x = torch.bmm(z, weight) + torch.einsum("bnc,bcd->bnd", z, weight.sin()).tanh()
        folded = F.conv1d(x.transpose(1, 2).reshape(1, BATCH * 4, 3), kernel, padding=1, groups=BATCH * 4)
        return folded.view(BATCH, 4, 3).transpose(1, 2)

    return jump(function, generator, BATCH, 3, 4, times=0)


def masked(generator: torch.Generator) -> Case:
    """Masks and biases of each sample."""
    bias = normal(generator, BATCH, 1, 3, 3)
    kept = torch.rand(BATCH, 3, 1, generator=generator) > 0.3

    def function(z: Tensor) -> Tensor:
        q = (z * kept)[:, None]
        return F.scaled_dot_product_attention(q, q, q.sin(), attn_mask=bias)[:, 0].masked_fill(kept, 0.5)

    return jump(function, generator, BATCH, 3, 4, times=0)


def flattened(generator: torch.Generator) -> Case:
    module = drawn(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)), generator)
    return jump(
        lambda z: module(z.flatten(0, 1)).view(BATCH, 3, 4).sin(), generator, BATCH, 3, 4, module=module, times=0
    )


def folded_the_other_way(generator: torch.Generator) -> Case:
    """Tokens before samples: a sample's rows are no longer together."""
    module = drawn(nn.Linear(4, 4), generator)
    return jump(
        lambda z: module(z.transpose(0, 1).reshape(3 * BATCH, 4)).view(3, BATCH, 4).transpose(0, 1).tanh(),
        generator,
        BATCH,
        3,
        4,
        module=module,
        times=0,
    )


def heads_in_the_batch(generator: torch.Generator) -> Case:
    """As in the older attention of diffusers: batch times heads."""

    def function(z: Tensor) -> Tensor:
        x = z.view(BATCH, 3, 2, 2).permute(0, 2, 1, 3).reshape(2 * BATCH, 3, 2)
        weights = torch.baddbmm(torch.empty(2 * BATCH, 3, 3, dtype=F64), x, x.mT, beta=0, alpha=0.7).softmax(-1)
        return torch.bmm(weights, x).view(BATCH, 2, 3, 2).permute(0, 2, 1, 3).reshape(BATCH, 3, 4)

    return jump(function, generator, BATCH, 3, 4, times=0)


def row_by_row(generator: torch.Generator) -> Case:
    module = drawn(nn.Linear(4, 4), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        out = torch.zeros(BATCH, 4, dtype=F64)
        for i in range(len(z)):
            out[i] = module(z[i]).sin() * t[i]
        return out * torch.stack([module(row) for row in z.unbind(0)])

    return jump(function, generator, BATCH, 4, module=module, times=1)


def written(generator: torch.Generator) -> Case:
    """In-place writes into tensors of the whole batch, with rows in views."""
    condition = normal(generator, BATCH, 4)

    def function(z: Tensor) -> Tensor:
        y = condition.clone()
        y += z
        y[:, :2].mul_(z[:, 2:])
        y[1:3].add_(1.0)
        y.t()[0].sin_()
        out = torch.empty(BATCH, 6, dtype=F64)
        out[:, 2:] = y * z
        out[:, :2] = condition[:, :2]
        return out.cumsum(1)

    return jump(function, generator, BATCH, 4, times=0)


def independent(generator: torch.Generator) -> Case:
    """Parts that do not depend on the state, of the batch's size and broadcast."""
    weight, condition = normal(generator, 4), normal(generator, BATCH, 1)
    return jump(
        lambda z, t: z * weight + condition.expand(BATCH, 4) * t[:, None] + torch.zeros(BATCH, 4) + z.new_ones(1, 4),
        generator,
        BATCH,
        4,
        times=1,
    )


def trees(generator: torch.Generator) -> Case:
    """Some arguments have no tangent, and outputs are many."""
    condition = normal(generator, BATCH, 4)

    def function(state: dict[str, Tensor], t: Tensor) -> dict[str, Any]:
        return {"a": state["z"] * t[:, None], "b": [t.sin(), condition.sin()], "c": (condition * state["z"]).argmax(1)}

    z, v = normal(generator, BATCH, 4), normal(generator, BATCH, 4)
    return Case(function, ({"z": z}, torch.rand(BATCH, generator=generator, dtype=F64)), ({"z": v}, None))


SEPARATE: dict[str, Any] = {
    "DiT": (dit, forward_mode),
    "UNet": (unet, forward_mode),
    "square": (square, forward_mode),
    "batch second": (batch_second, forward_mode),
    "convolutional": (convolutional, two_backwards),
    "batch norm in evaluation": (partial(with_norm, False), forward_mode),
    "dropout": (with_dropout, forward_mode),
    "guided": (guided, forward_mode),
    "weights of each sample": (per_sample_weights, forward_mode),
    "masks of each sample": (masked, forward_mode),
    "flattened": (flattened, forward_mode),
    "folded the other way": (folded_the_other_way, forward_mode),
    "heads in the batch": (heads_in_the_batch, forward_mode),
    "row by row": (row_by_row, forward_mode),
    "written": (written, forward_mode),
    "independent": (independent, forward_mode),
    "trees": (trees, forward_mode),
}
"""No row depends on another."""


def mixing(function: Any) -> Any:
    return lambda generator: jump(function, generator, BATCH, 4, times=0)


ORDER = torch.tensor([3, 0, 4, 1, 2])
MIXED: dict[str, Any] = {
    "batch norm in training": (partial(with_norm, True), two_backwards),
    "mean": (mixing(lambda z: z - z.mean(0, keepdim=True)), forward_mode),
    "mean and variance": (mixing(lambda z: (z - z.mean(0)) / z.std(0)), forward_mode),
    "mean of all": (mixing(lambda z: z * z.mean() + z.sum()), forward_mode),
    "roll": (mixing(lambda z: z.roll(1, 0).sin() * z), forward_mode),
    "flip": (mixing(lambda z: z.flip(0).sin()), forward_mode),
    "a permutation": (mixing(lambda z: z[ORDER].sin() * z), forward_mode),
    "a permutation and back": (
        mixing(lambda z: (z[ORDER] * torch.arange(BATCH)[:, None]).sin()[ORDER.argsort()]),
        forward_mode,
    ),
    "a few rows": (mixing(lambda z: z[[0, 4]].sum(0) * z[-1] + z[1:4].sin().sum(0) + z[0] * z), forward_mode),
    "sort": (mixing(lambda z: z.sort(0).values.sin()), forward_mode),
    "softmax": (mixing(lambda z: z.softmax(0)), forward_mode),
    "cumsum": (mixing(lambda z: z.cumsum(0).sin()), forward_mode),
    "gram": (mixing(lambda z: (z @ z.t()).softmax(-1) @ z), forward_mode),
    "attention among samples": (
        mixing(lambda z: F.scaled_dot_product_attention(z[None], z[None], z[None].sin())[0]),
        forward_mode,
    ),
    "product with the transposed": (mixing(lambda z: z @ (z.t() @ z)), forward_mode),
    "transposed": (lambda generator: jump(lambda z: z.t().sin() * z, generator, 4, 4, times=0), forward_mode),
    "maximum over the batch": (mixing(lambda z: z / z.amax(0) + z.max()), forward_mode),
    "norm over the batch": (mixing(lambda z: z / z.norm(dim=0)), forward_mode),
    "scatter": (mixing(lambda z: torch.zeros_like(z).index_add(0, ORDER % 2, z)[ORDER % 2].sin()), forward_mode),
    "interpolation between samples": (mixing(lambda z: torch.lerp(z, z.roll(2, 0), 0.3).sin()), forward_mode),
    "reshaped across rows": (mixing(lambda z: z.reshape(4, BATCH).softmax(0).reshape(BATCH, 4)), forward_mode),
    "rows in the loop": (mixing(lambda z: _running(z)), forward_mode),
    "rows written": (mixing(lambda z: _shifted(z)), forward_mode),
    "convolution over the batch": (
        mixing(lambda z: F.conv1d(z.t()[None], torch.ones(4, 4, 3, dtype=F64), padding=1)[0].t().sin()),
        forward_mode,
    ),
    "queue of samples": (mixing(lambda z: torch.cat([z.roll(1, 0), z]).view(2, BATCH, 4).prod(0)), forward_mode),
    "interleaved": (mixing(lambda z: z.repeat_interleave(2, 0)[:BATCH].sin() * z), forward_mode),
    "repeated": (mixing(lambda z: z.repeat(2, 1)[2 : 2 + BATCH].sin() * z), forward_mode),
}
"""A row depends on others."""


def _running(z: Tensor) -> Tensor:
    state, states = torch.zeros(4, dtype=F64), []
    for row in z:
        state = (state + row).tanh()
        states.append(state)
    return torch.stack(states)


def _shifted(z: Tensor) -> Tensor:
    y = z * 1.0
    y[2:] += z[:3]
    y[0] = z[4]
    return y.sin()


COUNTS = [0, 1, 3, BATCH]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", SEPARATE)
def test_rows_apart(name, count):
    factory, oracle = SEPARATE[name]
    check(partial(build, factory), oracle, count, 1e-12, whole=True)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", MIXED)
def test_rows_that_mix(name, count):
    factory, oracle = MIXED[name]
    check(partial(build, factory), oracle, min(count, 4) if name == "transposed" else count, 1e-12)


def test_rows_of_a_network_of_diffusers():
    check(partial(build, conditional_unet), two_backwards, 2, 1e-6, whole=True)


def build(factory: Any) -> Case:
    torch.manual_seed(0)
    return factory(torch.Generator().manual_seed(1))


def rows(tree: Any) -> set[int]:
    return {leaf.shape[0] if leaf.ndim else 0 for leaf in tree_leaves(tree) if differentiable(leaf)}


def one_batch(name: str) -> bool:
    """Whether all that moves, and all that comes out, has one number of rows, of at least two."""
    case = ZOO[name].build()
    moving = rows([v for v in case.tangents if v is not None])
    if len(moving) != 1 or min(moving) < 2 or ZOO[name].refusable:
        return False
    out = tree_leaves(case.function(*case.primals))
    return rows(out) == moving and all(leaf.ndim for leaf in out)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name for name, entry in ZOO.items() if entry.group not in ("activations", "diffusers")]
)
def test_rows_of_the_zoo(name):
    """Whatever the rows are there: samples, tokens, or lines of a matrix."""
    if not one_batch(name):
        pytest.skip("not one batch")
    entry = ZOO[name]
    if entry.gradient:
        check(entry.build, entry.oracle, 1, entry.tolerance, rounded=entry.rounded)


@settings(60)
@given(st.data())
def test_rows_of_programs(data):
    """Random programs on a batch of three rows; outputs of three rows are compared."""

    def choose(options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    shapes, count = [(3, 4), (3, 2, 4), (3,), (3, 1), (3, 3)], choose([1, 2])
    generator = torch.Generator().manual_seed(0)
    primals = tuple(normal(generator, *choose(shapes)) for _ in range(choose([1, 2])))
    tangents = tuple(normal(generator, *x.shape) for x in primals)
    program = Program(choose, primals, choose(range(1, 8)))
    note(f"{program}; moving={count}")
    expected = forward_mode(program, primals, tuple(first(v, count) for v in tangents))
    value, tangent = one.single_pass(program, primals, tangents, moving=count)
    scale = max([1.0, *(float(x.abs().max()) for x in expected if x.numel())])
    for a, b, c, e in zip(value, program(*primals), tangent, expected, strict=True):
        assert torch.equal(a, b)
        if e.ndim and len(e) == 3 and bool(e.isfinite().all()):
            off = error(c, first(e, count), scale=scale)
            assert off <= (1e-4 if program.approximate else 1e-10), f"{off:.1e} off"


@pytest.mark.parametrize("count", [-1, BATCH + 1])
def test_a_count_that_is_none_is_refused(count):
    z, v = normal(torch.Generator().manual_seed(0), 2, BATCH, 4).unbind(0)
    with pytest.raises(one.ConfigError, match=f"moving = {count}"):
        one.single_pass(torch.sin, (z,), (v,), moving=count)
