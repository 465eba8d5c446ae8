"""Directional derivatives: inside transforms, of trees, without graph, on a curve."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.shapes import expand_like, per_sample
from tests.toy import Net, batch

F64 = torch.float64


def network(width=8):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, 2)).double()


DERIVATIVES = {
    "single_pass": (flow.single_pass, 1e-12),
    "two_pass": (flow.two_pass, 1e-12),
    "central_difference": (partial(flow.central_difference, step=1e-5), 1e-8),
    "with_graph": (flow.with_graph, 1e-12),
}


@pytest.mark.parametrize(("derivative", "tolerance"), DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_agree_inside_transforms(derivative, tolerance):
    """Under ``grad``, ``vmap`` and an outer ``jvp`` the value and tangent stay the same numbers."""
    net = network()

    def f(z, t):
        return net(torch.cat([z, t[:, None], t[:, None] ** 2], 1))

    z, v, t = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64), torch.rand(3, dtype=F64)
    primals, tangents = (z, t), (v, torch.ones_like(t))
    value, tangent = torch.func.jvp(f, primals, tangents)
    got = derivative(f, primals, tangents)
    torch.testing.assert_close(got, (value, tangent), rtol=tolerance, atol=tolerance)
    inside = per_sample(lambda z, t, v: derivative(f, (z, t), (v, torch.ones_like(t))))(z, t, v)
    torch.testing.assert_close(inside[1].squeeze(1), tangent, rtol=tolerance, atol=tolerance)
    outer, outer_tangent = torch.func.jvp(lambda z: derivative(f, (z, t), tangents)[0], (z,), (v,))
    torch.testing.assert_close(outer, value)
    exact = torch.func.jvp(lambda z: f(z, t), (z,), (v,))[1]
    torch.testing.assert_close(outer_tangent, exact)


@pytest.mark.parametrize("derivative", [flow.single_pass, flow.two_pass])
def test_pytrees(derivative):
    def f(tree):
        return {"a": tree["x"] ** 2, "b": [tree["x"].sum()]}

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    value, tangent = derivative(f, ({"x": x},), ({"x": torch.ones(2)},))
    assert value["a"].requires_grad
    assert not tangent["a"].requires_grad
    torch.testing.assert_close(tangent, {"a": torch.tensor([2.0, 4.0]), "b": [torch.tensor(2.0)]})


@pytest.mark.parametrize("derivative", [flow.single_pass, flow.two_pass, partial(flow.central_difference, step=0.2)])
def test_a_derivative_leaves_autocast_usable(derivative):
    """Casts made without graph must not be what a later forward pass finds in autocast's cache."""
    layer = torch.nn.Linear(2, 2)
    x, v = torch.randn(4, 2), torch.randn(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            pass
        value, tangent = derivative(layer, (x,), (v,))
        later = layer(x)
    (value.float().sum() + later.float().sum()).backward()
    assert layer.weight.grad.abs().sum() > 0
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 8.0))
    assert not tangent.requires_grad


MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: GaussianMixture(
        [0.5, 0.5], [[-1.0, 0.5], [1.0, 0.0]], [[[0.3, 0.1], [0.1, 0.25]], [[0.25, -0.05], [-0.05, 0.4]]]
    ),
    3: GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5, 0.0], [1.0, 0.0, 0.5]], [0.5, 0.6]),
}


def problem(path, dim: int, batch: int = 5, margin: float = 0.05) -> strategies.Problem:
    """Jumps in both directions of time, with the middle time anywhere between."""
    data = MIXTURES[dim].sample(batch, generator=torch.Generator().manual_seed(dim))
    t, s = (strategies.spread_times(path, batch, 10 * dim + i, margin=margin) for i in range(2))
    share = torch.rand(batch, dtype=F64, generator=torch.Generator().manual_seed(7))
    return strategies.at(path, data, strategies.normal(dim, batch, dim), t, flow.time_between(t, s, share=share), s)


