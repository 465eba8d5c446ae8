"""Samplers: exact laws on Gaussians and mixtures, orders of convergence, equalities, evaluations, refusals.

Data ``N(mu, c^2)`` in one dimension make every map affine, so a sampler's output is an affine function of its start
and of its draws. Its coefficients, read off by running it on unit vectors, give the variance of its samples without
drawing any: the law of a stochastic sampler is tested to rounding.
"""

import math
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.func import grad, vmap

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
from onestep_adapters.testing import strategies
from onestep_core import flow, objectives, regression
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import time_at
from onestep_core.shapes import expand_like, per_sample, per_sample_mean
from tests.cases import PATHS as ALL_PATHS
from tests.cases import TWO_MODES
from tests.toy import F64, Net

PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.05),
    "trigonometric": flow.Trigonometric(0.5),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.002, 80.0),
    "reversed": flow.reverse(flow.Linear()),
    "reversed exploding": flow.reverse(flow.VarianceExploding(0.01, 20.0)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
normal = strategies.normal


def at_ratios(path, *values):
    """Times of the path at the given ratios ``sigma / alpha``."""
    return time_at(torch.tensor(values, dtype=F64), path=path)


def grid(path, steps, top=5.0, bottom=0.05, last=()):
    """Times at evenly falling logs of the ratio, all inside of the path, where every step is defined."""
    inner = torch.logspace(math.log10(top), math.log10(bottom), steps + 1, dtype=F64)
    return torch.cat([time_at(inner, path=path), torch.tensor(last, dtype=F64)])


class Normal:
    """Data ``N(mu, c^2)``: the oracle whose every map is affine."""

    def __init__(self, path, mu=0.7, c=0.4):
        self.path, self.mu, self.c = path, mu, c

    def moments(self, t):
        alpha, sigma = self.path.coefficients(t)
        return alpha * self.mu, (alpha * self.c).square() + sigma.square()

    def flow_map(self, z, t, s):
        (mean_t, variance_t), (mean_s, variance_s) = self.moments(t), self.moments(s)
        return mean_s[:, None] + (variance_s / variance_t).sqrt()[:, None] * (z - mean_t[:, None])

    def consistency(self, z, t):
        return self.flow_map(z, t, torch.full_like(t, self.path.data_time))

    def denoiser(self, z, t):
        alpha = self.path.coefficients(t)[0]
        mean, variance = self.moments(t)
        return self.mu + (alpha * self.c**2 / variance)[:, None] * (z - mean[:, None])


def moments_of(sampler, oracle, times, draws):
    """Mean and variance of an affine sampler's output, for a start with the exact law of its first time."""
    rows = draws + 2
    unit = torch.eye(rows, dtype=F64)
    out = sampler(unit[:, :1], unit[:, 1:-1].T[:, :, None])[:, 0]  # start and draws are unit vectors, the last row zero
    start, *rest = (out[:-1] - out[-1]).tolist()
    mean, variance = (float(m) for m in oracle.moments(times[:1]))
    return out[-1].item() + start * mean, start**2 * variance + sum(r**2 for r in rest)


STOCHASTIC = {
    "consistency": lambda o, z, times, noise: consistency_multistep(o.consistency, z, times, path=o.path, noise=noise),
    "gamma 0": lambda o, z, times, noise: gamma_multistep(o.flow_map, z, times, path=o.path, noise=noise, gamma=0.0),
    "gamma 0.3": lambda o, z, times, noise: gamma_multistep(o.flow_map, z, times, path=o.path, noise=noise, gamma=0.3),
    "gamma 0.9, textbook": lambda o, z, times, noise: gamma_multistep(
        o.flow_map, z, times, path=o.path, noise=noise, gamma=0.9, floor=0.0
    ),
    "gamma 1": lambda o, z, times, noise: gamma_multistep(o.flow_map, z, times, path=o.path, noise=noise, gamma=1.0),
    "churn with the exact step": lambda o, z, times, noise: sample_denoiser(
        o.denoiser,
        z,
        times,
        path=o.path,
        step=lambda denoiser, z, t, s, path: o.flow_map(z, t, s),
        noise=noise,
        churn=3.0,
        low=0.1,
    ),
}


@each_path
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_keep_the_law_exactly_when_the_map_is_exact(path, name):
    """Mean and variance at the last time, in the middle of the path, for affine maps; no sampling error.

    The textbook floor may land below a noisy data end; paths and the affine map continue there.
    """
    oracle, times = Normal(path), at_ratios(path, 6.0, 2.0, 0.9, 0.4)
    sampler = partial(STOCHASTIC[name], oracle)
    mean, variance = moments_of(lambda z, noise: sampler(z, times, noise), oracle, times, draws=3)
    expected = [float(m) for m in oracle.moments(times[-1:])]
    assert [mean, variance] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@each_path
def test_renoising_is_the_transition_of_the_path(path):
    """Two transitions are one; from the data end it takes the law there to the law at ``s``."""
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


# Convergence to the exact flow map.


def exact(method, path):
    return partial(getattr(TWO_MODES, method), path=path)


DETERMINISTIC = {
    "euler": (1, lambda p: lambda z, ts: flow.integrate(partial(flow.euler, exact("velocity", p)), z, ts)),
    "heun": (2, lambda p: lambda z, ts: flow.integrate(partial(flow.heun, exact("velocity", p)), z, ts)),
    "ddim": (
        1,
        lambda p: lambda z, ts: multistep(partial(flow.ddim, exact("denoiser", p), path=p), z, ts, path=p),
    ),
    "edm, ddim": (
        1,
        lambda p: lambda z, ts: sample_denoiser(exact("denoiser", p), z, ts, path=p, step=flow.ddim),
    ),
    "edm, heun": (2, lambda p: lambda z, ts: sample_denoiser(exact("denoiser", p), z, ts, path=p)),
    "edm, dpm_2": (
        2,
        lambda p: lambda z, ts: sample_denoiser(exact("denoiser", p), z, ts, path=p, step=flow.dpm_2),
    ),
    "dpmpp_2m": (2, lambda p: lambda z, ts: sample_dpmpp_2m(exact("denoiser", p), z, ts, path=p)),
}


@each_path
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_converge_to_the_flow_map_at_their_order(path, name):
    """Between noise ratios 5 and 0.05 of a mixture, the rate from 64 to 128 steps, every path."""
    order, make = DETERMINISTIC[name]
    sampler = make(path)
    ends = grid(path, 1)
    z = path(TWO_MODES.sample(16, generator=torch.Generator().manual_seed(0)), normal(1, 16, 2), ends[:1].expand(16)).z
    expected = TWO_MODES.flow_map(z, ends[0].expand(16), ends[1].expand(16), path=path)
    errors = [float((sampler(z, grid(path, steps)) - expected).norm()) for steps in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert errors[1] < (0.1 if order == 1 else 0.01)


@each_path
def test_multistep_of_the_exact_map_is_the_exact_map(path):
    z, times = normal(0, 5, 2), grid(path, 3)
    whole = exact("flow_map", path)
    expected = whole(z, times[0].expand(5), times[-1].expand(5))
    torch.testing.assert_close(multistep(whole, z, times, path=path), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "exploding"])
def test_ancestral_sampling_converges_to_the_law(name, eta):
    """The variance of an affine sampler tends to the exact one at rate 1 in the step."""
    path = PATHS[name]
    oracle = Normal(path)
    errors = []
    for steps in (64, 128):
        times = grid(path, steps)
        sampler = partial(sample_ancestral, oracle.denoiser, times=times, path=path, eta=eta)
        mean, variance = moments_of(lambda z, noise, f=sampler: f(z, noise=noise), oracle, times, draws=steps)
        exact_mean, exact_variance = (float(m) for m in oracle.moments(times[-1:]))
        assert mean == pytest.approx(exact_mean, abs=0.05)
        errors.append(abs(variance - exact_variance))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


def test_churn_keeps_the_law_up_to_the_steps_error():
    """EDM's algorithm 2 with Heun: the error of the variance falls at least as the square of the step."""
    path = PATHS["exploding"]
    oracle, errors = Normal(path), []
    for steps in (40, 80):
        times = grid(path, steps)
        sampler = partial(sample_denoiser, oracle.denoiser, times=times, path=path, churn=8.0, low=0.1, high=4.0)
        _, variance = moments_of(lambda z, noise, f=sampler: f(z, noise=noise), oracle, times, draws=steps)
        errors.append(abs(variance - float(oracle.moments(times[-1:])[1])))
    assert math.log2(errors[0] / errors[1]) > 1.8


@each_path
def test_churn_raises_the_noise_ratio_within_its_limits(path):
    """By ``min(churn / steps, sqrt(2) - 1)``; the added noise has the scale asked for."""
    times = at_ratios(path, 4.0, 2.0, 0.5)
    up = flow.times_with_more_noise(times, growth=0.25, path=path, low=1.0, high=3.0)
    torch.testing.assert_close(flow.noise_ratio(up, path=path), torch.tensor([4.0, 2.5, 0.5], dtype=F64))
    seen = []

    def denoiser(z, t):
        seen.append((z, t))
        return 0 * z

    sample = partial(sample_denoiser, denoiser, torch.zeros(1, 1, dtype=F64), times, path=path, step=flow.ddim)
    for churn, factor in ((0.5, 1.25), (50.0, math.sqrt(2))):
        for scale in (1.0, 3.0):
            seen.clear()
            sample(noise=torch.ones(2, 1, 1, dtype=F64), churn=churn, high=3.0, noise_scale=scale)
            (first, t0), (second, t1) = seen
            assert first.item() == 0.0
            assert t0.item() == times[0].item()
            assert flow.noise_ratio(t1, path=path).item() == pytest.approx(2 * factor)
            alpha = path.coefficients(t1)[0].item()
            assert second.item() == pytest.approx(alpha * scale * 2 * math.sqrt(factor**2 - 1))


def largest_gap(made, real):
    """Between the distribution functions of two coordinates and of their sum."""
    gaps = []
    for direction in torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64):
        a, b = made @ direction, real @ direction
        both = torch.cat([a, b]).sort().values
        cdf = [torch.searchsorted(x.sort().values, both, right=True) / len(x) for x in (a, b)]
        gaps.append(float((cdf[0] - cdf[1]).abs().max()))
    return max(gaps)


