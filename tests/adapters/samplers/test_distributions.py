"""Samplers draw from the right distribution: exactly for affine maps, to sampling error for a mixture."""

import math
from functools import partial

import pytest
import torch

from onestep_adapters.samplers import (
    consistency_multistep,
    gamma_multistep,
    multistep,
    noised_multistep,
    sample_ancestral,
    sample_denoiser,
    sample_dpmpp_2m,
    standard_normal,
)
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from tests.adapters.samplers.cases import PATHS, Normal, at_ratios, each_path, grid, moments_of, normal
from tests.toy import F64

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
def test_stochastic_samplers_keep_the_distribution_exactly_when_the_map_is_exact(path, name):
    """Mean and variance at the last time, in the middle of the path, for affine maps; no sampling error.

    The textbook floor may land below a noisy data end; paths and the affine map continue there.
    """
    oracle, times = Normal(path), at_ratios(path, 6.0, 2.0, 0.9, 0.4)
    sampler = partial(STOCHASTIC[name], oracle)
    mean, variance = moments_of(lambda z, noise: sampler(z, times, noise), oracle, times, draws=3)
    expected = [float(m) for m in oracle.moments(times[-1:])]
    assert [mean, variance] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "exploding"])
def test_ancestral_sampling_converges_to_the_distribution(name, eta):
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


def test_churn_keeps_the_distribution_up_to_the_steps_error():
    """EDM's algorithm 2 with Heun: the error of the variance falls at least as the square of the step."""
    path = PATHS["exploding"]
    oracle, errors = Normal(path), []
    for steps in (40, 80):
        times = grid(path, steps)
        sampler = partial(sample_denoiser, oracle.denoiser, times=times, path=path, churn=8.0, low=0.1, high=4.0)
        _, variance = moments_of(lambda z, noise, f=sampler: f(z, noise=noise), oracle, times, draws=steps)
        errors.append(abs(variance - float(oracle.moments(times[-1:])[1])))
    assert math.log2(errors[0] / errors[1]) > 1.8


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
    threshold = 1.95 * math.sqrt(2 / count)
    for kind, made in samples.items():
        assert largest_gap(made, data[count:]) < threshold, kind
    silent = consistency_multistep(to_data, z, few, path=path, noise=torch.zeros(3, count, 2, dtype=F64))
    assert largest_gap(silent, data[count:]) > threshold


def test_a_grid_that_goes_up_again_restarts():
    """Down to the data, up to ratio 1 and down again, with an exact map: the distribution is kept."""
    path = flow.VarianceExploding(0.01, 20.0)
    oracle = Normal(path)
    times, landings = torch.tensor([20.0, 1.0, 1.0, 0.01], dtype=F64), torch.tensor([0.01, 0.1, 0.01], dtype=F64)

    def sample(z, noise):
        return noised_multistep(oracle.flow_map, z, times, landings, path=path, noise=noise)

    mean, variance = moments_of(sample, oracle, times, draws=2)
    assert [mean, variance] == pytest.approx([float(m) for m in oracle.moments(times[-1:])])
