"""Samplers and steps that are equal to one another, renoising, and times by noise ratios."""

import math
from functools import partial

import pytest
import torch

from onestep_adapters.networks import count_calls
from onestep_adapters.samplers import (
    consistency_multistep,
    gamma_multistep,
    multistep,
    noised_multistep,
    one_step,
    sample_ancestral,
    sample_denoiser,
    sample_dpmpp_2m,
    sample_ode,
    standard_normal,
)
from onestep_core import flow, objectives, regression
from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import time_at
from onestep_core.shapes import expand_like
from tests.adapters.samplers.cases import Normal, at_ratios, each_path, exact, normal
from tests.cases import PATHS as ALL_PATHS
from tests.cases import TWO_MODES
from tests.toy import F64, Net


@each_path
def test_renoising_is_the_transition_of_the_path(path):
    """Two transitions are one; from the data end it takes the distribution there to the distribution at ``s``."""
    t, m, s = (time.expand(3) for time in at_ratios(path, 0.3, 0.8, 2.0).unbind())
    z = normal(0, 3, 2)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    step = partial(flow.renoise, path=path)
    torch.testing.assert_close(step(step(z, zero, t, m), zero, m, s), step(z, zero, t, s))
    twice = (step(step(zero, one, t, m), zero, m, s).square() + step(zero, one, m, s).square()).sqrt()
    torch.testing.assert_close(twice, step(zero, one, t, s))
    assert torch.equal(step(z, one, t, t), z)
    torch.testing.assert_close(step(z, one, s, t), step(z, zero, s, t))  # downwards no noise is added
    oracle = Normal(path)
    end = torch.full_like(t, path.data_time)
    kept, added = float(step(one, zero, end, s)[0, 0]), float(step(zero, one, end, s)[0, 0])
    variance = kept**2 * oracle.moments(end)[1] + added**2
    torch.testing.assert_close(variance, oracle.moments(s)[1])


def test_the_two_rules_of_renoising_differ_by_the_noise_at_the_data_end():
    noise, s = torch.ones(1, 1, dtype=F64), torch.tensor([0.5], dtype=F64)
    for path, left in ((flow.Linear(), 0.0), (flow.VarianceExploding(0.3, 80.0), 0.3)):
        start = torch.full_like(s, path.data_time)
        aware, clean = (f(0 * noise, noise, start, s, path=path) for f in (flow.renoise, flow.renoise_clean))
        assert float(clean**2 - aware**2) == pytest.approx(left**2, abs=1e-12)
        torch.testing.assert_close(clean, path(0 * noise, noise, s).z)


def test_a_sampler_can_take_estimates_for_clean():
    path, z = flow.VarianceExploding(0.3, 80.0), normal(0, 4, 2)
    oracle, times, noise = Normal(path), [80.0, 2.0, 0.3], normal(1, 1, 4, 2)
    sample = partial(consistency_multistep, oracle.consistency, z, times, path=path, noise=noise)
    half = oracle.consistency(z, torch.full((4,), 80.0, dtype=F64)) + 2.0 * noise[0]
    expected = oracle.consistency(half, torch.full((4,), 2.0, dtype=F64))
    torch.testing.assert_close(sample(renoise=flow.renoise_clean), expected)
    assert not torch.allclose(sample(), expected)


@each_path
def test_times_are_known_by_their_ratios(path):
    inside = torch.tensor([0.1, 0.5, 1.0, 7.0], dtype=F64)
    torch.testing.assert_close(flow.noise_ratio(time_at(inside, path=path), path=path), inside, rtol=1e-10, atol=1e-10)
    ends = torch.tensor([path.data_time, path.noise_time], dtype=F64)
    torch.testing.assert_close(time_at(flow.noise_ratio(ends, path=path), path=path), ends, rtol=1e-10, atol=1e-10)
    single = time_at(inside.float(), path=path)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, time_at(inside, path=path).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        flow.time_of_noise_ratio(inside, path=path), time_at(inside, path=path), rtol=1e-10, atol=1e-10
    )


