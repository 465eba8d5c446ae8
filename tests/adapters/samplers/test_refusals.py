"""Grids have the shapes that they are named for; grids and numbers that cannot work are refused."""

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
    sample_ancestral,
    sample_denoiser,
    standard_normal,
)
from onestep_core import flow
from onestep_core.errors import ArgumentError, ConfigError
from tests.adapters.samplers.calls import LINE, NOISY, SAMPLERS, TIMES
from tests.adapters.samplers.cases import normal
from tests.toy import F64, Net


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
        ([], "expected one axis"),
        (torch.tensor([[1.0, 0.0]]), "expected one axis"),
        ([0.0, 0.5, 1.0], "noise to data"),
        ([1.0, 0.5, 0.5, 0.0], "less noise"),
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
    with pytest.raises(ArgumentError):
        sample(normal(1, 4, 5, 3))
    with pytest.raises(ArgumentError):
        sample(lambda step, like: like[:2])


@pytest.mark.parametrize("name", sorted(NOISY))
def test_draws_beyond_the_steps_are_not_used(name):
    """Released code gives one to every time of the grid, the last one included."""
    noise = normal(1, 7, 6, 3)
    few, many = (SAMPLERS[name][1](Net(2), normal(0, 6, 3), TIMES, draws) for draws in (noise[:4], noise))
    assert torch.equal(few, many)


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
        (lambda z: noised_multistep(None_, z, [1.0, 0.5, 0.0], [0.2], path=LINE, noise=None), "one landing per step"),
        (lambda z: noised_multistep(None_, z, [1.0, 0.5], [0.7], path=LINE, noise=None), "no landing with more noise"),
        (lambda z: noised_multistep(None_, z, [1.0], [], path=LINE, noise=None), "expected one axis"),
        (
            lambda z: consistency_multistep(
                None_, z, flow.karras_grid(3), path=flow.VarianceExploding(), noise=standard_normal()
            ),
            "no landing with more noise",
        ),
        (lambda z: flow.karras_times([0, 40], steps=40), "40"),
        (lambda z: flow.karras_times([0], steps=1), "steps = 1"),
        (lambda z: flow.polyexponential_grid(1), "steps = 1"),
        (lambda z: flow.polyexponential_grid(3, rho=0.0), "rho"),
        (lambda z: flow.polyexponential_grid(3, sigma_min=0.0), "sigma_min"),
        (lambda z: flow.vp_grid(1), "steps = 1"),
        (lambda z: flow.vp_grid(4, end=0.0), "end"),
        (lambda z: flow.vp_grid(4, beta_min=0.0), "rates"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make(normal(0, 6, 3))


def None_(*arguments):
    raise AssertionError("the network was called")