@pytest.mark.parametrize("name", ["linear", "trigonometric", "cosine", "exploding", "reversed"])
def test_every_sampler_reproduces_a_mixture(name):
    """Kolmogorov and Smirnov's distance of 2,000 samples to 2,000 data, 0.1 % level, and a wrong sampler beyond it."""
    path, count = PATHS[name], 2000
    mixture = GaussianMixture.isotropic([0.3, 0.7], [[-2.0, 0.5], [2.0, 0.0]], 0.5)
    data = mixture.sample(2 * count, generator=torch.Generator().manual_seed(4))
    start = grid(path, 1, top=20.0)[:1]
    z = path(data[:count], normal(5, count, 2), start.expand(count)).z
    end = (path.data_time,)
    few = torch.cat([start, at_ratios(path, 2.0, 0.5), torch.tensor(end, dtype=F64)])
    many = grid(path, 30, top=20.0, last=end if path.data_time != 0.002 else ())
    draw = standard_normal(torch.Generator().manual_seed(6))
    whole = partial(mixture.flow_map, path=path, steps=6)
    to_data = flow.consistency_from_flow_map(whole, end=path.data_time)
    denoiser = partial(mixture.denoiser, path=path)
    samples = {
        "multistep": multistep(whole, z, few, path=path),
        "consistency": consistency_multistep(to_data, z, few, path=path, noise=draw),
        "gamma": gamma_multistep(whole, z, few, path=path, noise=draw, gamma=0.6),
        "heun": sample_denoiser(denoiser, z, many, path=path),
        "churn": sample_denoiser(denoiser, z, many, path=path, noise=draw, churn=10.0, low=0.05, high=10.0),
        "dpm_2": sample_denoiser(denoiser, z, many, path=path, step=flow.dpm_2),
        "dpmpp_2m": sample_dpmpp_2m(denoiser, z, many, path=path),
        "ancestral": sample_ancestral(denoiser, z, many, path=path, noise=draw),
    }
    bar = 1.95 * math.sqrt(2 / count)
    for kind, made in samples.items():
        assert largest_gap(made, data[count:]) < bar, kind
    silent = consistency_multistep(to_data, z, few, path=path, noise=torch.zeros(3, count, 2, dtype=F64))
    assert largest_gap(silent, data[count:]) > bar


