"""Progressive distillation: equalities, and its place among the oracles."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.regression import l2, mse, snr, snr_plus_one, squared_l2, truncated_snr
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


def steps_of(path, batch: int, steps: int) -> flow.StepTimes:
    levels = partial(flow.uniform_levels, path=path)
    return flow.progressive_times(torch.arange(batch) % steps, steps, levels=levels, dtype=F64)


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


@each_path
@each_shape
def test_one_step_with_the_target_lands_on_the_teacher_s_two(path, shape):
    """For any teacher, any three times and any data; the last step too, where it is not marked."""
    t, m, s = steps_of(path, 8, 4)
    z = strategies.normal(0, 8, *shape)
    target = objectives.progressive_regression(teacher, teacher, z, t, m, s, path=path).target
    landed = flow.ddim(lambda *_: target, z, t, s, path=path)
    middle = flow.ddim(teacher, z, t, m, path=path)
    torch.testing.assert_close(landed, flow.ddim(teacher, middle, m, s, path=path), rtol=1e-10, atol=1e-12)


@each_path
@each_shape
def test_students_that_equal_their_targets_repeat_the_first_teacher(path, shape):
    """Sixteen steps of the teacher are eight, four, two, one of its students: halving is exact, stage after stage."""
    levels = partial(flow.uniform_levels, path=path)

    def student_of(taught, steps: int):
        def student(z, t):
            place = (t - path.noise_time) / (path.data_time - path.noise_time) * steps
            t, m, s = flow.progressive_times(place.round().long(), steps, levels=levels, dtype=F64)
            return objectives.progressive_regression(taught, taught, z, t, m, s, path=path).target

        return student

    start, network = path.prior(strategies.normal(0, 3, *shape)), teacher
    grid = partial(flow.uniform_grid, path=path, dtype=F64)
    expected = flow.integrate(partial(flow.ddim, teacher, path=path), start, grid(16))
    for steps in flow.halving_stages(16):
        network = student_of(network, steps)
        made = flow.integrate(partial(flow.ddim, network, path=path), start, grid(steps))
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-10)


def test_the_marked_step_ends_at_the_teacher_s_denoised_state():
    """With noise left at the end the mark drops it, in proportion to sigma; without, it changes nothing."""
    last = torch.tensor([False, False, False, True])
    gaps = []
    for floor in (0.0, 1e-3, 1e-4):
        path = flow.Linear(floor)
        t, m, s = steps_of(path, 4, 4)
        z = strategies.normal(0, 4, 3)
        plain = objectives.progressive_regression(teacher, teacher, z, t, m, s, path=path).target
        marked = objectives.progressive_regression(teacher, teacher, z, t, m, s, path=path, last=last).target
        torch.testing.assert_close(marked[3:], teacher(flow.ddim(teacher, z, t, m, path=path), m)[3:])
        assert torch.equal(marked[:3], plain[:3])
        gaps.append(float((marked - plain).abs().max()))
    assert gaps[0] < 1e-14
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)


@each_path
def test_short_steps_lose_no_digits(path):
    """The target is the one data that a DDIM step needs, and in single precision as exact as the teacher's answers."""
    t, m, s = steps_of(path, 512, 512)
    t, m, s = (time[8:-8:16] for time in (t, m, s))
    z = strategies.normal(0, len(t), 3)
    middle = flow.ddim(teacher, z, t, m, path=path)
    exact = objectives.progressive_regression(teacher, teacher, z, t, m, s, path=path).target
    by_hand = flow.data_of_ddim_step(z, flow.ddim(teacher, middle, m, s, path=path), t, s, path=path)
    torch.testing.assert_close(exact, by_hand, rtol=1e-7, atol=1e-7)
    single = [x.float() for x in (z, t, m, s)]
    found = objectives.progressive_regression(teacher, teacher, *single, path=path).target
    assert float((found - exact).abs().max()) < 3e-6 * float(exact.abs().max())


@each_shape
def test_on_the_exploding_path_it_is_two_euler_steps(shape):
    path = PATHS["exploding"]
    t, m, s = steps_of(path, 6, 3)
    z = strategies.normal(0, 6, *shape)
    euler = partial(flow.euler, flow.velocity_from_denoiser(teacher, path=path))
    target = objectives.progressive_regression(teacher, teacher, z, t, m, s, path=path).target
    slope = flow.velocity_from_data(z, target, t, path=path)
    torch.testing.assert_close(flow.euler(lambda *_: slope, z, t, s), euler(euler(z, t, m), m, s), rtol=1e-9, atol=1e-9)


