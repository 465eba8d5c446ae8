"""``single_pass`` under autocast, inside other transforms and compilation, in threads; and what it keeps."""

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

import onestep_core as one
from onestep_adapters.backbones import MLP, ConvNet, DiT
from tests.core.flow.derivatives.case import F64, Case, drawn, forward_mode, jump, normal
from tests.core.flow.derivatives.checks import assert_close, copies, error, gradients, outcome, seeded
from tests.core.flow.derivatives.zoo.backbones import UNet

_DIT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "times": 2, "frequencies": 4}


def made(make: Any, *shape: int, dtype: torch.dtype = F64) -> Case:
    """A backbone with its point and direction, in one dtype."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    module = drawn(make(), generator, dtype=dtype, by=0.1).eval()
    case = jump(module, generator, *shape, module=module)
    return case._replace(
        primals=tuple(x.to(dtype) for x in case.primals), tangents=tuple(x.to(dtype) for x in case.tangents)
    )


NETWORKS: dict[str, Any] = {
    "MLP": partial(made, lambda: MLP((3,), width=16, depth=2, times=2), 4, 3),
    "ConvNet": partial(made, lambda: ConvNet((1, 4, 4), width=8, depth=2, times=2, frequencies=4), 4, 1, 4, 4),
    "DiT": partial(made, lambda: DiT((1, 4, 4), **_DIT), 4, 1, 4, 4),
}
"""Networks that every transform takes."""


class Encoder(nn.Module):
    """Layer norms, multi-head attention and a final layer norm, which autocast runs in float32."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.last = nn.LayerNorm(16)

    def forward(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.last(self.body(z + t[:, None, None]) * (1 + s[:, None, None]))


LOW: dict[str, Any] = {
    **NETWORKS,
    "UNet": partial(made, lambda: UNet(width=8), 4, 1, 8, 8),
    "encoder": partial(made, Encoder, 4, 6, 16),
}


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", LOW)
def test_autocast(name):
    """The value is that of the plain call, bit for bit; the tangent is that of float32 to the digits of bfloat16."""
    case = LOW[name](dtype=torch.float32)
    expected = forward_mode(case.function, case.primals, case.tangents)
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.function(*case.primals)
        value, tangent = one.single_pass(case.function, case.primals, case.tangents)
        _, lossless = one.single_pass(lambda *x: case.function(*x).float(), case.primals, case.tangents)
    assert value.dtype == plain.dtype
    assert torch.equal(value, plain)
    assert tangent.dtype in (value.dtype, torch.float32)
    assert lossless.dtype == torch.float32
    assert not tangent.requires_grad
    for found in (tangent, lossless):
        assert relative(found, expected) < 0.02
    parameters = list(case.module.parameters())
    found, given = (
        torch.autograd.grad(out.float().square().sum(), parameters, allow_unused=True) for out in (value, plain)
    )
    for a, b in zip(found, given, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["DiT", "UNet"])
def test_autocast_around_the_network_alone(name):
    """As a wrapper of a network does it: the derivative itself runs outside."""
    case = LOW[name](dtype=torch.float32)
    function = torch.autocast("cpu", torch.bfloat16)(case.function)
    value, tangent = one.single_pass(function, case.primals, case.tangents)
    assert torch.equal(value, function(*case.primals))
    assert relative(tangent, forward_mode(case.function, case.primals, case.tangents)) < 0.02


def test_parts_in_float32_within_autocast():
    """A region without autocast has a tangent of float32 with the digits of float32."""
    case = LOW["MLP"](dtype=torch.float32)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return case.function(z, t, s)

    expected = forward_mode(case.function, case.primals, case.tangents)
    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = one.single_pass(function, case.primals, case.tangents)
    assert torch.equal(value, case.function(*case.primals))
    assert_close(tangent, expected, 1e-5, "tangent")


def test_a_layer_norm_behind_a_linear_map_in_autocast():
    """Its state is of bfloat16, its weight and its sums of float32."""
    torch.manual_seed(0)
    network, (x, v) = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = one.single_pass(network, (x,), (v,))
        assert torch.equal(value, network(x))
    _, expected = torch.func.jvp(network, (x,), (v,))
    assert relative(tangent, expected) < 0.02


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_no_tensor_inside():
    """A padded encoder asks for a truth value of the mask; complex numbers turn under ``sgn``; steps are flat."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).double().eval()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    x, v = torch.randn(2, 2, 3, 8, dtype=F64)

    def function(x: Tensor) -> Tensor:
        return encoder(x, src_key_padding_mask=padding)

    value, tangent = one.single_pass(function, (x,), (v,))
    # Without graph the encoder leaves the padding out.
    ahead, behind = (function(x + h * v) for h in (1e-6, -1e-6))
    assert_close(copies(value), copies(function(x)), 1e-12, "value")
    assert_close(copies(tangent), copies((ahead - behind) / 2e-6), 1e-7, "tangent")
    z = torch.complex(x, v)
    found = one.single_pass(torch.sgn, (z,), (1j * z,))[1]
    assert_close(copies(found), copies(torch.func.jvp(torch.sgn, (z,), (1j * z,))[1]), 1e-14, "turned")
    assert not one.single_pass(lambda x: x // 0.3, (x,), (v,))[1].any()


def test_autocast_stays_usable():
    """Casts made for the tangent, without graph, must not be what a later forward pass finds in autocast's cache."""
    layer = torch.nn.Linear(2, 2)
    x, v = torch.randn(2, 4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, tangent = one.single_pass(layer, (x,), (v,))
        later = layer(x)
    (value.float().sum() + later.float().sum()).backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 8.0))
    assert layer.weight.grad.abs().sum() > 0
    assert not tangent.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_low_precision(dtype):
    """Weights and states in 16 bits: value and tangent in them too."""
    low, full = LOW["encoder"](dtype=dtype), LOW["encoder"]()
    value, tangent = one.single_pass(low.function, low.primals, low.tangents)
    assert torch.equal(value, low.function(*low.primals))
    assert tangent.dtype == dtype
    assert relative(tangent, forward_mode(full.function, full.primals, full.tangents)) < 0.05


