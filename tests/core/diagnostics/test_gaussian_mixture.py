"""The oracle against closed forms, quadrature and itself."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, shapes
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from tests.cases import TWO_MODES

GENERAL = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.5], [1.0, -0.5], [0.0, 1.5]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.25, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.5]]],
)


PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.01),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.0, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def states(path, batch: int = 6, seed: int = 0, mixture=GENERAL) -> tuple[Tensor, Tensor, Tensor]:
    """Typical states with source and target times away from the ends."""
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    t, s = (strategies.spread_times(path, batch, seed + i) for i in (1, 2))
    z, _ = path(data, strategies.normal(seed + 3, *data.shape), t)
    return z, t, s


@each_path
def test_score_is_the_gradient_of_the_log_density(path):
    z, t, _ = states(path)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(GENERAL.log_density(z, t, path=path).sum(), z)
    torch.testing.assert_close(GENERAL.score(z, t, path=path), gradient, rtol=1e-10, atol=1e-10)


def test_the_density_integrates_to_one():
    grid = torch.linspace(-7, 7, 281, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)
    density = GENERAL.log_density(z, torch.full((len(z),), 0.4, dtype=torch.float64), path=flow.Linear()).exp()
    assert float(density.sum()) * float(grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-10)


@each_path
def test_denoiser_by_brute_force_quadrature(path):
    """Bayes' rule on a grid of data points, which shares no algebra with the oracle."""
    t = torch.full((3,), path.data_time + 0.3 * (min(path.noise_time, 4.0) - path.data_time), dtype=torch.float64)
    data = GENERAL.sample(3, generator=torch.Generator().manual_seed(0))
    z, _ = path(data, strategies.normal(1, 3, 2), t)
    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    zero = torch.full((len(x),), 0.0, dtype=torch.float64)
    prior = GENERAL.log_density(x, zero, path=flow.Linear())
    alpha, sigma = path.coefficients(t)
    for i in range(len(z)):
        weight = (prior - (z[i] - alpha[i] * x).square().sum(1) / (2 * sigma[i] ** 2)).softmax(0)
        torch.testing.assert_close(GENERAL.denoiser(z, t, path=path)[i], weight @ x, rtol=1e-8, atol=1e-8)
        spread = torch.einsum("n,ni,nj->ij", weight, x, x) - torch.outer(weight @ x, weight @ x)
        posterior = GENERAL.posterior(z, t, path=path)
        second = posterior.covariances[i] + posterior.means[i][:, :, None] * posterior.means[i][:, None]
        total = torch.einsum("k,kij->ij", posterior.responsibilities[i], second)
        mean = posterior.responsibilities[i] @ posterior.means[i]
        torch.testing.assert_close(total - torch.outer(mean, mean), spread, rtol=1e-7, atol=1e-7)


@each_path
def test_quadrature_reproduces_the_posterior(path):
    z, t, _ = states(path)
    nodes = GENERAL.quadrature(z, t, path=path, nodes=4)
    again = path(nodes.data.flatten(0, 1), nodes.noise.flatten(0, 1), t.repeat_interleave(nodes.data.shape[1]))
    torch.testing.assert_close(again.z.unflatten(0, nodes.data.shape[:2]), z[:, None].expand_as(nodes.data))
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    mean = (nodes.weights[:, :, None] * nodes.data).sum(1)
    close(mean, GENERAL.denoiser(z, t, path=path))
    v = again.v.unflatten(0, nodes.data.shape[:2])
    close((nodes.weights[:, :, None] * v).sum(1), GENERAL.velocity(z, t, path=path))
    posterior = GENERAL.posterior(z, t, path=path)
    outer = posterior.covariances + posterior.means[..., None] * posterior.means[..., None, :]
    second = torch.einsum("bn,bni,bnj->bij", nodes.weights, nodes.data, nodes.data)
    close(second, torch.einsum("bk,bkij->bij", posterior.responsibilities, outer))


