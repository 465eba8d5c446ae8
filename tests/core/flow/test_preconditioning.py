"""Preconditioning: scalings, wrapped networks and back, two stages as one."""

import math
from functools import partial

import pytest
import torch

from onestep_adapters.networks import frozen
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.shapes import expand_like
from tests.cases import TWO_MODES
from tests.toy import F64, Net


def network(width=8):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, 2)).double()


@pytest.mark.parametrize(
    "path",
    [
        flow.Linear(),
        flow.Linear(0.05),
        flow.Trigonometric(0.7),
        flow.VarianceExploding(0.01, 5.0),
        flow.reverse(flow.Linear()),
    ],
    ids=["linear", "floor", "trigonometric", "exploding", "reversed"],
)
def test_velocity_scalings_leave_what_a_line_cannot_say(path):
    """For Gaussian data of that spread ``c_skip z`` is the marginal velocity, and the rest has the size ``c_out``."""
    sd, count = 0.6, 200_000
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    for share in (0.0, 0.3, 0.8, 1.0):
        t = torch.full((count,), path.data_time + share * (path.noise_time - path.data_time), dtype=torch.float64)
        z, v = path(sd * data, noise, t)
        scalings = flow.velocity_scalings(t, path=path, sigma_data=sd)
        left = v - scalings.c_skip[:, None] * z
        assert float((left * z).mean()) == pytest.approx(0, abs=5e-3 * float(z.std() * v.std()))
        assert float(left.std()) == pytest.approx(float(scalings.c_out[0].abs()), rel=1e-2)
        assert float((scalings.c_in[:, None] * z).std()) == pytest.approx(1, rel=1e-2)


def test_velocity_scalings_on_the_linear_path_are_the_slope_of_simple_edm():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    t, s = torch.rand(2, 6, generator=generator, dtype=torch.float64)

    def network(z, t, s):
        return z.sin() + (t - 2 * s)[:, None]

    settings = {"path": flow.Linear(), "sigma_data": 0.6}
    slope = flow.preconditioned(network, partial(flow.velocity_scalings, **settings))
    flow_map = flow.preconditioned_flow_map(network, scalings=partial(flow.simple_edm_scalings, **settings))
    torch.testing.assert_close(flow.jump(slope, z, t, s), flow_map(z, t, s))


close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def test_truncation_chooses_by_time_and_trains_the_late_stage_only():
    late, early = Net(1), Net(1)
    with torch.no_grad():
        early.last.bias.add_(1.0)
    f = flow.truncated(late, frozen(early), transition=1.0)
    z, t = strategies.normal(0, 4, 3), torch.tensor([0.5, 1.0, 1.5, 0.999], dtype=F64)
    found = f(z, t)
    close(found[[1, 2]], late(z, t)[[1, 2]])
    close(found[[0, 3]], early(z, t)[[0, 3]])
    found.square().sum().backward()
    assert all(p.grad is None for p in early.parameters())
    gradients = {name: p.grad.clone() for name, p in late.named_parameters()}
    late.zero_grad()
    late(z, t)[[1, 2]].square().sum().backward()
    for name, p in late.named_parameters():
        close(p.grad, gradients[name])


def test_each_stage_sees_its_own_times_and_the_other_s_failures_stay_out():
    """``log(t - 1)`` is not finite at the times of the early stage, ``log(1 - t)`` not at those of the late one."""
    w = torch.ones((), dtype=F64, requires_grad=True)
    f = flow.truncated(
        lambda z, t: w * z * (t - 0.999).log()[:, None], lambda z, t: z * (1.001 - t).log()[:, None], transition=1.0
    )
    z = strategies.normal(0, 3, 2).requires_grad_()
    found = f(z, torch.tensor([0.2, 1.0, 4.0], dtype=F64))
    assert bool(found.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(found.sum(), (w, z)))


@pytest.mark.parametrize(
    ("wrap", "scalings"),
    [(flow.edm, flow.edm_scalings), (flow.consistency, partial(flow.consistency_scalings, sigma_min=0.002))],
)
def test_unwrapping_gives_the_raw_network_back(wrap, scalings):
    net = Net(1)
    raw = flow.unwrap(wrap(net, sigma_data=0.5), scalings=partial(scalings, sigma_data=0.5))
    x, sigma = strategies.normal(0, 5, 3), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=F64)
    close(raw(x, sigma), net(x, sigma))