# Equalities.


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


# Evaluations, noise, gradients.

SAMPLERS = {
    "multistep": (4, lambda f, z, ts, n: multistep(f, z, ts, path=LINE)),
    "consistency": (4, lambda f, z, ts, n: consistency_multistep(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n)),
    "gamma": (4, lambda f, z, ts, n: gamma_multistep(f, z, ts, path=LINE, noise=n, gamma=0.5)),
    "ddim": (4, lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, step=flow.ddim)),
    "heun": (7, lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE)),
    "heun, not to the end": (
        6,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts[:-1], path=LINE),
    ),
    "churn": (
        7,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n, churn=2.0, high=10.0),
    ),
    "dpm_2": (
        7,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, step=flow.dpm_2),
    ),
    "ancestral": (4, lambda f, z, ts, n: sample_ancestral(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n)),
    "dpmpp_2m": (4, lambda f, z, ts, n: sample_dpmpp_2m(lambda z, t: f(z, t, t), z, ts, path=LINE)),
}
LINE = flow.Linear()
TIMES = [0.9, 0.6, 0.4, 0.2, 0.0]
NOISY = {"consistency", "gamma", "churn", "ancestral"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_call_the_network_as_often_as_they_say(name):
    calls, sample = SAMPLERS[name]
    net = count_calls(Net(2))
    sample(net, normal(0, 6, 3), TIMES, standard_normal())
    assert net.calls == calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_draws_and_a_callable_give_the_same(name):
    """The draw of a step is known by its number, whatever other steps ask for; only stochastic samplers ask."""
    _, sample = SAMPLERS[name]
    z, draws, asked = normal(0, 6, 3), normal(1, 4, 6, 3), []

    def draw(step, like):
        assert like.shape == z.shape
        asked.append(step)
        return draws[step]

    net = Net(2)
    assert torch.equal(sample(net, z, TIMES, draws), sample(net, z, torch.tensor(TIMES, dtype=F64), draw))
    assert asked == ([0, 1, 2, 3] if name == "churn" else [0, 1, 2] if name in NOISY else [])
    other = sample(net, z, TIMES, -draws)
    assert torch.equal(other, sample(net, z, TIMES, draws)) == (name not in NOISY)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_keep_gradients_and_precision(name):
    """The gradient of a sample in its start is that of finite differences; half precision comes back in float32."""
    _, sample = SAMPLERS[name]
    net, z, draws, along = Net(2), normal(0, 6, 3), normal(1, 4, 6, 3), normal(2, 6, 3)
    slope = grad(lambda z: sample(net, z, TIMES, draws).sum())(z)
    ahead, behind = (sample(net, z + sign * 1e-5 * along, TIMES, draws).sum().detach() for sign in (1, -1))
    assert float((slope.detach() * along).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)
    half = sample(Net(2).float(), z.bfloat16(), TIMES, draws.bfloat16())
    assert half.dtype == torch.float32
    assert sample(Net(2).float(), z.float(), TIMES, draws.float()).dtype == torch.float32


STEPS = {
    "denoised_heun": lambda net, z, noise, t, s: flow.denoised_heun(net, z, t, s, path=LINE),
    "dpm_2": lambda net, z, noise, t, s: flow.dpm_2(net, z, t, s, path=LINE),
    "dpmpp_2m": lambda net, z, noise, t, s: flow.dpmpp_2m(z, z.sin(), noise, 0 * t + 0.99, t, s, path=LINE),
    "renoise": lambda net, z, noise, t, s: flow.renoise(z, noise, s, t, path=LINE),
    "renoise_clean": lambda net, z, noise, t, s: flow.renoise_clean(z, noise, s, t, path=LINE),
    "ancestral": lambda net, z, noise, t, s: flow.ancestral(net, z, noise, t, s, path=LINE),
    "clamped": lambda net, z, noise, t, s: flow.clamped(net, low=-0.5, high=0.5)(z, t),
}


def step_inputs():
    t = torch.tensor([0.9, 0.8, 0.5], dtype=F64)
    return normal(0, 3, 3), normal(1, 3, 3), t, t / 2


@pytest.mark.parametrize("name", STEPS)
def test_steps_run_per_sample_and_compile_without_a_break(name):
    net, inputs = Net(1), step_inputs()
    step = partial(STEPS[name], net)
    batched = step(*inputs)
    assert bool(batched.isfinite().all())
    torch.testing.assert_close(per_sample(step)(*inputs)[:, 0], batched)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), batched)
    if name != "clamped":  # elementwise: nothing to notice
        with pytest.raises(TypeCheckError):
            vmap(step)(*inputs)