@each_path
def test_velocity_agrees_with_predictions_from_the_denoiser(path):
    z, t, _ = states(path)
    expected = flow.velocity_from_data(z, GENERAL.denoiser(z, t, path=path), t, path=path)
    torch.testing.assert_close(GENERAL.velocity(z, t, path=path), expected, rtol=1e-8, atol=1e-8)


@each_path
def test_velocity_is_the_slope_of_the_flow_map(path):
    z, t, s = states(path)
    end = GENERAL.flow_map(z, t, s, path=path)
    step = 1e-4 * s.abs().clamp(min=0.1)
    ahead, behind = (GENERAL.flow_map(z, t, s + sign * step, path=path) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step[:, None])
    torch.testing.assert_close(slope, GENERAL.velocity(end, s, path=path), rtol=1e-6, atol=1e-6)


@each_path
def test_flow_map_of_one_gaussian_in_closed_form(path):
    one = GaussianMixture([1.0], [[1.0, -2.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    z, t, s = states(path, mixture=one)
    values, axes = torch.linalg.eigh(one.covariances[0])

    def moments(time: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (c[:, None] for c in path.coefficients(time))
        return alpha * one.means, (alpha.square() * values + sigma.square()).sqrt()

    (mean_t, std_t), (mean_s, std_s) = moments(t), moments(s)
    expected = mean_s + ((z - mean_t) @ axes * std_s / std_t) @ axes.mT
    torch.testing.assert_close(one.flow_map(z, t, s, path=path), expected, rtol=1e-10, atol=1e-10)


@each_path
def test_flow_map_reaches_the_stated_accuracy(path):
    """1e-10 for standard deviations of 0.3 at distances around 2, against eight times the steps, order eight."""
    mixture = GaussianMixture.isotropic([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]], 0.3)
    z, t, _ = states(path, 32, mixture=mixture)
    s = torch.full_like(t, path.data_time)
    reference = mixture.flow_map(z, t, s, path=path, steps=96)
    errors = [float((mixture.flow_map(z, t, s, path=path, steps=n) - reference).abs().max()) for n in (8, 32)]
    assert errors[1] < 1e-10
    assert errors[1] < errors[0] / 4**6
    back = mixture.flow_map(reference, s, t, path=path)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)


def test_all_paths_share_their_trajectories():
    """Where signal and noise have one ratio on two paths, the flow maps differ by a factor alone."""
    noise = strategies.normal(0, 5, 2)
    line, exploding = flow.Linear(), flow.VarianceExploding(0.0, 80.0)
    t = torch.full((5,), 0.8, dtype=torch.float64)
    z = 0.2 * GENERAL.sample(5, generator=torch.Generator().manual_seed(0)) + 0.8 * noise
    there = GENERAL.flow_map(z, t, 0 * t, path=line)
    torch.testing.assert_close(GENERAL.flow_map(z / 0.2, t / 0.2, 0 * t, path=exploding), there)


@each_path
def test_the_ends_of_a_path_are_ordinary_points(path):
    z = strategies.normal(0, 4, 2)
    ends = [torch.full((4,), time, dtype=torch.float64) for time in (path.data_time, path.noise_time)]
    for t in ends:
        for method in (GENERAL.log_density, GENERAL.score, GENERAL.denoiser):
            assert bool(method(z, t, path=path).isfinite().all())
        assert all(bool(part.isfinite().all()) for part in GENERAL.quadrature(z, t, path=path))
        for s in ends:
            assert bool(GENERAL.flow_map(z, t, s, path=path).isfinite().all())
    if path is not PATHS["cosine"]:  # its rates are infinite at the ends
        for t in ends:
            assert bool(GENERAL.velocity(z, t, path=path).isfinite().all())
            assert bool(GENERAL.average_velocity(z, t, t, path=path).isfinite().all())
    if path.coefficients(ends[0])[1].max() == 0:
        torch.testing.assert_close(GENERAL.denoiser(z, ends[0], path=path), z)


@each_path
def test_average_velocity_through_the_limit(path):
    z, t, _ = states(path)
    at_limit = GENERAL.average_velocity(z, t, t, path=path)
    torch.testing.assert_close(at_limit, GENERAL.velocity(z, t, path=path), rtol=1e-12, atol=1e-12)
    # The two branches meet: just inside and just outside 1e-4 they lie on one curve.
    edge = 1e-4 * min(1.0, abs(path.noise_time - path.data_time))
    inside, outside = (GENERAL.average_velocity(z, t, t + f * edge, path=path) for f in (0.999, 1.001))
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)
    # D_t a at s = t is half of D_t v along the trajectory.
    v, one = GENERAL.velocity(z, t, path=path), torch.ones_like(t)
    a = partial(GENERAL.average_velocity, path=path, steps=1)
    _, slope = torch.func.jvp(a, (z, t, t), (v, one, 0 * one))
    _, acceleration = torch.func.jvp(partial(GENERAL.velocity, path=path), (z, t), (v, one))
    torch.testing.assert_close(slope, acceleration / 2, rtol=1e-8, atol=1e-8)


def test_precision_devices_and_transforms():
    path = flow.Linear()
    z, t, s = states(path)
    wide = GENERAL.average_velocity(z, t, s, path=path, steps=8)
    single = GENERAL.average_velocity(z.float(), t.float(), s.float(), path=path, steps=8)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wide, rtol=1e-5, atol=1e-5)
    assert GENERAL.velocity(z.bfloat16(), t.bfloat16(), path=path).dtype == torch.float32
    alone = shapes.per_sample(partial(GENERAL.average_velocity, path=path, steps=8))(z, t, s)
    torch.testing.assert_close(alone[:, 0], wide)