def test_bisection_serves_foreign_paths_and_tables():
    class Foreign:
        """A path without ``time_at``: noise at 0."""

        data_time, noise_time = 2.0, 0.0

        def coefficients(self, t):
            return t / 2, (1 - t / 2) ** 2

        def rates(self, t):
            return torch.full_like(t, 0.5), t / 2 - 1

    ratio = torch.tensor([0.0, 0.3, 4.0, math.inf], dtype=F64)
    found = flow.time_of_noise_ratio(ratio, path=Foreign())
    torch.testing.assert_close(flow.noise_ratio(found[:3], path=Foreign()), ratio[:3], rtol=1e-9, atol=1e-9)
    assert found[3].item() == pytest.approx(0.0, abs=1e-12)
    mirrored = flow.reverse(Foreign())
    torch.testing.assert_close(mirrored.time_at(ratio), 2 - found)
    table = ALL_PATHS["table"][0]
    torch.testing.assert_close(flow.noise_ratio(time_at(ratio[1:3], path=table), path=table), ratio[1:3])
    assert time_at(ratio[-1:], path=table).item() == table.noise_time
    with pytest.raises(ConfigError, match="finite ends"):
        flow.time_of_noise_ratio(ratio, path=flow.VarianceExploding(0.0, math.inf))


@each_path
def test_the_limits_of_gamma(path):
    """0 is deterministic multi-step, 1 consistency multi-step of the same map; both end at the data end."""
    oracle, z, noise = Normal(path), normal(0, 4, 1), normal(1, 3, 4, 1)
    times = torch.cat([at_ratios(path, 6.0, 2.0, 0.5), torch.tensor([path.data_time], dtype=F64)])
    sample = partial(gamma_multistep, oracle.flow_map, z, times, path=path)
    assert torch.equal(sample(noise=None, gamma=0.0), multistep(oracle.flow_map, z, times, path=path))
    expected = consistency_multistep(oracle.consistency, z, times, path=path, noise=noise)
    torch.testing.assert_close(sample(noise=noise, gamma=1.0), expected, rtol=1e-9, atol=1e-9)
    near = sample(noise=noise, gamma=1e-9)
    torch.testing.assert_close(near, sample(noise=None, gamma=0.0), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(sample(noise=noise, gamma=0.5), expected)


def test_the_floor_of_gamma_is_the_released_or_the_textbook_one():
    path, times = flow.VarianceExploding(0.002, 80.0), torch.tensor([5.0], dtype=F64)
    released, textbook = (
        flow.times_with_less_noise(times, gamma=0.6, path=path),
        flow.times_with_less_noise(times, gamma=0.6, path=path, floor=0.0),
    )
    assert released.item() == pytest.approx(0.8 * (5 - 0.002) + 0.002)
    assert textbook.item() == pytest.approx(4.0)
    assert flow.times_with_less_noise(times, gamma=1.0, path=path).item() == pytest.approx(0.002)


@each_path
def test_ancestral_is_a_ddim_step_below_and_noise_back_up(path):
    """For ``eta`` in [0, 1]: one loop serves both, with a gamma of ``eta sqrt(1 - (ratio_s / ratio_t)^2)``."""
    oracle, z, noise = Normal(path), normal(0, 4, 1), normal(1, 3, 4, 1)
    values = [6.0, 2.0, 0.9, 0.4]
    times, eta = at_ratios(path, *values), 0.7
    landings = torch.cat(
        [
            flow.times_with_less_noise(then[None], gamma=eta * math.sqrt(1 - (b / a) ** 2), path=path, floor=0.0)
            for a, b, then in zip(values, values[1:], times[1:], strict=False)
        ]
    )
    step = partial(flow.ddim, oracle.denoiser, path=path)
    made = noised_multistep(step, z, times, landings, path=path, noise=noise)
    expected = sample_ancestral(oracle.denoiser, z, times, path=path, noise=noise, eta=eta)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)
    still = sample_ancestral(oracle.denoiser, z, times, path=path, noise=None, eta=0.0)
    torch.testing.assert_close(still, multistep(step, z, times, path=path))


def test_ancestral_steps_draw_from_the_forward_posterior():
    """Given data and state, mean and variance of Bayes' rule on two Gaussians."""
    path, x, z = flow.VarianceExploding(), 0.3, 1.7
    t, s = torch.tensor([2.0], dtype=F64), torch.tensor([0.8], dtype=F64)
    state, noise = torch.full((1, 1), z, dtype=F64), torch.zeros(1, 1, dtype=F64)
    step = partial(flow.ancestral, lambda z, t: torch.full_like(z, x), state, t=t, s=s, path=path)
    precision = 1 / 0.8**2 + 1 / (2.0**2 - 0.8**2)
    mean = (x / 0.8**2 + z / (2.0**2 - 0.8**2)) / precision
    assert step(noise=noise).item() == pytest.approx(mean)
    assert (step(noise=noise + 1) - step(noise=noise)).item() == pytest.approx(precision**-0.5)
    assert step(noise=noise + 1, eta=50.0).item() == pytest.approx(x + 0.8)  # never more noise than s has