def test_clamped_estimates_stay_in_the_range_of_the_data():
    d = flow.clamped(lambda z, t: 10 * z, low=-0.5, high=0.25)
    z, t = normal(0, 8, 2), torch.ones(8, dtype=F64)
    torch.testing.assert_close(d(z, t), (10 * z).clamp(-0.5, 0.25))
    made = sample_denoiser(d, 50 * z, [5.0, 1.0, 0.0], path=flow.VarianceExploding())
    assert float(made.min()) >= -0.5
    assert float(made.max()) <= 0.25


def test_a_grid_that_goes_up_again_restarts():
    """Down to the data, up to ratio 1 and down again, with an exact map: the law is kept."""
    path = flow.VarianceExploding(0.01, 20.0)
    oracle = Normal(path)
    times, landings = torch.tensor([20.0, 1.0, 1.0, 0.01], dtype=F64), torch.tensor([0.01, 0.1, 0.01], dtype=F64)

    def sample(z, noise):
        return noised_multistep(oracle.flow_map, z, times, landings, path=path, noise=noise)

    mean, variance = moments_of(sample, oracle, times, draws=2)
    assert [mean, variance] == pytest.approx([float(m) for m in oracle.moments(times[-1:])])


# Grids and refusals.


def test_a_grid_needs_finite_ends():
    with pytest.raises(ConfigError, match="finite"):
        flow.uniform_grid(4, path=flow.VarianceExploding(0.0, math.inf))


