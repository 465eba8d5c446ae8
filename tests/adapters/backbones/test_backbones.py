"""The networks: derivatives, compilation, conditions, errors."""

import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import onestep_core.flow as flow
from onestep_adapters.backbones import MLP, ConvNet, DiT, UNet
from onestep_adapters.networks import count_calls
from onestep_core.errors import ConfigError
from onestep_core.shapes import per_sample

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(**options):
    return MLP((3,), width=16, depth=2, generator=seeded(), **options)


def fourier(**options):
    return MLP((3,), width=16, depth=2, fourier=5, generator=seeded(), **options)


def dit(**options):
    return DiT((2, 4, 6), patch=2, width=24, depth=2, heads=2, generator=seeded(), **options)


def convolutional(**options):
    return ConvNet((2, 4, 6), width=12, depth=2, condition=2, generator=seeded(), **options)


def unet(**options):
    return UNet((2, 4, 6), width=8, depth=1, multipliers=(1, 2), generator=seeded(), **options)


def awake(network):
    """The network with no weight at zero: a fresh one outputs zero for everything."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(7), dtype=p.dtype))
    return network


def batch(network, count=4, dtype=torch.float32):
    z, v = torch.randn(2, count, *network.shape, generator=seeded(1), dtype=dtype)
    t, s = torch.rand(2, count, generator=seeded(2), dtype=dtype)
    return z, v, t, s


BUILDERS = pytest.mark.parametrize(
    "build", [mlp, fourier, convolutional, dit, unet], ids=["mlp", "fourier", "convolutional", "dit", "unet"]
)


@BUILDERS
@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("classes", [None, 3])
def test_fresh_output_is_zero_and_gradients_reach_every_parameter(build, times, classes):
    network = build(times=times, classes=classes)
    z, _, *both = batch(network)
    label = None if classes is None else torch.tensor([0, 1, 2, 3])
    given = tuple(both[:times])
    assert torch.equal(network(z, *given, label=label), torch.zeros_like(z))
    awake(network)(z, *given, label=label).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    if times == 0 and classes is None:
        unused = [name for name in unused if "modulation.weight" not in name]  # of a condition that is zero
    assert not unused


@BUILDERS
def test_derivative_is_exact(build):
    network = awake(build(times=2, classes=3)).double()
    z, v, t, s = batch(network, dtype=F64)
    call = partial(network, label=torch.tensor([0, 1, 2, 3]))
    for tangents in [(v, torch.ones_like(t), 0 * s), (0 * z, 0 * t, torch.ones_like(s)), (v, t, s)]:
        _, tangent = torch.func.jvp(call, (z, t, s), tangents)
        _, slope = flow.central_difference(call, (z, t, s), tangents, step=1e-6)
        assert tangent.abs().min() > 0
        torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-7)


@BUILDERS
def test_derivative_without_graph_with_graph_and_through_forward_ad(build):
    network = awake(build(times=2)).double()
    z, v, t, s = batch(network, dtype=F64)
    primals, tangents = (z, t, s), (v, torch.ones_like(t), 0 * s)
    value, tangent = flow.two_pass(network, primals, tangents)
    with_graph, graphed = flow.with_graph(network, primals, tangents)
    torch.testing.assert_close(graphed, tangent)
    torch.testing.assert_close(with_graph, value)
    with torch.autograd.forward_ad.dual_level():
        dual = network(*(torch.autograd.forward_ad.make_dual(p, d) for p, d in zip(primals, tangents, strict=True)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    # The gradient through the derivative, against a difference in one parameter.
    weight = network.input.weight
    graphed.square().sum().backward()
    found, step = weight.grad.flatten()[0].item(), 1e-5
    sums = []
    for sign in (1, -1):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            moved.input.weight.view(-1)[0] += sign * step
        sums.append(flow.two_pass(moved, primals, tangents)[1].square().sum().item())
    assert found == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-5)


@BUILDERS
def test_per_sample_equals_batched(build):
    network = awake(build(times=1)).double()
    z, _, t, _ = batch(network, dtype=F64)
    torch.testing.assert_close(per_sample(network)(z, t)[:, 0], network(z, t))


@BUILDERS
def test_compiles_whole_with_its_derivative(build):
    network = awake(build(times=2, classes=3))
    # Tensors of their own: inside a compiled jvp, torch 2.13 refuses a primal that views a larger storage.
    z, v, t, s = (x.clone() for x in batch(network))
    label = torch.tensor([0, 1, 2, 3])

    def tangent(z, v, t, s, label):
        primals, tangents = (z, t, s), (v, torch.ones_like(t), torch.zeros_like(s))
        return torch.func.jvp(partial(network, label=label), primals, tangents)[1]

    compiled = torch.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(network)(z, t, s, label=label), network(z, t, s, label=label))
    expected = tangent(z, v, t, s, label)
    torch.testing.assert_close(compiled(tangent)(z, v, t, s, label), expected, rtol=1e-4, atol=1e-5)


@BUILDERS
def test_no_label_is_the_null_label_and_labels_matter(build):
    network = awake(build(times=1, classes=3))
    z, _, t, _ = batch(network)
    null = torch.full((4,), 3)
    assert torch.equal(network(z, t), network(z, t, label=null))
    assert not torch.equal(network(z, t), network(z, t, label=0 * null))
    for label in (null + 1, -null):
        with pytest.raises(ConfigError, match=r"a label is outside of 0 to 3 .3: no class"):
            network(z, t, label=label)


@BUILDERS
def test_initial_weights_come_from_the_generator(build):
    first, again = (dict(build(times=1).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    # No buffer: forward mode through a data-parallel wrapper refuses one.
    assert not list(build(times=1).buffers())


@BUILDERS
def test_half_precision_keeps_the_phases(build):
    """Two times that bfloat16 cannot tell apart reach a bfloat16 network as different conditions."""
    network = build(times=1).bfloat16()
    z = batch(network)[0].bfloat16()
    near = [network.condition(z, (torch.full((4,), time),), None) for time in (0.897, 0.9)]
    assert torch.tensor(0.897).bfloat16() == torch.tensor(0.9).bfloat16()
    assert not torch.equal(*near)
    assert network(z, torch.rand(4)).dtype == torch.bfloat16


def test_half_precision_keeps_the_phases_of_the_sample():
    """Beside float32 only the weights and the sample are rounded, not their product."""
    whole = MLP((2,), width=16, depth=1, times=0, fourier=8, generator=seeded()).bfloat16().float()
    z = (3 * torch.randn(6, 2, generator=seeded(1))).bfloat16()
    exact = whole._features(z.float())
    for features in (copy.deepcopy(whole).bfloat16()._features(z), autocast(whole, z)):
        assert features.dtype == torch.bfloat16
        torch.testing.assert_close(features.float(), exact, rtol=2**-7, atol=2**-9)


def autocast(network, z):
    with torch.autocast("cpu", torch.bfloat16):
        return network._features(z)


def test_fused_and_plain_attention_agree():
    network = awake(dit(times=1)).double()
    fused = awake(dit(times=1, attention=scaled_dot_product_attention)).double()
    z, _, t, _ = batch(network, dtype=F64)
    torch.testing.assert_close(network(z, t), fused(z, t))
    inside = torch.func.vmap(lambda z, t: network(z[None], t[None])[0])(z, t)
    torch.testing.assert_close(inside, network(z, t))


def test_dit_tells_positions_apart():
    network = awake(dit(times=0))
    z = torch.ones(1, *network.shape)
    patches = network(z).unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[0, 0].flatten(1)
    assert torch.pdist(patches).min() > 1e-3


def test_one_call_counted():
    network = count_calls(mlp(times=2))
    z, v, t, s = batch(mlp())
    torch.func.jvp(network, (z, t, s), (v, t, s))
    assert network.calls == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(()), "shape = ()"),
        (lambda: MLP((0,)), "shape.0. = 0"),
        (lambda: MLP((2,), width=0), "width = 0"),
        (lambda: MLP((2,), depth=0), "depth = 0"),
        (lambda: MLP((2,), times=3), "times = 3"),
        (lambda: MLP((2,), classes=0), "classes = 0"),
        (lambda: MLP((2,), max_frequency=1.0), "max_frequency"),
        (lambda: MLP((2,), fourier=-1), "fourier = -1"),
        (lambda: MLP((2,), fourier=True), "fourier = True"),
        (lambda: MLP((2,), fourier=4, fourier_std=0.0), "fourier_std = 0.0"),
        (lambda: MLP((2,), fourier=4, fourier_std=float("inf")), "fourier_std = inf"),
        (lambda: MLP((2,), fourier=4, fourier_std=None), "fourier_std = None"),
        (lambda: ConvNet((8, 8)), "channels, height, width"),
        (lambda: ConvNet((1, 8, 0)), r"shape\[2\] = 0"),
        (lambda: ConvNet((1, 8, 8), width=0), "width = 0"),
        (lambda: ConvNet((1, 8, 8), condition=0), "condition = 0"),
        (
            lambda: ConvNet((1, 8, 8), times=0)(torch.ones(2, 1, 4, 4)),
            r"expected \[batch, 1, 8, 8\].*construct the network for theirs",
        ),
        (lambda: DiT((8, 8)), "channels, height, width"),
        (lambda: DiT((1, 8, 8), patch=3), "patch = 3"),
        (lambda: DiT((1, 8, 8), width=32, heads=3), "width = 32"),
        (lambda: DiT((1, 8, 8), width=18, heads=3), "width = 18"),
        (lambda: DiT((1, 8, 8), ratio=0.0), "ratio"),
        (
            lambda: mlp(times=1)(torch.ones(2, 4), torch.ones(2)),
            r"expected \[batch, 3\].*construct the network for theirs",
        ),
        (lambda: dit(times=2)(torch.ones(2, 2, 4, 6), torch.ones(2)), "1 times, expected 2"),
        (lambda: mlp(times=0)(torch.ones(2, 3), label=torch.ones(2).long()), "without classes"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