def test_a_denoiser_becomes_a_consistency_function():
    """As ECT does it: the function of training and the one of evaluation differ by ``O(sigma_min)``."""
    net = Net(1)
    denoiser = flow.edm(net, sigma_data=0.5)
    raw = flow.unwrap(denoiser, scalings=partial(flow.edm_scalings, sigma_data=0.5))
    z, sigma = strategies.normal(0, 5, 3), torch.tensor([0.3, 0.5, 1.0, 10.0, 80.0], dtype=F64)
    gaps = []
    for sigma_min in (0.006, 0.003):
        f = flow.consistency(raw, sigma_data=0.5, sigma_min=sigma_min)
        close(f(z, torch.full_like(sigma, sigma_min)), z)
        gaps.append((f(z, sigma) - denoiser(z, sigma)).abs().max().item())
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


def test_noise_levels_as_networks_are_told():
    sigma = torch.tensor([math.e**-4, 1.0, math.e**4], dtype=F64)
    close(flow.log_noise(sigma), torch.tensor([-1.0, 0.0, 1.0], dtype=F64))
    assert bool(flow.log_noise(torch.zeros(1, dtype=F64), scale=250.0, epsilon=1e-44).isfinite())


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
@pytest.mark.parametrize("scalings", [flow.euler_scalings, flow.ddim_scalings, flow.simple_edm_scalings])
def test_every_map_is_the_identity_at_equal_times(path, scalings):
    data, noise, t, *_ = problem(path, 6, 1)
    z = path(data, noise, t).z
    flow_map = flow.preconditioned_flow_map(lambda *_: 99 * z, scalings=partial(scalings, path=path, sigma_data=0.5))
    torch.testing.assert_close(flow_map(z, t, t), z)


@each_path
def test_maps_are_what_their_names_say(path):
    """Euler: a jump along the network's output times ``sigma_data``; DDIM: its step with the network as denoiser."""
    data, noise, t, _, s = problem(path, 6, 1)
    z = path(data, noise, t).z
    network = lambda z, t, s: torch.tanh(z) * expand_like(1 + t - s, z)  # noqa: E731

    def scaled(z, t):
        return network(expand_like(flow.euler_scalings(t, t, path=path, sigma_data=0.5).c_in, z) * z, t, s)

    def map_of(scalings):
        return flow.preconditioned_flow_map(network, scalings=partial(scalings, path=path, sigma_data=0.5))(z, t, s)

    torch.testing.assert_close(map_of(flow.euler_scalings), flow.euler(lambda *a: 0.5 * scaled(*a), z, t, s))
    torch.testing.assert_close(map_of(flow.ddim_scalings), flow.ddim(scaled, z, t, s, path=path))


@each_path
def test_simple_edm_leaves_a_target_of_unit_variance(path):
    """For data of variance ``sd^2`` and unit noise: of ``(z_s - c_skip z_t) / c_out``, uncorrelated with the state."""
    sd, (_, _, t, _, s) = 0.5, problem(path, 6, 1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    c_skip, c_out, c_in = flow.simple_edm_scalings(t, s, path=path, sigma_data=sd)
    on_data, on_noise = ((b - c_skip * a) / c_out for a, b in ((alpha_t, alpha_s), (sigma_t, sigma_s)))
    one = torch.ones_like(t)
    torch.testing.assert_close(sd**2 * on_data**2 + on_noise**2, one)
    torch.testing.assert_close(sd**2 * on_data * alpha_t + on_noise * sigma_t, 0 * one, rtol=0, atol=1e-9)
    torch.testing.assert_close(c_in**2 * (sd**2 * alpha_t**2 + sigma_t**2), one)


def test_simple_edm_is_edm_s_at_the_data_end_and_trigflow_s_on_the_circle():
    t, s = torch.tensor([0.7, 1.2], dtype=F64), torch.tensor([0.1, 0.6], dtype=F64)
    circle = flow.simple_edm_scalings(t, s, path=flow.Trigonometric(0.5), sigma_data=0.5)
    torch.testing.assert_close(circle.c_skip, (t - s).cos())
    torch.testing.assert_close(circle.c_out, -0.5 * (t - s).sin())
    ended = flow.simple_edm_scalings(t, 0 * s, path=flow.VarianceExploding(0.0), sigma_data=0.5)
    expected = flow.edm_scalings(t, sigma_data=0.5)
    torch.testing.assert_close(ended, flow.Scalings(expected.c_skip, -expected.c_out, expected.c_in))
