"""Consistency trajectories: at rest at the exact map, biased by their solver."""

from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_adapters.networks import frozen as frozen_network
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.regression import regression
from onestep_core.shapes import expand_like, per_sample_sum
from tests.cases import FORMS, TWO_MODES
from tests.toy import Net

F64 = torch.float64


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: TWO_MODES,
    3: GaussianMixture(
        [0.5, 0.5], [[-0.7, 0.0, 0.4], [0.7, 0.3, 0.0]], torch.eye(3, dtype=F64).mul(0.4).expand(2, 3, 3)
    ),
}


each_dimension = pytest.mark.parametrize("dim", MIXTURES)


PATHS = {
    "linear": flow.Linear(),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.002, 10.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


def shift_gradient(loss, z):
    """The gradient of every sample's loss in a shift of its network."""
    shift = torch.zeros_like(z).requires_grad_()
    return torch.autograd.grad(loss(shift).sum(), shift)[0]


def ve_problem(mixture=TWO_MODES):
    return problem(flow.VarianceExploding(0.002, 10.0), mixture, 6)


def toy(z, t, s):
    return torch.tanh(z * expand_like(1 / (1 + t), z) + expand_like(s.sqrt(), z))


def ctm_gradient(p, online, inner, outer, z_m, *, m=None, end, direction=None):
    """Gradient in the size of a perturbation of the online map, per sample; a constant one without ``direction``."""

    def loss(shift):
        def moved(z, t, s):
            return online(z, t, s) + shift * (1.0 if direction is None else direction(t, s))

        pair = one.consistency_trajectory_regression(
            moved, inner, outer, p.z, z_m, p.t, p.m if m is None else m, p.s, end=end
        )
        return one.squared_l2(*pair)

    return shift_gradient(loss, p.z)


@each_path
@each_dimension
def test_trajectories_have_no_gradient_in_any_sample_at_the_exact_map(path, dim):
    """Class (i): the oracle's flow map in all three roles and as the solver, for local, soft and global ``m``."""
    mixture = MIXTURES[dim]
    p = problem(path, mixture, 3)
    exact = partial(mixture.flow_map, path=path, steps=16)
    for share in (0.05, 0.5, 1.0):
        m = p.t + share * (p.s - p.t)
        slope = ctm_gradient(p, exact, exact, exact, exact(p.z, p.t, m), m=m, end=path.data_time)
        assert float(slope.abs().max()) < 1e-6


@each_path
def test_a_perturbation_that_vanishes_in_the_limit_points_back(path):
    """Self-consistency alone: ``X + (s - t) d`` in the online *and* the inner map. A constant shift it cannot see."""
    p = problem(path, TWO_MODES, 3)
    exact = partial(TWO_MODES.flow_map, path=path, steps=8)
    size = 0.1 * strategies.normal(3, *p.z.shape) / abs(path.noise_time - path.data_time)

    def perturbed(z, t, s):
        return exact(z, t, s) + expand_like(s - t, z) * size

    z_m = exact(p.z, p.t, p.m)
    slope = ctm_gradient(
        p, perturbed, perturbed, exact, z_m, end=path.data_time, direction=lambda t, s: expand_like(s - t, p.z)
    )
    assert bool((per_sample_sum(slope * size) > 0).all())

    def shifted(z, t, s):
        return exact(z, t, s) + size

    blind = ctm_gradient(p, shifted, shifted, exact, z_m, end=path.data_time)
    assert float(blind.abs().max()) < 1e-6


@pytest.mark.parametrize("solver, order", [(flow.euler, 2), (flow.heun, 3)])
def test_a_solver_s_error_is_the_bias(solver, order):
    """Not zero with one step of a solver, though its velocity is exact: the gradient falls as its local error."""
    path = flow.Linear()
    p = problem(path, TWO_MODES, 8)
    exact = partial(TWO_MODES.flow_map, path=path, steps=16)
    biases = []
    for h in (0.04, 0.02):
        m = p.t - h
        z_m = solver(partial(TWO_MODES.velocity, path=path), p.z, p.t, m)
        biases.append(ctm_gradient(p, exact, exact, exact, z_m, m=m, end=0.0).abs())
    assert float(biases[0].max()) > 1e-5
    assert float(biases[0].norm() / biases[1].norm()) == pytest.approx(2**order, rel=0.15)


@each_path
@each_dimension
@pytest.mark.parametrize("form", [*FORMS, "jump"])
def test_trajectories_to_the_data_end_are_consistency(path, dim, form):
    """At ``s = end`` the outer map is the identity, whatever its network: prediction, target and gradient agree.

    Condition: ``X(z, end, end) = z``; every form has that where times are not negative, a jump on every path.
    """
    p, last = problem(path, MIXTURES[dim]), path.data_time
    end = torch.full_like(p.t, last)
    nets = [Net(2, dim), Net(2, dim), toy]
    if form == "jump":
        maps = [flow.flow_map_from_average_velocity(net) for net in nets]
    else:
        maps = [flow.flow_map_from_network(net, form=FORMS[form]) for net in nets]
    online, inner, outer = maps
    z_m = p.z + 0.1
    pair = one.consistency_trajectory_regression(online, inner, outer, p.z, z_m, p.t, p.m, end, end=last)
    f, g = (flow.consistency_from_flow_map(flow_map, end=last) for flow_map in (online, inner))
    expected = regression(f(p.z, p.t), g(z_m, p.m))
    close(pair, expected)
    slopes = [torch.autograd.grad(one.squared_l2(*each).sum(), list(nets[0].parameters())) for each in (pair, expected)]
    close(*slopes)


def test_the_published_target_without_an_inner_map():
    p = ve_problem()
    online, outer = (flow.flow_map_from_network(net, form=flow.EulerForm()) for net in (Net(2, 2), toy))
    z_m = p.z + 0.1
    pair = one.consistency_trajectory_regression(online, None, outer, p.z, z_m, p.t, p.m, p.s, end=0.002)
    close(pair.target, outer(z_m, p.m, torch.full_like(p.m, 0.002)))
    with_inner = one.consistency_trajectory_regression(online, outer, outer, p.z, z_m, p.t, p.m, p.s, end=0.002)
    close(pair.prediction, with_inner.prediction)
    assert not torch.allclose(pair.target, with_inner.target)


def test_the_outer_map_is_frozen_in_its_parameters_and_not_in_its_input():
    p = ve_problem()
    net, average = Net(2, 2), Net(2, 2)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    online = flow.flow_map_from_network(net, form=flow.EulerForm())
    outer = flow.flow_map_from_network(frozen_network(average), form=flow.EulerForm())
    pair = one.consistency_trajectory_regression(online, outer, outer, p.z, p.z, p.t, p.m, p.s, end=0.002)
    one.squared_l2(*pair).sum().backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    through = [parameter.grad.clone() for parameter in net.parameters()]
    assert all(float(gradient.abs().max()) > 1e-6 for gradient in through)
    # By hand: the residual at the end, carried back through the outer map to where the online one jumps.
    middle = online(p.z, p.t, p.s)
    end = torch.full_like(p.s, 0.002)
    _, back = torch.func.vjp(lambda x: outer(x, p.s, end), middle.detach())
    (cotangent,) = back(2 * (pair.prediction - pair.target).detach())
    by_hand = torch.autograd.grad(middle, list(net.parameters()), cotangent)
    close(list(by_hand), through)

    def cut(z, t, s):
        return outer(z, t, s).detach()

    pair = one.consistency_trajectory_regression(online, outer, cut, p.z, p.z, p.t, p.m, p.s, end=0.002)
    assert not pair.prediction.requires_grad
