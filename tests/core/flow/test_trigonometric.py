"""TrigFlow: one network as a velocity and as a consistency function."""

import math
from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.errors import ConfigError
from onestep_core.shapes import expand_like
from tests.cases import TWO_MODES
from tests.toy import Net, batch

F64 = torch.float64


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_trigflow_of_the_oracle_s_denoiser_is_its_velocity(sigma_data):
    """EDM's denoiser through ``F`` is the trigonometric path's velocity, its consistency function the denoiser."""
    path, exploding = flow.Trigonometric(sigma_data), flow.VarianceExploding(0.0, 80.0)
    p = problem(path, TWO_MODES)
    network = flow.trigflow_from_denoiser(partial(TWO_MODES.denoiser, path=exploding), sigma_data=sigma_data)
    close(flow.trigflow_velocity(network, sigma_data=sigma_data)(p.z, p.t), TWO_MODES.velocity(p.z, p.t, path=path))
    close(flow.trigflow(network, sigma_data=sigma_data)(p.z, p.t), TWO_MODES.denoiser(p.z, p.t, path=path))
    sigma = strategies.spread_times(exploding, 5, 0)
    t = flow.trigflow_time(sigma, sigma_data=sigma_data)
    close(one.snr(t, path=path), one.snr(sigma, path=exploding))
    close(t.tan() * sigma_data, sigma)


def test_trigflow_at_its_ends():
    net, (_, z, _, _, _) = Net(1), batch()
    f = flow.trigflow(net, sigma_data=0.5)
    zero, noise_end = torch.zeros(5, dtype=F64), torch.full((5,), math.pi / 2, dtype=F64)
    assert torch.equal(f(z, zero), z)
    close(f(z, noise_end), -0.5 * net(z, noise_end))


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_trigflow_tangent_is_the_derivative_of_the_consistency_function(sigma_data, channels):
    """``g = cos(t) df/dt`` along ``(v, 1)``, for any network and any velocity."""
    path, net = flow.Trigonometric(sigma_data), Net(1, channels)
    generator = torch.Generator().manual_seed(3)
    data, noise, v = torch.randn(3, 5, channels, generator=generator, dtype=F64)
    t = torch.linspace(0.1, 1.5, 5, dtype=F64)
    z, _ = path(data, noise, t)
    f = flow.trigflow(net, sigma_data=sigma_data)
    _, slope = torch.func.jvp(f, (z, t), (v, torch.ones_like(t)))
    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=sigma_data, normalize=None)
    close(pair.target - pair.prediction, expand_like(t.cos(), z) * slope)


def test_trigflow_refuses_numbers_that_cannot_work():
    z, t = torch.ones(1, 1), torch.ones(1)
    for call in (
        lambda: flow.trigflow(lambda z, t: z, sigma_data=0.0),
        lambda: flow.trigflow_velocity(lambda z, t: z, sigma_data=-1.0),
        lambda: flow.trigflow_from_denoiser(lambda z, t: z, sigma_data=0.0),
        lambda: flow.trigflow_time(t, sigma_data=0.0),
        lambda: one.continuous_consistency_regression(lambda z, t: z, z, z, t, sigma_data=0.0),
    ):
        with pytest.raises(ConfigError, match="sigma_data"):
            call()
    for numbers, message in (((-1, 10), "iteration = -1"), ((1, 0), "iterations = 0")):
        with pytest.raises(ConfigError, match=message):
            flow.tangent_warmup(numbers[0], iterations=numbers[1])
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=f"warmup = {share}: expected a share from 0 to 1"):
            one.continuous_consistency_regression(lambda z, t: z, z, z, t, sigma_data=0.5, warmup=share)
