"""Forward mode, plain and compiled: tangents, and gradients through them; no product with a tangent of zeros."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import onestep_core as one
from tests.core.flow.derivatives.checks import assert_close

torch.manual_seed(0)
WEIGHT = torch.randn(6, 6, dtype=torch.float64)
KERNELS = {n: torch.randn(6, 6, *[3] * n, dtype=torch.float64) for n in (1, 2, 3)}
SHIFT = torch.randn(6, dtype=torch.float64)
CONVOLUTION = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=3, dtype=torch.float64)
TRANSPOSED = nn.ConvTranspose2d(6, 6, 3, stride=2, output_padding=1, groups=2, dilation=2, dtype=torch.float64)
MASK = torch.rand(4, 4) > 0.4
MASK[1] = False
BIAS = torch.randn(4, 4, dtype=torch.float64)
KEYS = torch.randn(2, 4, 6, dtype=torch.float64)


def grown(x: Tensor, axes: int) -> Tensor:
    """``[batch, 6, 4, ...]`` of ``[batch, 4, 6]``, with ``axes`` axes of place."""
    x = x.mT
    factors = (x.sin(), x.cos())
    for axis in range(axes - 1):
        x = x[..., None] * factors[axis].view(*x.shape[:2], *[1] * (axis + 1), 4)
    return x


def attended(**options: Any) -> Callable[[Tensor], Tensor]:
    """Attention of three heads of two channels."""

    def call(x: Tensor) -> Tensor:
        q, k, v = ((x @ WEIGHT.roll(n, 0)).unflatten(-1, (3, 2)).transpose(1, 2) for n in range(3))
        return F.scaled_dot_product_attention(q, k, v, **options)

    return call


def grouped(x: Tensor) -> Tensor:
    """Two heads that share one key."""
    q, k, v = x.unflatten(-1, (2, 3)).transpose(1, 2), x[:, None, :, :3].sin(), x[:, None, :, 3:]
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def own_mask(x: Tensor) -> Tensor:
    """A mask that moves."""
    x = x[:, None]
    return F.scaled_dot_product_attention(x, x.cos(), x.sin(), attn_mask=x @ x.mT)


attention = nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
layer = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, activation="gelu", batch_first=True, dtype=torch.float64)

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, WEIGHT, SHIFT).sin(),
    "linear, no shift": lambda x: F.linear(x, WEIGHT).sin(),
    "linear, keywords": lambda x: F.linear(x, weight=WEIGHT, bias=SHIFT).sin(),
    "linear, the weight moves": lambda x: F.linear(x[0], x[1] * WEIGHT[:4]).sin(),
    "linear, the shift moves": lambda x: F.linear(x, WEIGHT, x[0, 0]).sin(),
    "a constant through a weight that moves": lambda x: WEIGHT @ x[0].mT,
    "matmul": lambda x: torch.matmul(x.mT, x.sin()) @ WEIGHT,
    "bmm": lambda x: torch.bmm(x, x.mT.cos()).bmm(x),
    "mm": lambda x: torch.mm(x[0], WEIGHT).mm(x[1].mT),
    "vector": lambda x: x.sin() @ SHIFT,
    "baddbmm": lambda x: torch.baddbmm(x.sin(), x @ WEIGHT, x[:, :1].mT @ x[:, 1:2], beta=0.5, alpha=2),
    "baddbmm, an empty sum": lambda x: torch.baddbmm(x.new_empty(1), x, x.mT, beta=0, alpha=0.3),
    "einsum": lambda x: torch.einsum("bnc,cd,bmd->bnm", x, WEIGHT, x.sin()),
    "einsum, lists": lambda x: torch.einsum(x, [0, 1, 2], WEIGHT, [2, 3], [0, 3, 1]),
    "conv1d": lambda x: F.conv1d(grown(x, 1), KERNELS[1], SHIFT, padding=1).sin(),
    "conv2d": lambda x: F.conv2d(grown(x, 2), KERNELS[2], bias=SHIFT, stride=2, padding="valid", dilation=1).sin(),
    "conv2d, groups": lambda x: F.conv2d(grown(x, 2), KERNELS[2][:, :2], None, 1, 1, 1, 3).sin(),
    "conv2d, the kernel moves": lambda x: F.conv2d(grown(x, 2), x[0, 0].sin().view(6, 1, 1, 1) * KERNELS[2]),
    "Conv2d": lambda x: CONVOLUTION(grown(x, 2)).sin(),
    "ConvTranspose2d": lambda x: TRANSPOSED(grown(x, 2)).sin(),
    "conv3d": lambda x: F.conv3d(grown(x, 3), KERNELS[3], padding=1).sin(),
    "conv_transpose1d": lambda x: F.conv_transpose1d(grown(x, 1), KERNELS[1], SHIFT, stride=2).sin(),
    "conv_transpose2d": lambda x: F.conv_transpose2d(grown(x, 2), KERNELS[2], SHIFT, output_padding=1, stride=2).sin(),
    "conv_transpose3d": lambda x: F.conv_transpose3d(grown(x, 3), KERNELS[3]).sin(),
    "attention": attended(),
    "attention, causal": attended(is_causal=True),
    "attention, scale": attended(scale=0.3),
    "attention, mask": attended(attn_mask=MASK | torch.eye(4, dtype=torch.bool)),
    "attention, sum": attended(attn_mask=BIAS),
    "attention, groups": grouped,
    "attention, the mask moves": own_mask,
    "attention, constant keys": lambda x: F.scaled_dot_product_attention(x, KEYS, KEYS.sin()),
    "layer_norm": lambda x: F.layer_norm(x, (4, 6)).sin(),
    "layer_norm, weight and shift": lambda x: F.layer_norm(x, (6,), SHIFT, SHIFT.sin()).sin(),
    "torch.batch_norm": lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False).sin(),
    "torch.instance_norm": lambda x: torch.instance_norm(x, *KEYS[:, :, 0], None, None, True, 0.1, 1e-5, False).sin(),
    "torch.layer_norm": lambda x: torch.layer_norm(x, (6,), SHIFT).sin(),
    "group_norm": lambda x: F.group_norm(x, 2, *KEYS[:, :, 0]).sin(),
    "batch_norm of the batch": lambda x: F.batch_norm(x, None, None, *KEYS[:, :, 0], training=True).sin(),
    "batch_norm in evaluation": lambda x: F.batch_norm(x, KEYS[0, :, 0], KEYS[1, :, 0] ** 2, KEYS[0, :, 1]).sin(),
    "instance_norm": lambda x: F.instance_norm(x, weight=KEYS[0, :, 0]).sin(),
    "rms_norm": lambda x: F.rms_norm(x, (6,), SHIFT).sin(),
    "glu": F.glu,
    "unflatten": lambda x: x.unflatten(-1, (3, -1)).sin(),
    "MultiheadAttention": lambda x: attention(x, x.sin(), x, need_weights=False)[0],
    "MultiheadAttention, weights": lambda x: attention(x, x.sin(), x)[0],
    "TransformerDecoderLayer": lambda x: layer(x, x.sin()),
}


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    return x, torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)


def compiled(call: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend=backend)


@pytest.mark.parametrize("name", CASES)
def test_value_tangent_and_gradient_are_those_of_a_plain_run(name):
    x, v = problem()
    x.requires_grad_()

    def loss(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, tangent = one.single_pass(CASES[name], (x,), (v,))
        return value, tangent, (value - tangent).square().sum()

    expected, found = loss(x, v), compiled(loss)(x, v)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-12, "value and tangent")
    assert not found[1].requires_grad
    assert_close(torch.autograd.grad(found[2], x)[0], torch.autograd.grad(expected[2], x)[0], 1e-10, "gradient")


@pytest.mark.parametrize("name", CASES)
def test_training_through_the_derivative(name):
    """``with_graph``: compiled, plain, and by differences, of which the gradient is not exact."""
    x, v = problem()
    x.requires_grad_()

    def loss(x: Tensor, v: Tensor) -> Tensor:
        value, tangent = one.with_graph(CASES[name], (x,), (v,))
        return (value.cos() * tangent).sum()

    plain, found = (torch.autograd.grad(call(x, v), x)[0] for call in (loss, compiled(loss)))
    assert_close(found, plain, 1e-10, "compiled")
    direction, step = problem()[1].roll(1, 0), 1e-6
    with torch.no_grad():
        slope = (loss(x + step * direction, v) - loss(x - step * direction, v)) / (2 * step)
    assert_close((plain * direction).sum(), slope, 1e-6, "differences")


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("name", ["linear", "conv1d", "attention, causal", "einsum"])
def test_inside_of_transforms(name, transform):
    x, v = problem()

    def energy(x: Tensor, v: Tensor) -> Tensor:
        value, tangent = one.with_graph(CASES[name], (x[None],), (v[None],))
        return (value * tangent).sum()

    calls: dict[str, Callable[..., Any]] = {
        "vmap": torch.func.vmap(energy),
        "grad": lambda x, v: torch.func.grad(energy)(x[0], v[0]),
        "jvp": lambda x, v: torch.func.jvp(lambda x: energy(x, v[0]), (x[0].clone(),), (v[1].clone(),))[1],
    }
    assert_close(compiled(calls[transform])(x, v), calls[transform](x, v), 1e-10, transform)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "det": lambda x: torch.linalg.det(x[:, :, :4]),
    "slogdet": lambda x: x[:, :, :4].slogdet()[1],
    "solve": lambda x: torch.linalg.solve(x[:, :, :4], x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_gradient_that_torch_gets_wrong_is_refused(name):
    x, v = problem()
    with pytest.raises(one.UnsupportedDerivative, match="wrong"):
        one.with_graph(REFUSED[name], (x.requires_grad_(),), (v,))
    found, expected = (call(REFUSED[name], (x,), (v,)) for call in (one.two_pass, one.single_pass))
    assert_close(found, expected, 1e-10, "without a gradient it is right")


def test_a_query_without_a_key():
    """Torch's own gradient through the tangent is NaN there."""
    x, v = problem()
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        value, tangent = one.with_graph(attended(attn_mask=MASK), (x,), (v,))
        return (value.cos() * tangent).sum()

    fast, direction, step = compiled(loss), v.roll(1, 0), 1e-6
    (gradient,) = torch.autograd.grad(fast(x), x)
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert_close((gradient * direction).sum(), slope, 1e-6, "differences")


def test_no_product_with_a_tangent_of_zeros():
    layers = nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 6), nn.Conv1d(4, 4, 3)
    module = nn.Sequential(*layers).double()
    counts: collections.Counter[str] = collections.Counter()

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        counts.update(getattr(node.target, "_opname", "") for node in graph.graph.nodes)
        return graph.forward

    x, v = problem()
    call = compiled(lambda x, v: one.single_pass(module, (x,), (v,)), aot_autograd(fw_compiler=count))
    call(x, v)
    assert counts["mm"] + counts["addmm"] == 6, "three layers, each a value and a tangent"
    assert counts["convolution"] == 2, "a value and a tangent"


def test_below_a_compiled_function_that_runs_as_written():
    """Under a dispatch mode torch does not compile, but it listens."""
    module = nn.Linear(6, 6, dtype=torch.float64)
    call = torch.compile(lambda x, v: one.single_pass(module, (x,), (v,)), backend="aot_eager")
    with FlopCounterMode(display=False):
        found = call(*problem())
    x, v = problem()
    assert_close(found, one.single_pass(module, (x,), (v,)), 1e-12, "value and tangent")
