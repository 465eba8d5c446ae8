"""Weights of times, of jumps and of groups; tangents of bounded length."""

import math
from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_adapters.testing import strategies
from onestep_core import flow, regression
from onestep_core.errors import ConfigError
from onestep_core.regression import sigmoid_elbo
from onestep_core.shapes import per_sample_sum
from tests.cases import TWO_MODES
from tests.toy import F64

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [[0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_means_of_a_group_and_the_rest(group):
    """The mean over a batch becomes the mean of the rest plus the weighted mean of the group, where they exist."""
    loss, group = strategies.normal(0, 5).square().requires_grad_(), torch.tensor(group, dtype=torch.bool)
    factor = regression.separate_means(loss, group, weight=0.1)
    assert not factor.requires_grad
    means = [0.1 * loss[group].mean() if group.any() else 0.0, loss[~group].mean() if (~group).any() else 0.0]
    close((factor * loss).mean(), torch.as_tensor(sum(means), dtype=F64))


def test_weights_of_consistency_losses():
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=F64)
    c_out = flow.edm_scalings(sigma, sigma_data=0.5).c_out
    close(regression.karras(sigma, sigma_data=0.5, power=0.5) * c_out, torch.ones(3, dtype=F64))
    t, m = sigma.clone().requires_grad_(), 0.3 * sigma
    weight = regression.inverse_duration(t, m)
    assert not weight.requires_grad
    close(weight, regression.inverse_duration(m, t))
    close(weight * (t - m), torch.ones(3, dtype=F64))
    close(regression.inverse_duration(t, m, power=0.5).square(), weight)


closer = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def test_normalised_tangents_keep_their_direction_and_are_bounded():
    g = (
        torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
        * torch.logspace(-4, 4, 6)[:, None, None]
    )
    norm = per_sample_sum(g.square()).sqrt()
    for constant in (0.0, 0.1, 2.0):
        plain, mean = (one.normalize_tangent(g, constant=constant, per_dimension=flag) for flag in (False, True))
        length = per_sample_sum(plain.square()).sqrt()
        closer(length, norm / (norm + constant))
        closer(one.cosine(plain, g), torch.zeros(6, dtype=F64))
        closer(mean, math.sqrt(8) * one.normalize_tangent(g, constant=math.sqrt(8) * constant))
    assert torch.equal(one.normalize_tangent(0 * g, constant=0.0), 0 * g)
    assert not one.normalize_tangent(g.requires_grad_()).requires_grad
    with pytest.raises(ConfigError, match="constant"):
        one.normalize_tangent(g, constant=-0.1)


def test_weights_of_trajectories():
    t, s = torch.tensor([4.0, 9.0], requires_grad=True), torch.tensor([2.0, 3.0])
    assert one.square_root_weight(t).tolist() == [2.0, 3.0]
    torch.testing.assert_close(one.inverse_jump(t, s, power=1.0), torch.tensor([2.0, 1.5]))
    assert not one.inverse_jump(t, s, power=1.0).requires_grad


LINE = flow.Linear()


PATHS = {
    "linear": LINE,
    "reversed": flow.reverse(LINE),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def problem(path, batch: int, particles: int, seed: int = 0, mixture=TWO_MODES):
    """Data, noise and times ``t, m, s`` that are equal within a group."""
    groups = batch // particles
    t, s = (strategies.spread_times(path, groups, seed + i, margin=0.1) for i in (1, 2))
    t, s = (time.clamp(max=5.0) if path is PATHS["exploding"] else time for time in (t, s))
    t = torch.where((t - s).abs() < 0.05, s + 0.2, t)
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 3, *data.shape)
    t, m, s = (time.repeat_interleave(particles) for time in (t, (t + s) / 2, s))
    return data, noise, t, m, s


@each_path
def test_the_weight_by_differentiating_the_log_signal_to_noise_ratio(path):
    _, _, t, *_ = problem(path, 8, 1)
    t.requires_grad_()
    alpha, sigma = path.coefficients(t)
    log_snr = (alpha.square() / sigma.square()).log()
    (slope,) = torch.autograd.grad(log_snr.sum(), t)
    expected = 0.5 * (4 - log_snr).sigmoid() * slope.abs() * alpha**2 / (alpha**2 + sigma**2)
    weight = sigmoid_elbo(t, path=path, shift=4.0, power=2.0)
    torch.testing.assert_close(weight, expected.detach())
    assert not weight.requires_grad
