"""Reflow and knowledge distillation: equalities, and their place among the oracles."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ArgumentError, ConfigError
from onestep_core.regression import l2, squared_l2
from tests.cases import TWO_MODES

F64 = torch.float64


PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.01),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "scaled": flow.NoiseScaled(flow.Linear(), 0.5),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


each_shape = pytest.mark.parametrize("shape", [(1,), (2,), (3, 2, 2)], ids=str)


LINE = PATHS["linear"]


def teacher(z: Tensor, t: Tensor) -> Tensor:
    """Any denoiser; nothing is true of it."""
    return torch.tanh(1.3 * z + t.clamp(max=3.0).reshape(-1, *(1 for _ in z.shape[1:])))


def states(path, t: Tensor, mixture=TWO_MODES, seed: int = 0) -> Tensor:
    data = mixture.sample(len(t), generator=torch.Generator().manual_seed(seed))
    return path(data, strategies.normal(seed + 1, *data.shape), t).z


def times_between(path, batch: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Source and target away from the ends, in both orders, and a time between."""
    low, high = (path.data_time, min(path.noise_time, 4.0)) if path.noise_time > 1 else (0.0, path.noise_time)
    if path.data_time > path.noise_time:
        low, high = path.noise_time, path.data_time
    u = torch.rand(3, batch, dtype=F64, generator=torch.Generator().manual_seed(7))
    t, s = low + (high - low) * (0.1 + 0.8 * u[0]), low + (high - low) * (0.1 + 0.8 * u[1])
    return t, t + (0.2 + 0.6 * u[2]) * (s - t), s


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.halving_stages(12), "halving"),
        (lambda: flow.halving_stages(4, student_steps=4), "halving"),
        (lambda: flow.halving_stages(0), "halving"),
        (lambda: flow.halving_stages(4, student_steps=0), "at least 1"),
        (lambda: flow.progressive_times(torch.zeros(1, dtype=torch.long), 0, levels=lambda f: f), "at least 1"),
        (lambda: flow.VariancePreserving.cosine(log_snr_min=1.0, log_snr_max=1.0), "below"),
        (lambda: flow.VariancePreserving.cosine(log_snr_min=-math.inf), "finite"),
        (lambda: flow.NoiseScaled(LINE, 0.0), "positive"),
        (lambda: flow.lower_noise_ratio(torch.ones(1), torch.zeros(1), path=LINE, decrement=0.0), "positive"),
        (lambda: flow.time_of_noise_ratio(torch.ones(1), path=flow.VarianceExploding(0.0, math.inf)), "finite"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_wrong_shapes_are_refused():
    t, z = torch.zeros(2), torch.zeros(2, 3)
    with pytest.raises(ArgumentError):
        objectives.progressive_regression(teacher, teacher, z, t, t, t, path=LINE, last=torch.zeros(2))
    with pytest.raises(ArgumentError):
        objectives.progressive_regression(teacher, teacher, z, t, t[:1], t, path=LINE)
    with pytest.raises(ArgumentError):
        objectives.rectified_flow_regression(teacher, z, z[:1], t, t, t)
    with pytest.raises(ArgumentError):
        objectives.knowledge_distillation_regression(lambda z, t, s: z, z, z[:, :1], t, t)


def ends(path, batch: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.full((batch,), time, dtype=F64) for time in (path.noise_time, path.data_time))


def trajectories(path, mixture, batch: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``z, end, t, m, s`` of the mixture's exact flow from the noise end to the data end."""
    t, s = ends(path, batch)
    z = path.prior(strategies.normal(3, batch, mixture.dim))
    m = t + torch.linspace(0.05, 0.95, batch, dtype=F64) * (s - t)
    return z, mixture.flow_map(z, t, s, path=path), t, m, s


@each_shape
def test_reflow_is_flow_matching_of_coupled_pairs(shape):
    """On the linear path, from one end to the other."""
    data, noise = (strategies.normal(seed, 5, *shape) for seed in (0, 1))
    m = torch.linspace(0, 1, 5, dtype=F64)
    t, s = ends(LINE, 5)
    network = lambda z, t: torch.tanh(z) * (1 + t.reshape(-1, *(1 for _ in shape)))  # noqa: E731
    z, v = LINE(data, noise, m)
    expected = objectives.flow_matching_regression(network, z, v, m)
    torch.testing.assert_close(objectives.rectified_flow_regression(network, noise, data, t, m, s), expected)


@each_path
def test_reflow_regresses_onto_the_average_velocity(path):
    t, m, s = times_between(path)
    z = states(path, t)
    end = TWO_MODES.flow_map(z, t, s, path=path)
    target = objectives.rectified_flow_regression(teacher, z, end, t, m, s).target
    torch.testing.assert_close(target, TWO_MODES.average_velocity(z, t, s, path=path), rtol=1e-8, atol=1e-8)


@each_path
def test_reflow_at_the_start_of_the_line_is_knowledge_distillation(path):
    """With ``m = t`` and an average velocity ``a(z, t, s)``: squared distances differ by ``(s - t)^2`` alone."""
    t, _, s = times_between(path)
    z, end = states(path, t), strategies.normal(5, len(t), 2)
    line = objectives.rectified_flow_regression(teacher, z, end, t, t, s)
    jumps = flow.flow_map_from_average_velocity(lambda z, t, s: teacher(z, t))
    jump = objectives.knowledge_distillation_regression(jumps, z, end, t, s)
    torch.testing.assert_close(squared_l2(*jump), (s - t).square() * squared_l2(*line))


GAUSSIANS = {
    1: GaussianMixture([1.0], [[0.5]], [[[0.3]]]),
    2: GaussianMixture([1.0], [[1.0, -2.0]], [[[0.5, 0.2], [0.2, 0.3]]]),
}


@each_path
@pytest.mark.parametrize("dim", [1, 2])
def test_reflow_between_gaussians_has_no_gradient_at_the_straight_flow(path, dim):
    """Class (i) for one Gaussian: its flow is affine, ``end = b + A z`` with ``A`` positive, so lines do not cross.

    The straight velocity is found from the line through a point by solving for its start. Shifted, it is pulled back
    by twice the shift; one Euler step of it arrives.
    """
    mixture = GAUSSIANS[dim]
    z, end, t, m, s = trajectories(path, mixture)
    origin = torch.zeros(dim + 1, dim, dtype=F64)
    origin[1:] = torch.eye(dim, dtype=F64)
    image = mixture.flow_map(origin, *ends(path, dim + 1), path=path)
    offset, matrix = image[0], (image[1:] - image[0]).T

    def straight(x: Tensor, now: Tensor) -> Tensor:
        share = ((now - path.noise_time) / (path.data_time - path.noise_time))[:, None, None]
        system = (1 - share) * torch.eye(dim, dtype=F64) + share * matrix
        start = torch.linalg.solve(system, x - share[:, 0] * offset)
        return (offset + start @ matrix.T - start) / (path.data_time - path.noise_time)

    for shift in (torch.zeros(dim, dtype=F64), torch.full((dim,), 0.1, dtype=F64)):
        moved = shift.expand(len(z), dim).clone().requires_grad_()
        pair = objectives.rectified_flow_regression(
            lambda x, now, moved=moved: straight(x, now) + moved, z, end, t, m, s
        )
        (slope,) = torch.autograd.grad(squared_l2(*pair).sum(), moved)
        torch.testing.assert_close(slope, 2 * shift.expand_as(slope), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.euler(straight, z, t, s), end, rtol=1e-8, atol=1e-7)


@each_path
def test_reflow_in_one_dimension_has_no_gradient_at_the_straight_flow(path):
    """Class (i) for a mixture in one dimension, where an exact flow is increasing and lines cannot cross.

    In more dimensions lines of a mixture's flow may cross; the minimiser is then a conditional mean over the coupling,
    which has no closed form, and nothing is claimed of it. That the teacher's own velocity is not the minimiser, since
    its trajectories bend, is shown here.
    """
    mixture = GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.4)
    z, _, t, m, s = trajectories(path, mixture)
    exact = lambda z: mixture.flow_map(z, t, s, path=path, steps=8)  # noqa: E731
    end = exact(z)
    width = float(z.abs().max()) * 4

    def straight(x: Tensor, now: Tensor) -> Tensor:
        low, high = torch.full_like(x, -width), torch.full_like(x, width)
        for _ in range(45):
            middle = (low + high) / 2
            image = exact(middle)
            above = flow.chord(middle, image, t, now, s).z > x
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return flow.chord(low, exact(low), t, now, s).v

    shifts = torch.zeros_like(z).requires_grad_()
    pair = objectives.rectified_flow_regression(lambda x, now: straight(x, now) + shifts, z, end, t, m, s)
    (slope,) = torch.autograd.grad(squared_l2(*pair).sum(), shifts)
    assert float(slope.abs().max()) < 1e-6
    bent = objectives.rectified_flow_regression(partial(mixture.velocity, path=path), z, end, t, m, s)
    assert float(l2(*bent).max()) > 1e-2


def test_independent_pairs_leave_a_residual_that_coupled_ones_do_not():
    """Why the pairs matter: the best velocity has the variance of the pairs' velocities as its loss."""
    mixture = GAUSSIANS[1]
    t = torch.full((4000,), 0.5, dtype=F64)
    noise = strategies.normal(0, 4000, 1)
    coupled = mixture.flow_map(noise, *ends(LINE, 4000), path=LINE)
    independent = mixture.sample(4000, generator=torch.Generator().manual_seed(1))
    losses = []
    for data in (coupled, independent):
        z, v = LINE(data, noise, t)
        slope = ((z - z.mean()) * (v - v.mean())).mean() / (z - z.mean()).square().mean()  # both are jointly Gaussian
        best = lambda x, now, z=z, v=v, slope=slope: v.mean() + slope * (x - z.mean())  # noqa: E731
        one, zero = ends(LINE, 4000)
        losses.append(float(squared_l2(*objectives.rectified_flow_regression(best, noise, data, one, t, zero)).mean()))
    assert losses[0] < 1e-12
    assert losses[1] > 0.5


@each_path
def test_knowledge_distillation_has_no_gradient_at_the_exact_map(path):
    """Class (i), given the oracle's flow map as solver, as average velocity; shifted maps are pulled back."""
    t, _, s = times_between(path)
    z = states(path, t)
    end = TWO_MODES.flow_map(z, t, s, path=path)
    for shift in (torch.zeros(2, dtype=F64), torch.tensor([0.1, -0.2], dtype=F64)):
        moved = shift.expand_as(z).clone().requires_grad_()
        exact = flow.flow_map_from_average_velocity(
            lambda *a, moved=moved: TWO_MODES.average_velocity(*a, path=path) + moved
        )
        (slope,) = torch.autograd.grad(
            squared_l2(*objectives.knowledge_distillation_regression(exact, z, end, t, s)).sum(), moved
        )
        torch.testing.assert_close(slope, 2 * shift * (s - t).square()[:, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "order"), [(flow.euler, 1), (flow.heun, 2)], ids=["euler", "heun"])
def test_what_is_distilled_is_the_solver(step, order):
    """With a solver of ``n`` steps the exact map keeps a residual of the solver's order."""
    velocity = partial(TWO_MODES.velocity, path=LINE)
    t, s = torch.full((6,), 0.9, dtype=F64), torch.full((6,), 0.2, dtype=F64)
    z, exact = states(LINE, t), partial(TWO_MODES.flow_map, path=LINE)
    residuals = []
    for steps in (16, 32, 64):
        grid = flow.uniform_grid(steps, path=LINE, start=0.9, end=0.2, dtype=F64)
        end = flow.integrate(partial(step, velocity), z, grid)
        residuals.append(float(l2(*objectives.knowledge_distillation_regression(exact, z, end, t, s)).mean()))
    for coarse, fine in itertools.pairwise(residuals):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