@each_path
def test_published_losses_are_weights_of_the_error_in_data(path):
    """Errors in noise and in ``v`` computed by conversion; ``v`` on variance-preserving paths alone."""
    t, m, s = steps_of(path, 6, 3)
    z = strategies.normal(0, 6, 3)
    pair = objectives.progressive_regression(lambda z, t: 0.3 * z, teacher, z, t, m, s, path=path)
    in_data, in_noise = mse(*pair), mse(*(flow.noise_from_data(z, x, t, path=path) for x in pair))
    torch.testing.assert_close(in_data * snr(t, path=path), in_noise, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(in_data * truncated_snr(t, path=path), torch.maximum(in_data, in_noise))
    if path is PATHS["cosine"]:
        in_v = mse(*(flow.v_prediction_from_data(z, x, t, path=path) for x in pair))
        torch.testing.assert_close(in_data * snr_plus_one(t, path=path), in_v, rtol=1e-9, atol=0)


@each_path
def test_progressive_with_exact_steps_has_no_gradient_at_the_exact_student(path):
    """Class (i), with steps that a denoiser of the marginals does not make: its teacher knows where each step ends.

    The exact student is the data by which DDIM lands on the flow map. A shifted student is pulled back by twice
    the shift.
    """
    t, m, s = times_between(path)
    z, exact = states(path, t), partial(TWO_MODES.flow_map, path=path)

    def knows(z, now):
        goal = torch.where(now == t, m, s)
        return flow.data_of_ddim_step(z, exact(z, now, goal), now, goal, path=path)

    truth = flow.data_of_ddim_step(z, exact(z, t, s), t, s, path=path)
    for shift in (torch.zeros(2, dtype=F64), torch.tensor([0.1, -0.2], dtype=F64)):
        student = (truth + shift).requires_grad_()
        pair = objectives.progressive_regression(lambda *_, student=student: student, knows, z, t, m, s, path=path)
        (slope,) = torch.autograd.grad(squared_l2(*pair).sum(), student)
        torch.testing.assert_close(slope, (2 * shift).expand_as(slope), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "reversed", "trigonometric", "cosine", "exploding"])
@pytest.mark.parametrize("dim", [1, 2])
def test_progressive_from_a_denoiser_is_biased_by_its_steps(name, dim):
    """Class (iii): with the true denoiser as teacher the exact student has a gradient, of first order in the step."""
    path = PATHS[name]
    mixture = TWO_MODES if dim == 2 else GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5)
    t, _, s = times_between(path)
    z, denoiser = states(path, t, mixture), partial(mixture.denoiser, path=path)
    biases = []
    for step in (0.05, 0.025, 0.0125):
        end = t + step * (s - t).sign()
        truth = flow.data_of_ddim_step(z, mixture.flow_map(z, t, end, path=path), t, end, path=path)
        pair = objectives.progressive_regression(
            lambda *_, truth=truth: truth, denoiser, z, t, (t + end) / 2, end, path=path
        )
        biases.append(float(l2(*pair).mean()))
    assert biases[0] > 1e-4
    for coarse, fine in itertools.pairwise(biases):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_the_teacher_gets_no_gradient():
    t, m, s = steps_of(LINE, 4, 4)
    z = strategies.normal(0, 4, 2).requires_grad_()
    factor = torch.ones((), dtype=F64, requires_grad=True)
    pair = objectives.progressive_regression(lambda z, t: z, lambda z, t: factor * z, z, t, m, s, path=LINE)
    squared_l2(*pair).sum().backward()
    assert factor.grad is None
    torch.testing.assert_close(z.grad, 2 * (pair.prediction - pair.target))  # through the student's input alone


def test_stages_and_steps():
    assert flow.halving_stages(1024)[-1] == 1
    assert flow.halving_stages(48, student_steps=3) == (24, 12, 6, 3)
    t, m, s = steps_of(LINE, 4, 4)
    assert torch.equal(s[:-1], t[1:])
    torch.testing.assert_close(m, (t + s) / 2)
