"""Deterministic samplers converge to the flow map at their order; churn raises the noise ratio as it says."""

import math
from functools import partial

import pytest
import torch

from onestep_adapters.samplers import (
    multistep,
    sample_denoiser,
    sample_dpmpp_2m,
)
from onestep_core import flow
from tests.adapters.samplers.cases import at_ratios, each_path, exact, grid, normal
from tests.cases import TWO_MODES
from tests.toy import F64

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


@each_path
def test_churn_raises_the_noise_ratio_within_its_limits(path):
    """By ``min(churn / steps, sqrt(2) - 1)``; the added noise has the given scale."""
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