def test_grids_have_the_shapes_that_they_are_named_for():
    even = flow.polyexponential_grid(6, sigma_min=0.01, sigma_max=10.0, dtype=F64)
    torch.testing.assert_close(even[1:-1] / even[:-2], torch.full((5,), 1000 ** (-1 / 5), dtype=F64))
    bent = flow.polyexponential_grid(6, sigma_min=0.01, sigma_max=10.0, rho=2.0, dtype=F64)
    torch.testing.assert_close(bent[[0, -2]], even[[0, -2]])
    assert bool((bent[1:-2] < even[1:-2]).all())
    # The variance-preserving process with that rate: alpha^2 = 1 / (1 + ratio^2) = exp(-integral of the rate).
    preserving = flow.vp_grid(5, dtype=F64)
    t = torch.linspace(1, 1e-3, 5, dtype=F64)
    rate = [torch.trapezoid(0.1 + 19.9 * torch.linspace(0, float(x), 101, dtype=F64), dx=float(x) / 100) for x in t]
    torch.testing.assert_close(1 / (1 + preserving[:-1] ** 2), (-torch.stack(rate)).exp())
    whole = flow.karras_grid(18, dtype=F64)
    torch.testing.assert_close(flow.karras_times([0, 7, 17], steps=18, dtype=F64), whole[[0, 7, 17]])
    for made in (even, bent, preserving, whole):
        assert made[-1] == 0
        assert bool((made.diff() < 0).all())


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], "two"),
        ([], "row"),
        (torch.tensor([[1.0, 0.0]]), "row"),
        ([0.0, 0.5, 1.0], "noise to data"),
        ([1.0, 0.5, 0.5, 0.0], "less noisy"),
        ([1000.0, 500.0, 0.0], "no points"),
        ([1.0, -0.5], "no points"),
        ([1.0, math.nan, 0.0], "no points"),
    ],
)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "heun, not to the end"])
def test_bad_grids_are_refused_before_the_network_is_called(name, times, message):
    net = count_calls(Net(2))
    with pytest.raises(ConfigError, match=message):
        SAMPLERS[name][1](net, normal(0, 6, 3), times, standard_normal())
    assert net.calls == 0


def test_an_infinite_time_is_refused():
    with pytest.raises(ConfigError, match="no points"):
        multistep(lambda z, t, s: z, normal(0, 6, 3), [math.inf, 1.0], path=flow.VarianceExploding(0.0, math.inf))