@each_path
def test_dpmpp_2m_with_an_unchanged_estimate_is_ddim(path):
    z, data = normal(0, 3, 2), normal(1, 3, 2)
    before, t, s = (time.expand(3) for time in at_ratios(path, 4.0, 2.0, 0.7).unbind())
    expected = flow.ddim(lambda z, t: data, z, t, s, path=path)
    torch.testing.assert_close(flow.dpmpp_2m(z, data, data, before, t, s, path=path), expected)


@pytest.mark.parametrize("path", [flow.Linear(), flow.Trigonometric(0.5)], ids=["linear", "trigonometric"])
def test_second_order_samplers_run_from_end_to_end(path):
    """Noise end without signal to clean data end: finite, and near the exact map."""
    z = path.prior(normal(0, 8, 2))
    times = flow.uniform_grid(64, path=path, dtype=F64)
    expected = TWO_MODES.flow_map(z, times[:1].expand(8), times[-1:].expand(8), path=path)
    denoiser = exact("denoiser", path)
    for made in (
        sample_dpmpp_2m(denoiser, z, times, path=path),
        sample_denoiser(denoiser, z, times, path=path),
        sample_denoiser(denoiser, z, times, path=path, noise=standard_normal(), churn=1.0, high=0.0),
    ):
        torch.testing.assert_close(made, expected, rtol=0, atol=0.02)


def test_one_step_is_multistep_between_the_ends():
    net, path, noise = count_calls(Net(2)), flow.Linear(), normal(0, 6, 3)
    expected = one_step(net, noise, path=path)
    flow_map = flow.flow_map_from_average_velocity(net)
    assert torch.equal(multistep(flow_map, path.prior(noise), [1.0, 0.0], path=path), expected)
    f = flow.consistency_from_flow_map(flow_map, end=0.0)
    assert torch.equal(consistency_multistep(f, path.prior(noise), [1.0, 0.0], path=path, noise=None), expected)
    fresh = {"noise": None, "gamma": 0.5}  # the only jump is the last
    assert torch.equal(gamma_multistep(flow_map, path.prior(noise), [1.0, 0.0], path=path, **fresh), expected)
    assert net.calls == 4
    half = multistep(flow_map, path.prior(noise), [1.0, 0.5], path=path)  # also where the grid ends in the middle
    assert torch.equal(gamma_multistep(flow_map, path.prior(noise), [1.0, 0.5], path=path, **fresh), half)


def test_the_ode_sampler_is_edm_s_on_the_linear_path():
    path, noise = flow.Linear(), normal(0, 6, 3)
    velocity = Net(1)
    made = sample_ode(velocity, noise, path=path, steps=5, method=flow.euler)
    denoiser = flow.denoiser_from_velocity(velocity, path=path)
    times = flow.uniform_grid(5, path=path, dtype=F64)
    torch.testing.assert_close(sample_denoiser(denoiser, noise, times, path=path, step=flow.ddim), made)


def test_the_loss_of_a_raw_network_is_the_weighted_loss_of_its_denoiser():
    """k-diffusion's three weights; on the denoising loss they are karras, soft-min-snr and snr."""
    sigma, data, path, net = normal(0, 5).exp(), normal(1, 5, 3), flow.VarianceExploding(), Net(1)
    scalings = flow.edm_scalings(sigma, sigma_data=0.5)
    z = path(data, normal(2, 5, 3), sigma).z
    raw = net(expand_like(scalings.c_in, z) * z, sigma)
    inside = regression.mse(*regression.regression(raw, flow.raw_target(z, data, scalings)))
    outside = regression.mse(*objectives.denoising_regression(flow.edm(net, sigma_data=0.5), z, data, sigma))
    unit = regression.karras(sigma, sigma_data=0.5)
    torch.testing.assert_close(unit, scalings.c_out**-2)
    torch.testing.assert_close(inside, outside * unit)
    soft = regression.soft_min_snr(sigma, sigma_data=0.5) / unit
    torch.testing.assert_close(soft, (sigma * 0.5) ** 2 / (sigma**2 + 0.25) ** 2)
    torch.testing.assert_close(regression.snr(sigma, path=flow.VarianceExploding()) / unit, 0.25 / (sigma**2 + 0.25))
