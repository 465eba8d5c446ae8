"""Continuous-time consistency against the oracle and against its discrete form."""

from functools import partial
from itertools import pairwise

import pytest
import torch

import onestep_core as one
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.regression import regression
from onestep_core.shapes import per_sample_sum
from tests.cases import TWO_MODES, trigflow_truth
from tests.toy import Net, batch

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


def test_without_warm_up_continuous_consistency_is_flow_matching():
    """At ``warmup = 0`` the gradient is flow matching's of ``sigma_data F`` with the weight ``cos^2 / sigma_data``."""
    net, t = Net(1), torch.linspace(0.1, 1.4, 5, dtype=F64)
    data, _, _, _, _ = batch()
    path = flow.Trigonometric(0.5)
    z, v = path(data, data.flip(0), t)
    sgd = partial(torch.autograd.grad, inputs=list(net.parameters()))
    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=0.5, warmup=0.0, normalize=None)
    velocity = flow.trigflow_velocity(net, sigma_data=0.5)
    plain = one.squared_l2(*one.flow_matching_regression(velocity, z, v, t))
    close(sgd(one.squared_l2(*pair).sum()), sgd((plain * t.cos().square() / 0.5).sum()))
    each = one.continuous_consistency_regression(net, z, v, t, sigma_data=0.5, warmup=0 * t, normalize=None)
    assert torch.equal(each.target, pair.target)


def scm_loss(p, mixture, sigma_data, **options):
    exact = trigflow_truth(mixture, flow.Trigonometric(sigma_data))
    options = {"normalize": None} | options

    def loss(shift):
        def network(z, t):
            return exact(z, t) + shift

        return one.squared_l2(
            *one.continuous_consistency_regression(network, p.z, p.v, p.t, sigma_data=sigma_data, **options)
        )

    return loss


@pytest.mark.parametrize("dim, sigma_data", [(1, 0.5), (2, 1.0), (3, 0.7)])
def test_distillation_has_no_gradient_in_any_sample_at_the_exact_map(dim, sigma_data):
    """Class (i): with the marginal velocity, per sample, normalised or not, once the warm-up is over."""
    path, mixture = flow.Trigonometric(sigma_data), MIXTURES[dim]
    p = problem(path, mixture)
    p = p._replace(v=mixture.velocity(p.z, p.t, path=path))
    for normalize in (None, one.normalize_tangent, partial(one.normalize_tangent, per_dimension=True)):
        assert float(shift_gradient(scm_loss(p, mixture, sigma_data, normalize=normalize), p.z).abs().max()) < 1e-6
    perturbed = 0.1 * strategies.normal(9, *p.z.shape)
    loss = scm_loss(p, mixture, sigma_data)
    slope = shift_gradient(lambda shift: loss(shift + perturbed), p.z)
    assert bool((per_sample_sum(slope * perturbed) > 0).all())


def test_a_warm_up_moves_the_fixed_point():
    """At ``r < 1`` the exact map keeps ``1 - r`` of its distance to the velocity: a tangent, and a gradient."""
    path = flow.Trigonometric(0.5)
    p = problem(path, TWO_MODES)
    p = p._replace(v=TWO_MODES.velocity(p.z, p.t, path=path))
    start, half = (shift_gradient(scm_loss(p, TWO_MODES, 0.5, warmup=r), p.z) for r in (0.0, 0.5))
    assert float(start.abs().max()) > 1e-2
    torch.testing.assert_close(half, start / 2, rtol=1e-6, atol=1e-8)


@each_dimension
def test_training_is_unbiased_until_its_tangents_are_normalised(dim):
    """Class (ii): with the pair's velocity, zero in expectation over the posterior; normalised tangents break it."""
    path, mixture = flow.Trigonometric(0.5), MIXTURES[dim]
    p = problem(path, mixture, 3)
    rule = mixture.quadrature(p.z, p.t, path=path, nodes=4)
    count = rule.weights.shape[1]
    t = p.t.repeat_interleave(count)
    spread = strategies.at(path, rule.data.flatten(0, 1), rule.noise.flatten(0, 1), t, t, t)

    def expected(**options):
        slopes = shift_gradient(scm_loss(spread, mixture, 0.5, **options), spread.z).unflatten(0, (3, count))
        return (rule.weights[:, :, None] * slopes).sum(1)

    assert float(expected().abs().max()) < 1e-6
    assert float(shift_gradient(scm_loss(spread, mixture, 0.5), spread.z).abs().max()) > 0.1
    assert float(expected(normalize=one.normalize_tangent).abs().max()) > 1e-3


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_consistency_training_tends_to_continuous_consistency(sigma_data, channels):
    """CT with the weight ``cos t / (sigma_d sin t dt)``: its parameter gradient tends to sCM's at rate ``O(dt)``.

    Conditions: squared distance summed over a sample, the same pair at both times, the same network on both sides,
    no normalisation, warm-up over.
    """
    path, net = flow.Trigonometric(sigma_data), Net(1, channels)
    data, noise = torch.randn(2, 6, channels, generator=torch.Generator().manual_seed(5), dtype=F64)
    t = torch.linspace(0.2, 1.4, 6, dtype=F64)
    z, v = path(data, noise, t)
    f = flow.trigflow(net, sigma_data=sigma_data)

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(net.parameters()))])

    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=sigma_data, normalize=None)
    limit = gradient(one.squared_l2(*pair))
    errors = []
    for dt in (1e-2, 5e-3, 2.5e-3):
        m = t - dt
        raw = one.squared_l2(*regression(f(z, t), f(path(data, noise, m).z, m)))
        errors.append(float((gradient(raw * t.cos() / (sigma_data * t.sin() * dt)) - limit).norm() / limit.norm()))
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert 1.9 < coarse / fine < 2.1, errors