def test_a_frozen_value_has_no_graph_and_no_tangent():
    """Outside of transforms nothing is recorded; inside, forward mode and second derivatives see a constant."""
    recorded = []

    def square(x: Tensor) -> Tensor:
        recorded.append(torch.is_grad_enabled())
        return torch.nn.functional.silu(x) * x

    x = torch.ones(3, dtype=F64, requires_grad=True)
    assert not flow.frozen_value(square, x).requires_grad
    assert recorded == [False]
    _, tangent = torch.func.jvp(partial(flow.frozen_value, square), (x.detach(),), (torch.ones(3, dtype=F64),))
    assert float(tangent.abs().max()) == 0.0
    gradient = torch.func.grad(lambda x: (x * flow.frozen_value(square, x)).sum())(x.detach())
    torch.testing.assert_close(gradient, square(x).detach())


def test_the_direction_of_a_derivative_gets_no_gradient():
    """Also where the derivative keeps its graph, as the network's own velocity may be the direction."""
    net, p = Net(2, 2), problem(flow.Linear(), 2)
    direction = p.v.clone().requires_grad_()
    _, slope = flow.eulerian_derivative(net, p.z, direction, p.t, p.s, derivative=flow.with_graph)
    assert slope.requires_grad
    slope.sum().backward()
    assert direction.grad is None


def test_moving_changes_nothing_where_the_others_stand_still():
    net, p = Net(2, 2), problem(flow.Linear(), 2)
    s = torch.where(torch.arange(5) < 2, p.s, p.t)
    call = partial(objectives.improved_meanflow_regression, net, p.z, p.v, p.z, p.t, s)
    torch.testing.assert_close(call(moving=2), call())
    for wrong in (-1, 6):
        with pytest.raises(ConfigError, match=f"moving = {wrong} of 5 samples"):
            call(moving=wrong)


def test_a_derivative_of_one_s_own_need_not_know_of_moving():
    def plain(function, primals, tangents):
        return flow.two_pass(function, primals, tangents)

    net, p = Net(2, 2), problem(flow.Linear(), 2)
    pair = objectives.improved_meanflow_regression(net, p.z, p.v, p.z, p.t, p.s, derivative=plain)
    expected = objectives.improved_meanflow_regression(net, p.z, p.v, p.z, p.t, p.s)
    torch.testing.assert_close(pair, expected)


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def curved(t):
    return torch.stack([t.sin(), t.square()], 1), t


def known(z, t):
    return z.prod(1, keepdim=True) * expand_like(t.exp(), z)


def known_slope(t):
    """Of ``sin(t) t^2 e^t``."""
    return (t.exp() * (t.square() * t.cos() + (2 * t + t.square()) * t.sin()))[:, None]


def test_along_is_of_second_order_on_the_curve_with_a_step_for_each_sample():
    t = torch.tensor([0.3, 0.8, 1.4], dtype=F64)
    rate = torch.tensor([1.0, 0.5, -2.0], dtype=F64)
    errors = []
    for h in (1e-2, 5e-3):
        step = h * torch.tensor([1.0, 2.0, 0.5], dtype=F64)
        value, slope = flow.derivative_along(curved, step)(known, curved(t), (torch.zeros(3, 2, dtype=F64), rate))
        close(value, known(*curved(t)))
        errors.append((slope - rate[:, None] * known_slope(t)).abs().flatten())
    ratio = errors[0] / errors[1]
    assert bool(((ratio > 3.95) & (ratio < 4.05)).all()), ratio


def test_along_a_straight_line_is_the_central_difference():
    net, (_, z, v, t, s) = Net(2), batch()
    line = flow.derivative_along(lambda tau: (z + expand_like(tau - t, v) * v, tau, s), 1e-4)
    primals, tangents = (z, t, s), (v, torch.ones_like(t), torch.zeros_like(s))
    torch.testing.assert_close(
        line(net, primals, tangents), flow.two_pass(net, primals, tangents), rtol=1e-7, atol=1e-8
    )
    expected = flow.central_difference(net, primals, tangents, step=1e-4)
    torch.testing.assert_close(line(net, primals, tangents), expected, rtol=1e-9, atol=1e-9)
    end = flow.derivative_along(lambda tau: (z, t, tau), 1e-4, argument=2)
    lagrangian = (torch.zeros_like(z), torch.zeros_like(t), torch.ones_like(s))
    expected = flow.two_pass(net, primals, lagrangian)
    torch.testing.assert_close(end(net, primals, lagrangian), expected, rtol=1e-7, atol=1e-8)