def test_samples_have_the_mixture_s_moments():
    x = GENERAL.sample(200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), GENERAL.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.mT.cov(), GENERAL.covariance, rtol=0, atol=0.02)
    again = GENERAL.sample(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(GENERAL.sample(5, generator=torch.Generator().manual_seed(0)), again)


def test_noise_flows_to_data():
    """One jump of the exact map: the largest gap between the distribution functions of two coordinates."""
    path, count = flow.Linear(), 4000
    noise = strategies.normal(1, count, 2)
    one = torch.ones(count, dtype=torch.float64)
    made = TWO_MODES.flow_map(path.prior(noise), one, 0 * one, path=path, steps=8)
    real = TWO_MODES.sample(count, generator=torch.Generator().manual_seed(2))
    for axis in range(2):
        both = torch.cat([made[:, axis], real[:, axis]]).sort().values
        cdf = [torch.searchsorted(x[:, axis].sort().values, both, right=True) / count for x in (made, real)]
        assert float((cdf[0] - cdf[1]).abs().max()) < 1.95 * math.sqrt(2 / count)


@pytest.mark.parametrize(
    "weights, means, covariances",
    [
        ([0.5, 0.4], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]),
        ([1.0], [0.0], [[[1.0]]]),
        ([1.0], [[0.0], [1.0]], [[[1.0]]]),
        ([1.0], [[float("nan")]], [[[1.0]]]),
        ([1.0], [[0.0]], [[1.0]]),
        ([1.0], [[0.0]], [[[0.0]]]),
        ([1.0], [[0.0]], [[[float("nan")]]]),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]),
        ([1.0], [[0.0, 0.0]], [[[1.0]]]),
    ],
)
def test_impossible_mixtures_are_refused(weights, means, covariances):
    with pytest.raises(ConfigError, match="expected"):
        GaussianMixture(weights, means, covariances)
    for std in (0.0, -0.5, [0.5, float("nan")]):
        with pytest.raises(ConfigError, match="positive standard deviations"):
            GaussianMixture.isotropic([0.5, 0.5], [[0.0], [1.0]], std)


def test_impossible_numbers_are_refused():
    z, t = torch.zeros(1, 2), torch.zeros(1)
    with pytest.raises(ConfigError, match="steps"):
        TWO_MODES.flow_map(z, t, t, path=flow.Linear(), steps=0)
    with pytest.raises(ConfigError, match="nodes"):
        TWO_MODES.quadrature(z, t, path=flow.Linear(), nodes=0)
    with pytest.raises(ConfigError, match="million"):
        TWO_MODES.quadrature(z, t, path=flow.Linear(), nodes=1000)