def losses(case: Case, derivative: Any) -> Any:
    """A MeanFlow loss per sample, as a function of parameters and samples."""

    def loss(parameters: Any, z: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        network = partial(functional_call, case.module, parameters)
        return one.squared_l2(
            *one.meanflow_regression(lambda *arguments: network(arguments), z, v, t, s, derivative=derivative)
        )

    return loss


def problem(name: str) -> tuple[Case, Any, Any]:
    case = NETWORKS[name]()
    z, t, s = case.primals
    return case, {k: p.detach() for k, p in case.module.named_parameters()}, (z, case.tangents[0], t, s)


@pytest.mark.parametrize("name", NETWORKS)
def test_inside_grad(name):
    case, parameters, batch = problem(name)
    found, expected = (
        torch.func.grad(lambda p, d=derivative: losses(case, d)(p, *batch).mean())(parameters)
        for derivative in (one.single_pass, one.two_pass)
    )
    for key in parameters:
        assert_close(found[key], expected[key], 1e-10, key)


@pytest.mark.parametrize("name", NETWORKS)
def test_inside_vmap(name):
    """Value and tangent of each sample by itself; and the gradient of each sample."""
    case, parameters, batch = problem(name)

    def single(*arguments: Tensor) -> Any:
        primals, tangents = arguments[:3], arguments[3:]
        return one.single_pass(case.function, primals, tangents)

    found = one.per_sample(single)(*case.primals, *case.tangents)
    expected = torch.func.jvp(case.function, case.primals, case.tangents)
    assert_close(tuple(x.detach().squeeze(1) for x in found), tuple(x.detach() for x in expected), 1e-11, "jvp")
    each, all_ = (
        one.per_sample(
            torch.func.grad(lambda p, *a, d=derivative: losses(case, d)(p, *a).sum()), in_dims=(None, 0, 0, 0, 0)
        )(parameters, *batch)
        for derivative in (one.single_pass, one.two_pass)
    )
    for key in parameters:
        assert_close(each[key], all_[key], 1e-10, key)


@pytest.mark.parametrize("name", NETWORKS)
def test_inside_jvp(name):
    """The value moves with an outer direction; the tangent is a constant, as everywhere in this library."""
    case, _, (_, v, _, _) = problem(name)
    z, t, s = case.primals
    direction = v.roll(1, 0)

    def both(z: Tensor) -> Any:
        return one.single_pass(case.function, (z, t, s), case.tangents)

    (value, tangent), (moved, still) = torch.func.jvp(both, (z,), (direction,))
    expected, slope = torch.func.jvp(lambda z: case.function(z, t, s), (z,), (direction,))
    assert_close((copies(value), copies(moved)), (copies(expected), copies(slope)), 1e-11, "value")
    assert_close(copies(tangent), copies(forward_mode(case.function, case.primals, case.tangents)), 1e-11, "tangent")
    assert still.eq(0).all()


def test_inside_jacobians():
    case, _, _ = problem("MLP")
    z, t, s = case.primals

    def value(z: Tensor) -> Tensor:
        return one.single_pass(case.function, (z, t, s), case.tangents)[0]

    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        expected = jacobian(lambda z: case.function(z, t, s))(z)
        assert_close(copies(jacobian(value)(z)), copies(expected), 1e-11, "jacobian")


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_without_a_break(name):
    case, _, batch = problem(name)
    names = [key for key, _ in case.module.named_parameters()]

    def step(*arguments: Tensor) -> Any:
        z, v, t, s = arguments
        return one.squared_l2(*one.meanflow_regression(case.module, z, v, t, s, derivative=one.single_pass)).mean()

    torch._dynamo.reset()
    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    # Both times in one storage, as ``torch.rand(2, batch)`` makes them.
    batch = (*batch[:2], *torch.stack(batch[2:]))
    found, expected = (torch.autograd.grad(call(*batch), list(case.module.parameters())) for call in (fast, step))
    for key, a, b in zip(names, found, expected, strict=True):
        assert_close(a, b, 1e-9, key)


def test_compiled_it_equals_forward_mode():
    case = NETWORKS["MLP"]()
    torch._dynamo.reset()
    call = torch.compile(lambda *x: one.single_pass(case.function, x[:3], x[3:]), fullgraph=True, backend="aot_eager")
    found = call(*case.primals, *case.tangents)
    expected = torch.func.jvp(case.function, case.primals, case.tangents)
    assert_close(copies(found), copies(expected), 1e-11, "value and tangent")


@pytest.mark.parametrize("name", LOW)
def test_second_gradients(name):
    """The graph of the value is that of a plain call, to every order: a gradient penalty."""
    case = LOW[name]()
    results = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for call in (case.function, lambda *x: one.single_pass(case.function, x, case.tangents)[0]):
            z = case.primals[0].clone().requires_grad_()
            value = call(z, *case.primals[1:])
            (slope,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
            results.append(torch.autograd.grad(slope.square().sum(), [z, *case.module.parameters()], allow_unused=True))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert b is None or error(a, b) < 1e-10


def test_inference_mode():
    """Autograd's dispatch is off there: right, or refused, but no zero."""
    case = LOW["DiT"]()
    with torch.inference_mode():
        plain = case.function(*case.primals)
        found = outcome(case.function, case.primals, case.tangents)
    if not isinstance(found, one.UnsupportedDerivative):
        value, tangent = found
        assert torch.equal(value, plain)
        assert error(tangent, forward_mode(case.function, case.primals, case.tangents)) < 1e-12


def kept(call: Any) -> int:
    """Bytes that a call leaves allocated while its result is held."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    total = sum(event.self_cpu_memory_usage for event in record.events())
    del result
    return total


@pytest.mark.parametrize("name", ["MLP", "DiT", "UNet"])
def test_no_tangent_is_kept(name):
    """The graph of the value holds what a plain call's graph holds; beside it there is one tangent."""
    case = LOW[name]()
    one.single_pass(case.function, case.primals, case.tangents)  # what is built at a first call
    plain = kept(lambda: case.function(*case.primals))
    both = kept(lambda: one.single_pass(case.function, case.primals, case.tangents))
    output = case.primals[0].numel() * 8
    assert plain > 5 * output
    assert both - plain <= output + 0.02 * plain, f"{both - plain} bytes beside the graph, the tangent has {output}"


def test_hooks_of_the_graph_run_once():
    """Saved tensors pass the hooks of a plain call (offloading, checkpoints) as often as there."""
    case, counts = LOW["MLP"](), []
    for call in (case.function, lambda *x: one.single_pass(case.function, x, case.tangents)):
        packed: list[Any] = []

        def pack(x: Tensor, packed: list[Any] = packed) -> Tensor:
            packed.append(type(x))
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            call(*case.primals)
        counts.append(packed)
    assert counts[0]
    assert counts[0] == counts[1]


def test_gradients_while_a_network_trains():
    """Ten steps of MeanFlow are the same with either derivative: nothing adds up."""
    ends = []
    for derivative in (one.single_pass, one.two_pass):
        case = NETWORKS["DiT"]()
        optimizer = torch.optim.SGD(case.module.parameters(), 1e-2)
        z, t, s = case.primals
        for _ in range(10):
            optimizer.zero_grad()
            pair = one.meanflow_regression(case.module, z, case.tangents[0], t, s, derivative=derivative)
            one.mse(*pair).mean().backward()
            optimizer.step()
        ends.append([p.detach() for p in case.module.parameters()])
    for a, b in zip(*ends, strict=True):
        assert_close(a, b, 1e-9, "parameter")


def test_operations_run_once():
    """The primal's operations are those of one plain call: a counter in the network sees one."""
    calls: list[str] = []

    def function(z: Tensor) -> Tensor:
        calls.append("network")
        return F.silu(z)

    z, v = normal(torch.Generator().manual_seed(0), 2, 3, 4).unbind(0)
    seeded(one.single_pass, function, (z,), (v,))
    assert calls == ["network"]
    assert gradients(Case(function, (z,), (v,)), z) == []


def test_inside_forward_mode_of_autograd():
    """An outer tangent of ``forward_ad`` is not lost: it is right, or the call is refused."""
    case, _, (_, v, _, _) = problem("MLP")
    z, t, s = case.primals
    direction = v.roll(1, 0)
    expected = torch.func.jvp(lambda z: case.function(z, t, s), (z,), (direction,))[1]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, direction)
        try:
            value, tangent = one.single_pass(case.function, (dual, t, s), case.tangents)
        except one.UnsupportedDerivative:
            return
        outer = forward_ad.unpack_dual(value).tangent
        assert outer is not None, "the outer tangent is lost"
        assert_close(copies(outer), copies(expected), 1e-11, "outer tangent")
        plain = forward_ad.unpack_dual(tangent).primal
    assert_close(copies(plain), forward_mode(case.function, case.primals, case.tangents), 1e-11, "tangent")


@pytest.mark.parametrize("moving", [None, 2])
def test_a_derivative_inside(moving):
    """The rates of a path are a derivative; a network may be made of them: value and slope have their own tangents."""
    generator = torch.Generator().manual_seed(0)
    z, v = normal(generator, 5, 3), normal(generator, 5, 3)
    t, one_each = torch.linspace(0.2, 0.8, 5, dtype=F64), torch.ones(5, dtype=F64)
    path = one.VariancePreserving(lambda t: 6 * (1 - 2 * t) + t.sin())
    weight = normal(generator, 3, 3).requires_grad_()

    def function(z: Tensor, t: Tensor) -> Tensor:
        alpha_rate, sigma_rate = path.rates(t)
        value, slope = one.with_graph(lambda z: (z @ weight).tanh(), (z,), (2 * z,))
        return value * alpha_rate[:, None] + slope * sigma_rate[:, None]

    value, tangent = one.single_pass(function, (z, t), (v, one_each), moving=moving)
    plain = function(z, t)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (function(z + h * v, t + h * one_each) for h in (step, -step))
    assert_close(copies(value), copies(plain), 0, "value")
    assert_close(copies(tangent[:moving]), copies((ahead - behind)[:moving] / (2 * step)), 1e-8, "tangent")
    (found,), (expected,) = (torch.autograd.grad(x.square().sum(), weight) for x in (value, plain))
    assert_close(copies(found), copies(expected), 1e-14, "gradient")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_threads_do_not_meet():
    """Derivatives of different functions at the same time: right, or refused; plain calls beside them just work.

    (``torch.func.jvp`` itself fails here: the level of forward mode is one for the whole process.)
    """
    cases = [LOW[name]() for name in ("MLP", "ConvNet", "DiT", "UNet")]
    expected = [forward_mode(case.function, case.primals, case.tangents) for case in cases]

    def derive(i: int) -> float:
        case = cases[i % 4]
        try:
            value, tangent = one.single_pass(case.function, case.primals, case.tangents)
        except one.UnsupportedDerivative:
            return 0.0
        assert type(value) is type(tangent) is Tensor
        return error(tangent, expected[i % 4])

    def plain(i: int) -> float:
        x = torch.full((3,), float(i), requires_grad=True)
        Doubled.apply(x).sum().backward()
        return float((x.grad - 2).abs().max())

    apply = torch.autograd.Function.__dict__["apply"]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(plain if i % 3 == 2 else derive, i) for i in range(36)]
        assert max(job.result() for job in jobs) < 1e-12
    assert torch.autograd.Function.__dict__["apply"] is apply