def test_along_differentiates_the_curve_whatever_velocity_it_is_given():
    """Its condition: the tangent of the state is that of the curve. Otherwise it is another derivative."""
    net, (_, z, v, t, _) = Net(1), batch()
    line = flow.derivative_along(lambda tau: (z + expand_like(tau - t, v) * v, tau), 1e-4)
    one_ = torch.ones_like(t)
    assert torch.equal(line(net, (z, t), (v, one_))[1], line(net, (z, t), (2 * v, one_))[1])
    wrong = line(net, (z, t), (2 * v, one_))[1] - flow.two_pass(net, (z, t), (2 * v, one_))[1]
    assert float(wrong.abs().max()) > 0.1


def test_along_takes_and_returns_trees_without_graph():
    weight = torch.tensor(2.0, dtype=F64, requires_grad=True)

    def function(tree, t):
        return {"square": weight * tree["z"].square(), "kept": "text"}, t[:, None, None] * tree["z"][:, :, None]

    t = torch.tensor([0.5, 1.0], dtype=F64)
    curve = flow.derivative_along(lambda t: ({"z": torch.stack([t, 2 * t], 1)}, t), 1e-3)
    value, slope = curve(
        function, ({"z": torch.stack([t, 2 * t], 1)}, t), ({"z": torch.zeros(2, 2)}, torch.ones_like(t))
    )
    assert value[0]["square"].requires_grad
    assert not slope[0]["square"].requires_grad
    close(slope[0]["square"], 2 * torch.stack([2 * t, 8 * t], 1))
    close(slope[1], torch.stack([2 * t, 4 * t], 1)[:, :, None])


def test_along_keeps_digits_in_float32():
    """The width of a step is taken as rounded: by ``2 h`` a straight line would lose three digits."""
    t = torch.linspace(0.9, 1.5, 64)
    _, slope = flow.derivative_along(lambda t: (t[:, None], t), 1e-5)(
        lambda z, t: z, (t[:, None], t), (0 * t[:, None], t.new_ones(64))
    )
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-6, atol=0)


def test_along_refuses_steps_that_cannot_work():
    with pytest.raises(ConfigError, match="positive"):
        flow.derivative_along(curved, 0.0)
    for numbers in ({"fraction": 0.0}, {"smallest": -1.0}):
        with pytest.raises(ConfigError, match="positive"):
            flow.relative_step(torch.ones(1), **numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_difference_that_is_rounding_alone_is_refused(dtype):
    """Numbers of half precision near 1 are 0.008 or 0.001 apart."""
    x = torch.ones(3, 2, dtype=dtype)
    with pytest.raises(ConfigError, match=r"step = 0\.001 for an argument in torch\..*expected about 0\.[12], or"):
        flow.central_difference(torch.sin, (x,), (x,))
    with pytest.raises(ConfigError, match="for an answer of the network in"):
        flow.central_difference(lambda x: x.to(dtype).sin(), (x.float(),), (x.float(),))
    with pytest.raises(ConfigError, match=r"step = 0\.001 for times in"):
        flow.relative_step(x[:, 0], fraction=1e-3)
    _, slope = flow.central_difference(torch.sin, (x,), (x,), step=0.1)
    assert slope.dtype == torch.float32
    torch.testing.assert_close(slope, torch.full((3, 2), math.cos(1.0)), rtol=0.05, atol=0)


def test_the_default_step_of_a_curve_fits_the_precision():
    t = torch.tensor([0.0, 0.5])
    torch.testing.assert_close(flow.relative_step(t), torch.tensor([1e-6, 5e-4]))
    torch.testing.assert_close(flow.relative_step(t.bfloat16()), torch.tensor([1e-6, 0.1]))
    torch.testing.assert_close(flow.relative_step(t.half()), torch.tensor([1e-6, 0.05]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(flow.relative_step(t), torch.tensor([1e-6, 0.1]))