def test_a_reversed_path_wants_a_reversed_grid():
    path = flow.reverse(flow.Linear())
    z = normal(0, 6, 3)
    assert multistep(lambda z, t, s: z, z, [0.0, 0.5, 1.0], path=path).shape == z.shape
    with pytest.raises(ConfigError, match="noise to data"):
        multistep(lambda z, t, s: z, z, [1.0, 0.5, 0.0], path=path)


@pytest.mark.parametrize("end", [math.pi / 2, 1.5707964])
def test_a_rounded_end_is_no_error(end):
    z = normal(0, 6, 3).float()
    assert multistep(lambda z, t, s: z, z, [end, 0.0], path=flow.Trigonometric()).shape == z.shape


@pytest.mark.parametrize("name", sorted(NOISY))
def test_missing_noise_is_refused(name):
    sample = partial(SAMPLERS[name][1], Net(2), normal(0, 6, 3), TIMES)
    with pytest.raises(ConfigError, match="no noise for step"):
        sample(None)
    with pytest.raises(ConfigError, match="2 draws"):
        sample(normal(1, 2, 6, 3))
    with pytest.raises(TypeCheckError):
        sample(normal(1, 4, 5, 3))
    with pytest.raises(TypeCheckError):
        sample(lambda step, like: like[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda z: gamma_multistep(None_, z, TIMES, path=LINE, noise=standard_normal(), gamma=1.5), "gamma = 1.5"),
        (lambda z: flow.times_with_less_noise(torch.ones(1), gamma=-0.1, path=LINE), "gamma = -0.1"),
        (lambda z: flow.times_with_less_noise(torch.ones(1), gamma=0.5, path=LINE, floor=-1.0), "floor = -1"),
        (lambda z: flow.times_with_more_noise(torch.ones(1), growth=-1.0, path=LINE), "growth = -1"),
        (lambda z: flow.times_with_more_noise(torch.ones(1), growth=1.0, path=LINE, low=2.0, high=1.0), "low <= high"),
        (lambda z: sample_denoiser(None_, z, TIMES, path=LINE, churn=-4.0), "growth = -1"),
        (lambda z: sample_ancestral(None_, z, TIMES, path=LINE, noise=standard_normal(), eta=-1.0), "eta = -1"),
        (lambda z: flow.clamped(None_, low=1.0, high=1.0), "low < high"),
        (lambda z: noised_multistep(None_, z, [1.0, 0.5, 0.0], [0.2], path=LINE, noise=None), "one landing a step"),
        (lambda z: noised_multistep(None_, z, [1.0, 0.5], [0.7], path=LINE, noise=None), "no landing noisier"),
        (lambda z: noised_multistep(None_, z, [1.0], [], path=LINE, noise=None), "row"),
        (
            lambda z: consistency_multistep(
                None_, z, flow.karras_grid(3), path=flow.VarianceExploding(), noise=standard_normal()
            ),
            "no landing noisier",
        ),
        (lambda z: flow.karras_times([0, 40], steps=40), "40"),
        (lambda z: flow.karras_times([0], steps=1), "1 steps"),
        (lambda z: flow.polyexponential_grid(1), "1 steps"),
        (lambda z: flow.polyexponential_grid(3, rho=0.0), "rho"),
        (lambda z: flow.polyexponential_grid(3, sigma_min=0.0), "sigma_min"),
        (lambda z: flow.vp_grid(1), "1 steps"),
        (lambda z: flow.vp_grid(4, end=0.0), "end"),
        (lambda z: flow.vp_grid(4, beta_min=0.0), "rates"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make(normal(0, 6, 3))


def None_(*arguments):
    raise AssertionError("the network was called")


def test_fresh_noise_is_standard_normal_and_follows_its_generator():
    like = torch.zeros(200, 50, dtype=F64)
    draw = standard_normal(torch.Generator().manual_seed(0))
    first, second = draw(0, like), draw(0, like)
    assert first.dtype == F64
    assert not torch.equal(first, second)
    assert torch.equal(standard_normal(torch.Generator().manual_seed(0))(3, like), first)
    assert abs(float(first.mean())) < 0.04
    assert float(per_sample_mean(first.square()).mean()) == pytest.approx(1, abs=0.05)
