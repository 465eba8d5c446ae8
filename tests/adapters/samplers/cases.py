"""Paths, grids and exact maps of normal data, shared by the tests of samplers.

Data ``N(mu, c^2)`` in one dimension make every map affine, so a sampler's output is an affine function of its start
and of its draws. Its coefficients, read off by running it on unit vectors, give the variance of its samples without
drawing any: the distribution of a stochastic sampler is tested to rounding.
"""

import math
from functools import partial

import pytest
import torch

from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.flow.ratios import time_at
from tests.cases import TWO_MODES
from tests.toy import F64

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


def exact(method, path):
    """A map of the mixture of two modes, on a path."""
    return partial(getattr(TWO_MODES, method), path=path)


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
    """Mean and variance of an affine sampler's output, for a start with the exact distribution of its first time."""
    rows = draws + 2
    unit = torch.eye(rows, dtype=F64)
    out = sampler(unit[:, :1], unit[:, 1:-1].T[:, :, None])[:, 0]  # start and draws are unit vectors, the last row zero
    start, *rest = (out[:-1] - out[-1]).tolist()
    mean, variance = (float(m) for m in oracle.moments(times[:1]))
    return out[-1].item() + start * mean, start**2 * variance + sum(r**2 for r in rest)
