"""Progressive distillation, reflow and knowledge distillation: equalities, and their place among the oracles."""

import itertools
import math
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
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


# Progressive distillation.


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


# Its parts.


@each_path
@each_shape
def test_predictions_of_v_and_of_both_carry_the_same_data(path, shape):
    t = steps_of(path, 6, 6).m
    data, noise = (strategies.normal(seed, 6, *shape) for seed in (0, 1))
    z = path(data, noise, t).z
    v = flow.v_prediction_from_data(z, data, t, path=path)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(flow.data_from_v_prediction(z, v, t, path=path), data)
    close(flow.denoiser_from_v_prediction(lambda *_: v, path=path)(z, t), data)
    close(flow.data_from_both(z, data, noise, t, path=path), data)
    close(flow.denoiser_from_both(lambda *_: (data, noise), path=path)(z, t), data)
    alpha, sigma = (c.reshape(-1, *(1 for _ in shape)) for c in path.coefficients(t))
    close(v, alpha * noise - sigma * data)
    circle = flow.Trigonometric(1.0)
    point = circle(data, noise, t.clamp(max=1.5))
    close(flow.v_prediction_from_data(point.z, data, t.clamp(max=1.5), path=circle), point.v)


@each_path
@each_shape
def test_a_velocity_learnt_on_another_path(path, shape):
    """What the source says of a pair is what the target says of it."""
    source, t = LINE, steps_of(path, 6, 6).m
    data, noise = (strategies.normal(seed, 6, *shape) for seed in (0, 1))
    z, v = path(data, noise, t)

    def of_pair(z, r):
        return source(data, noise, r).v + 0 * z

    def of_state(z, r):
        return (z - source(data, 0 * noise, r).z) / source.coefficients(r)[1].reshape(-1, *(1 for _ in shape)) - data

    for answer in (of_pair, of_state):
        found = flow.velocity_on_path(answer, source=source, target=path)
        torch.testing.assert_close(found(z, t), v, rtol=1e-9, atol=1e-9)
    inner = torch.linspace(0.1, 0.9, 6, dtype=F64)
    there = flow.velocity_on_path(lambda z, r: path(data, noise, r).v, source=path, target=source)
    torch.testing.assert_close(there(source(data, noise, inner).z, inner), noise - data, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "source",
    [
        flow.Linear(),
        flow.NoiseScaled(flow.Linear(), 0.5),
        flow.VariancePreserving.cosine(),
        flow.NoiseScaled(flow.VariancePreserving.cosine(), 2.0),
        flow.reverse(flow.VariancePreserving.cosine()),
        flow.VarianceExploding(),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [flow.Trigonometric(), flow.Linear(), flow.NoiseScaled(flow.Linear(), 3.0)], ids=str)
def test_a_velocity_on_another_path_has_its_derivative(source, target):
    """Forward and reverse, against differences, also where the source's time is found by search."""

    def answer(z, r):
        alpha, sigma = source.coefficients(r)
        return z.sin() * sigma[:, None] + alpha[:, None].square() * z

    found = flow.velocity_on_path(answer, source=source, target=target)
    t, z = torch.tensor([0.2, 0.5, 0.8], dtype=F64), strategies.normal(0, 3, 2)
    v, ones, step = strategies.normal(1, 3, 2), torch.ones(3, dtype=F64), 1e-5
    _, slope = torch.func.jvp(found, (z, t), (v, ones))
    apart = (found(z + step * v, t + step) - found(z - step * v, t - step)) / (2 * step)
    torch.testing.assert_close(slope, apart, rtol=1e-6, atol=1e-6)
    of_time = torch.func.grad(lambda t: found(z, t).sum())(t)
    apart = (found(z, t + step) - found(z, t - step)).sum(1) / (2 * step)
    torch.testing.assert_close(of_time, apart, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [flow.Linear(), flow.Trigonometric()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_source_is_asked_at_its_end_where_the_target_goes_on(target, dtype):
    """Data that spread by one, at noise that nothing is left of: the state itself is expected to be noise."""
    source = flow.VarianceExploding()
    velocity = flow.velocity_from_denoiser(lambda z, s: z / (1 + s.square()[:, None]), path=source)
    asked = []
    found = flow.velocity_on_path(lambda z, r: asked.append(r) or velocity(z, r), source=source, target=target)
    v = found(torch.ones(1, 1, dtype=dtype), torch.tensor([target.noise_time], dtype=dtype))
    assert asked[0].item() == pytest.approx(source.noise_time)
    expected = torch.ones(1, 1, dtype=dtype) if isinstance(target, flow.Linear) else torch.zeros(1, 1, dtype=dtype)
    torch.testing.assert_close(v, expected, rtol=0.02, atol=0.02)
    with pytest.raises(ConfigError, match="answered"):
        flow.velocity_on_path(lambda z, r: z[:, :1], source=source, target=target)(torch.ones(2, 3), torch.ones(2) / 2)


def test_a_velocity_on_another_path_at_the_ends_and_its_derivative():
    circle = flow.Trigonometric(0.7)
    data, noise = (strategies.normal(seed, 2, 3) for seed in (0, 1))
    found = flow.velocity_on_path(lambda z, r: LINE(data, noise, r).v, source=LINE, target=circle)
    ends = torch.tensor([circle.data_time, circle.noise_time], dtype=F64)
    z, v = circle(data, noise, ends)
    torch.testing.assert_close(found(z, ends), v)
    inner = torch.tensor([0.2, 1.2], dtype=F64)
    z, v = circle(data, noise, inner)
    _, slope = torch.func.jvp(found, (z, inner), (v, torch.ones_like(inner)))
    torch.testing.assert_close(slope, -z)  # on the circle the velocity's rate is minus the state


@each_shape
def test_two_predictions_count_by_signal_and_noise(shape):
    path, t = LINE, torch.full((2,), 0.25, dtype=F64)
    z, data, noise = (strategies.normal(seed, 2, *shape) for seed in range(3))
    other = flow.data_from_noise(z, noise, t, path=path)
    mean = (0.25**2 * data + 0.75**2 * other) / (0.25**2 + 0.75**2)
    torch.testing.assert_close(flow.data_from_both(z, data, noise, t, path=path), mean)


def test_cosine_schedule_between_its_ends():
    path = flow.VariancePreserving.cosine(log_snr_min=-12.0, log_snr_max=9.0)
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    torch.testing.assert_close(path.log_snr(ends), torch.tensor([9.0, -12.0], dtype=F64))
    t = torch.linspace(0, 1, 9, dtype=F64)
    angle = torch.atan2(*path.coefficients(t)[::-1])
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(8))
    assert path == flow.VariancePreserving.cosine(log_snr_min=-12.0, log_snr_max=9.0)


@each_path
def test_the_time_of_a_noise_ratio_inverts_every_path(path):
    t = torch.cat([strategies.spread_times(path, 9, 3), torch.tensor([path.data_time, path.noise_time], dtype=F64)])
    alpha, sigma = path.coefficients(t)
    found = flow.time_of_noise_ratio(sigma / alpha, path=path)
    torch.testing.assert_close(found, t, rtol=1e-9, atol=1e-9)
    beyond = flow.time_of_noise_ratio(torch.tensor([0.0, 1e30], dtype=F64), path=path)
    assert beyond.tolist() == pytest.approx([path.data_time, path.noise_time])
    assert flow.time_of_noise_ratio((sigma / alpha).float().reshape(11, 1), path=path).shape == (11, 1)


def test_one_time_for_a_whole_batch_may_be_an_expanded_tensor():
    """As ``integrate`` hands it out: forward mode needs storage of its own for every tangent."""
    path, whole, one = PATHS["cosine"], torch.full((4,), 0.3, dtype=F64), torch.full((1,), 0.3, dtype=F64).expand(4)
    torch.testing.assert_close(path.rates(one), path.rates(whole))
    z = strategies.normal(0, 4, 2)
    network = lambda z, t, s: z * (t * s)[:, None]  # noqa: E731
    pairs = [objectives.meanflow_regression(network, z, z, t, t) for t in (one, whole)]
    torch.testing.assert_close(*pairs)


def test_noise_of_the_spread_of_the_data():
    circle, t = flow.Trigonometric(1.0), torch.linspace(0, 1.5, 5, dtype=F64)
    scaled, expected = flow.NoiseScaled(circle, 0.3), flow.Trigonometric(0.3)
    torch.testing.assert_close(scaled.coefficients(t), expected.coefficients(t))
    torch.testing.assert_close(scaled.rates(t), expected.rates(t))


def test_stages_and_steps():
    assert flow.halving_stages(1024)[-1] == 1
    assert flow.halving_stages(48, student_steps=3) == (24, 12, 6, 3)
    t, m, s = steps_of(LINE, 4, 4)
    assert torch.equal(s[:-1], t[1:])
    torch.testing.assert_close(m, (t + s) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.halving_stages(12), "halving"),
        (lambda: flow.halving_stages(4, student_steps=4), "halving"),
        (lambda: flow.halving_stages(0), "halving"),
        (lambda: flow.halving_stages(4, student_steps=0), "at least 1"),
        (lambda: flow.progressive_times(torch.zeros(1, dtype=torch.long), 0, levels=lambda f: f), "at least one"),
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
    with pytest.raises(TypeCheckError):
        objectives.progressive_regression(teacher, teacher, z, t, t, t, path=LINE, last=torch.zeros(2))
    with pytest.raises(TypeCheckError):
        objectives.progressive_regression(teacher, teacher, z, t, t[:1], t, path=LINE)
    with pytest.raises(TypeCheckError):
        objectives.rectified_flow_regression(teacher, z, z[:1], t, t, t)
    with pytest.raises(TypeCheckError):
        objectives.knowledge_distillation_regression(lambda z, t, s: z, z, z[:, :1], t, t)


# Rectified flow and knowledge distillation.


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
