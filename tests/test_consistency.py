"""Consistency models against the oracle, against their relatives, and their parts one by one."""

import importlib.util
import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from onestep_adapters.networks import frozen, shared_dropout
from onestep_adapters.testing import strategies
from onestep_core import flow, objectives, regression, shapes
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from tests.toy import F64, Net

PATHS = {
    "linear": flow.Linear(),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "exploding": flow.VarianceExploding(0.002, 5.0),
}
MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [1.0, 0.0]], [[[0.3, 0.1], [0.1, 0.2]], [[0.25, 0.0], [0.0, 0.4]]]),
    3: GaussianMixture.isotropic([0.5, 0.5], [[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]], [0.5, 0.7]),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=lambda m: f"dim{m.dim}")
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def pairs(path, mixture, batch=5, seed=0):
    """Data, noise, and times on the noise side: ``m`` between ``t`` and the data end."""
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    u, share = torch.rand(2, batch, dtype=F64, generator=torch.Generator().manual_seed(seed + 2))
    t = path.data_time + (0.3 + 0.6 * u) * (path.noise_time - path.data_time)
    m = t + (0.2 + 0.6 * share) * (path.data_time - t)
    return data, noise, t, m


def exact(path, mixture, steps=16):
    """Where the true trajectory ends."""
    return flow.consistency_from_flow_map(partial(mixture.flow_map, path=path, steps=steps), end=path.data_time)


# Distillation at the oracle.


@each_path
@each_mixture
def test_distillation_with_the_true_flow_has_no_gradient_in_any_sample_nor_parameter(path, mixture):
    """A correction ``(t - end) features(z, t) @ w``, which keeps the boundary condition, of the exact function.

    Solver: the oracle's flow map. Per sample, float64, squared distance, no weight.
    """
    data, noise, t, m = pairs(path, mixture)
    z = path(data, noise, t).z
    z_m = mixture.flow_map(z, t, m, path=path)
    truth = exact(path, mixture)

    def loss(w, z, z_m, t, m):
        def f(z, t):
            features = torch.stack([torch.ones_like(t), t, z[:, 0].sin()], dim=1)
            return truth(z, t) + (t - path.data_time)[:, None] * (features @ w)

        return regression.squared_l2(*objectives.consistency_regression(f, f, z, z_m, t, m)).sum()

    gradient = shapes.per_sample(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))
    right = torch.zeros(3, mixture.dim, dtype=F64)
    assert float(gradient(right, z, z_m, t, m).abs().max()) < 1e-6
    # A wrong one, off by a constant a unit of time: the gradient points back for every sample.
    wrong = right.clone()
    wrong[0] = 0.1
    assert bool(((gradient(wrong, z, z_m, t, m) * wrong).sum((1, 2)) > 0).all())


def residual(path, mixture, z, z_m, t, m):
    """Prediction minus target at the exact function: half of its gradient."""
    f = exact(path, mixture)
    prediction, target = objectives.consistency_regression(f, f, z, z_m, t, m)
    return prediction - target


def halvings(path, mixture, step, finest=0.01):
    """The largest residual for time steps of 4, 2 and 1 times ``finest`` of the path, and the ratios."""
    data, noise, t, _ = pairs(path, mixture)
    z = path(data, noise, t).z
    sizes = []
    for share in (4 * finest, 2 * finest, finest):
        m = t + share * (path.data_time - path.noise_time)
        sizes.append(float(step(z, t, m).detach().abs().max()))
    return sizes, [a / b for a, b in itertools.pairwise(sizes)]


@each_path
@pytest.mark.parametrize(("solver", "order"), [(flow.euler, 2), (flow.heun, 3)], ids=["euler", "heun"])
def test_distillation_inherits_the_error_of_its_solver(path, solver, order):
    """Not zero, and of the solver's local order, with the true velocity: each step's error reaches the data end."""
    mixture = MIXTURES[2]
    velocity = partial(mixture.velocity, path=path)
    sizes, ratios = halvings(path, mixture, lambda z, t, m: residual(path, mixture, z, solver(velocity, z, t, m), t, m))
    assert sizes[0] > 1e-6
    assert ratios[1] == pytest.approx(2**order, rel=0.15)


def test_distillation_of_a_guided_teacher_is_stationary_at_the_guided_flow():
    """Guidance wraps the teacher's velocity; of two Gaussians of one width the guided flow is a Gaussian's.

    Their velocities differ by a function of time, so the combination is the velocity of the extrapolated mean.
    """
    path, scale = flow.Linear(), 2.5
    conditional, unconditional, guided = (
        GaussianMixture.isotropic([1.0], [[mean, 0.0]], 0.5) for mean in (1.0, 0.2, 0.2 + scale * 0.8)
    )
    data, noise, t, m = pairs(path, guided)
    z = path(data, noise, t).z
    velocity = flow.classifier_free(
        partial(conditional.velocity, path=path), partial(unconditional.velocity, path=path), scale=scale
    )
    close(velocity(z, t), guided.velocity(z, t, path=path))

    def solver(z, t, m):
        for k in range(64):
            z = flow.heun(velocity, z, t + k / 64 * (m - t), t + (k + 1) / 64 * (m - t))
        return z

    assert float(residual(path, guided, z, solver(z, t, m), t, m).abs().max()) < 1e-4
    assert float(residual(path, conditional, z, solver(z, t, m), t, m).abs().max()) > 0.1


# Training at the oracle.


def expected_residual(path, mixture, z, t, m, nodes=8):
    """Over the posterior of the pair given ``z``, by quadrature: half the expected gradient at the exact function."""
    rule = mixture.quadrature(z, t, path=path, nodes=nodes)
    count = rule.weights.shape[1]
    rows = [x.repeat_interleave(count, 0) for x in (z, t, m)]
    z_m = path(rule.data.flatten(0, 1), rule.noise.flatten(0, 1), rows[2]).z
    each = residual(path, mixture, rows[0], z_m, rows[1], rows[2]).unflatten(0, (len(z), count))
    return (rule.weights[:, :, None] * each).sum(1)


@each_path
@pytest.mark.parametrize("dim", [1, 2])
def test_training_is_biased_at_second_order_in_the_step(path, dim):
    """At the exact function the expected gradient is not zero: ``O((t - m)^2)``, and ``O(t - m)`` under the weight.

    Averaged over the posterior of pair given state; the gradient of one pair is ``O(t - m)`` and averages out.
    """
    mixture = MIXTURES[dim]
    sizes, ratios = halvings(path, mixture, partial(expected_residual, path, mixture), finest=0.0025)
    assert sizes[0] > 1e-6
    assert ratios[1] == pytest.approx(4, rel=0.15)
    weighted = partial(weighted_residual, path, mixture)
    assert halvings(path, mixture, weighted, finest=0.0025)[1][1] == pytest.approx(2, rel=0.15)

    def one_pair(z, t, m):
        data, noise, _, _ = pairs(path, mixture)
        return residual(path, mixture, z, path(data, noise, m).z, t, m)

    assert halvings(path, mixture, one_pair, finest=0.0025)[1][1] == pytest.approx(2, rel=0.15)


def test_the_stages_of_easy_consistency_leave_a_bias_of_second_order_in_their_gap():
    """Each stage halves ``(t - m) / t``, and with it goes the square of it."""
    path, mixture = flow.VarianceExploding(0.0, 5.0), MIXTURES[2]
    data, noise, t, _ = pairs(path, mixture)
    z = path(data, noise, t).z
    sizes = []
    for stage in range(5, 8):
        m = flow.ect_times(t, ratio=flow.ect_ratio(stage, factor=2.0))
        sizes.append(float(expected_residual(path, mixture, z, t, m).abs().max()))
    assert sizes[0] > 1e-6
    assert sizes[1] / sizes[2] == pytest.approx(4, rel=0.15)


def weighted_residual(path, mixture, z, t, m):
    return regression.inverse_duration(t, m)[:, None] * expected_residual(path, mixture, z, t, m)


@each_path
def test_training_in_one_jump_learns_the_posterior_mean(path):
    """With ``m`` at the data end the expected target is ``E[z_end | z]``, and that is not where the flow goes."""
    mixture = MIXTURES[2]
    data, noise, t, _ = pairs(path, mixture)
    z, end = path(data, noise, t).z, torch.full_like(t, path.data_time)
    alpha, sigma = (c[:, None] for c in path.coefficients(end))
    mean = mixture.denoiser(z, t, path=path)
    mean = alpha * mean + sigma * flow.noise_from_data(z, mean, t, path=path)
    truth = exact(path, mixture)
    close(truth(z, t) - expected_residual(path, mixture, z, t, end), mean)
    assert float((truth(z, t) - mean).abs().max()) > 0.05


@pytest.mark.parametrize(
    ("distance", "moves"),
    [(regression.squared_l2, False), (regression.l2, True), (partial(regression.pseudo_huber, c=0.03), True)],
    ids=["squared", "l2", "pseudo-huber"],
)
def test_only_the_squared_distance_learns_the_mean(distance, moves):
    """ECT's first stage, in one jump to the data, at the exact denoiser: its distances move the minimiser."""
    path, mixture = flow.VarianceExploding(0.0, 5.0), MIXTURES[2]
    data, noise, t, _ = pairs(path, mixture)
    z = path(data, noise, t).z
    rule = mixture.quadrature(z, t, path=path, nodes=6)
    rows, times = (x.repeat_interleave(rule.weights.shape[1], 0) for x in (z, t))
    shift = torch.zeros_like(rows).requires_grad_()

    def f(z, t):
        return mixture.denoiser(z, t, path=path) + shift

    pair = objectives.consistency_regression(f, f, rows, rule.data.flatten(0, 1), times, 0 * times, end=0.0)
    slopes = torch.autograd.grad(distance(*pair).sum(), shift)[0].unflatten(0, rule.weights.shape)
    expected = float((rule.weights[:, :, None] * slopes).sum(1).abs().max())
    assert (expected > 1e-3) if moves else (expected < 1e-6)


# Equalities.


@each_path
@each_mixture
def test_consistency_is_the_semigroup_target_at_the_data_end(path, mixture):
    """Compared as maps, for any network: ``z + (end - t) a`` with the semigroup target ``a`` is the target's end.

    Conditions: ``z_m`` is the network's own jump from ``t`` to ``m``, ``t`` is not the end.
    """
    data, noise, t, m = pairs(path, mixture)
    z, end = path(data, noise, t).z, torch.full_like(t, path.data_time)
    a = Net(2, mixture.dim)
    z_m = flow.jump(a, z, t, m)
    average = flow.semigroup_target(a(z, t, m), a(z_m, m, end), t, m, end)
    f = flow.consistency_from_flow_map(flow.flow_map_from_average_velocity(a), end=path.data_time)
    pair = objectives.consistency_regression(f, f, z, z_m, t, m)
    close(pair.target, z + (end - t)[:, None] * average)
    close(pair.prediction, flow.jump(a, z, t, end))


@each_path
def test_training_tends_to_its_continuous_limit(path):
    """``(prediction - target) / (t - m)`` tends to the derivative of ``f`` along the pair, at rate ``O(t - m)``."""
    data, noise, t, _ = pairs(path, MIXTURES[3])
    net, (z, v) = Net(1), path(data, noise, t)
    _, limit = flow.two_pass(net, (z, t), (v, torch.ones_like(t)))

    def gap(z, t, m):
        prediction, target = objectives.consistency_regression(net, net, z, path(data, noise, m).z, t, m)
        return (prediction - target) / (t - m)[:, None] - limit

    sizes, ratios = halvings(path, MIXTURES[3], gap)
    assert sizes[0] > 1e-6
    assert ratios[1] == pytest.approx(2, rel=0.15)


def test_the_first_stage_of_easy_tuning_is_denoising():
    """Where every second time is at the data: the same prediction, the same target, for any network."""
    path = flow.VarianceExploding(0.0, 5.0)
    data, noise, t, _ = pairs(path, MIXTURES[3])
    m = flow.ect_times(0.2 * t, ratio=flow.ect_ratio(0))
    assert bool((m == 0).all())
    net, z = Net(1), path(data, noise, t).z
    pair = objectives.consistency_regression(net, net, z, path(data, noise, m).z, t, m, end=0.0)
    close(pair, objectives.denoising_regression(net, z, data, t))


# The end of time, the order of evaluation.


@each_path
def test_at_the_end_and_beyond_the_target_is_the_state_itself(path):
    data, noise, t, m = pairs(path, MIXTURES[3], batch=4)
    away, end = path.noise_time - path.data_time, path.data_time
    m = torch.stack([m[0], torch.tensor(end, dtype=F64), end - 0.1 * away * torch.ones((), dtype=F64), m[3]])
    z, z_m = path(data, noise, t).z, strategies.normal(9, *data.shape)

    def undefined_at_the_end(z, t):
        return torch.where(((t - end) / away > 0)[:, None], 2 * z, float("nan"))

    net = Net(1)
    pair = objectives.consistency_regression(net, undefined_at_the_end, z, z_m, t, m, end=end)
    close(pair.target, torch.stack([2 * z_m[0], z_m[1], z_m[2], 2 * z_m[3]]))
    gradients = torch.autograd.grad(pair.prediction.square().sum(), list(net.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)
    without = objectives.consistency_regression(net, undefined_at_the_end, z, z_m, t, m)
    assert bool(without.target[1:3].isnan().all())


def test_the_target_comes_second_and_without_graph():
    seen = []

    def network(name):
        def f(z, t):
            seen.append((name, torch.is_grad_enabled()))
            return z

        return f

    x, t = torch.ones(2, 3), torch.ones(2)
    objectives.consistency_regression(network("online"), network("target"), x, x, t, t)
    assert seen == [("online", True), ("target", False)]


def test_shapes_must_agree():
    x, t = torch.ones(2, 3), torch.ones(2)
    for arguments in ((x, x[:, :2], t, t), (x, x, t[:1], t), (x, x, t, t[:, None])):
        with pytest.raises(TypeCheckError, match=r"parameter '(z_m|t|m)'"):
            objectives.consistency_regression(lambda z, t: z, lambda z, t: z, *arguments)


# The trivial solution.


@pytest.mark.parametrize("value", [0.0, 3.0])
@each_path
def test_a_constant_has_no_loss_without_the_boundary_condition(path, value):
    data, noise, t, m = pairs(path, MIXTURES[2])
    level = torch.full((), value, dtype=F64, requires_grad=True)

    def constant(z, t):
        return level + 0 * z

    pair = objectives.consistency_regression(constant, constant, path(data, noise, t).z, path(data, noise, m).z, t, m)
    loss = regression.squared_l2(*pair).sum()
    assert loss.item() == 0
    assert float(torch.autograd.grad(loss, level)[0]) == 0


@pytest.mark.parametrize("raw", [lambda z, t: 0 * z, lambda z, t: 0 * z + 3, lambda z, t: -5 * z, Net(1)])
def test_with_the_boundary_condition_no_network_is_constant(raw):
    """Whatever the weights: the identity at the data end, so two states there keep apart."""
    f = flow.consistency(raw, sigma_data=0.5, sigma_min=0.002)
    z, t = strategies.normal(0, 50, 3), torch.full((50,), 0.002, dtype=F64)
    close(f(z, t), z)
    # And the first step above the end is regressed onto states that differ: a constant loses their variance there.
    pair = objectives.consistency_regression(lambda z, t: z.mean(0).expand_as(z), f, z, z, 5 * t, t)
    assert float(regression.squared_l2(*pair).mean()) == pytest.approx(float(z.var(0, unbiased=False).sum()))


def test_the_picture_of_the_trivial_solution(tmp_path):
    """Trained for a moment: without the condition all noise lands in one place, at the smaller loss."""
    source = Path(__file__).parent.parent / "examples" / "trivial_solution.py"
    spec = importlib.util.spec_from_file_location("trivial_solution", source)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    free, bound = (example.train(boundary=b, steps=250) for b in (False, True))
    assert sum(free.losses[-50:]) < sum(bound.losses[-50:]) / 10
    assert float(free.samples.std()) < 0.2
    assert float(bound.samples.std()) > 0.5
    example.draw_picture({"free": free, "bound": bound}, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# Two stages.


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


def test_two_exact_stages_are_stationary_and_a_wrong_late_one_is_pulled_to_the_first():
    """With the true flow as solver; pairs across the transition carry the boundary condition of the late stage."""
    path, mixture, transition = flow.VarianceExploding(0.002, 5.0), MIXTURES[2], 1.0
    truth = exact(path, mixture)
    data, noise, _, _ = pairs(path, mixture, batch=4)
    t = torch.tensor([1.1, 1.2, 2.0, 4.0], dtype=F64)
    m = torch.tensor([0.9, 0.5, 1.5, 3.0], dtype=F64)
    z = path(data, noise, t).z
    z_m = mixture.flow_map(z, t, m, path=path)

    def gradient(shift):
        shift = shift.clone().requires_grad_()
        late = lambda z, t: truth(z, t) + shift  # noqa: E731
        pair = objectives.consistency_regression(late, flow.truncated(late, truth, transition=transition), z, z_m, t, m)
        raw = regression.squared_l2(*pair)
        return torch.stack([torch.autograd.grad(x, shift, retain_graph=True)[0] for x in raw])

    assert float(gradient(torch.zeros(2, dtype=F64)).abs().max()) < 1e-6
    shift = torch.tensor([0.3, -0.2], dtype=F64)
    back = gradient(shift) @ shift
    assert bool((back[:2] > 0.1).all())  # across the transition: pulled back
    assert float(back[2:].abs().max()) < 1e-6  # within the late stage a common shift is not seen


def test_boundary_times_belong_to_the_late_stage_in_any_precision():
    for dtype in (torch.float32, F64):
        for transition in (0.7, 1.0, 1.3):
            t = torch.tensor([2.0, 3.0], dtype=dtype)
            times = flow.boundary_times(t, torch.tensor([True, False]), transition=transition)
            assert times.dtype == dtype
            f = flow.truncated(lambda z, t: z + 1, lambda z, t: z, transition=transition)
            close(f(torch.zeros(2, 1, dtype=dtype), times), torch.ones(2, 1, dtype=dtype))
            assert float(times[1]) == 3


@pytest.mark.parametrize("group", [[0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_means_of_a_group_and_the_rest(group):
    """The mean over a batch becomes the mean of the rest plus the weighted mean of the group, where they exist."""
    loss, group = strategies.normal(0, 5).square().requires_grad_(), torch.tensor(group, dtype=torch.bool)
    factor = regression.separate_means(loss, group, weight=0.1)
    assert not factor.requires_grad
    means = [0.1 * loss[group].mean() if group.any() else 0.0, loss[~group].mean() if (~group).any() else 0.0]
    close((factor * loss).mean(), torch.as_tensor(sum(means), dtype=F64))


# Weights, times, curricula.


def test_weights_of_consistency_losses():
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=F64)
    c_out = flow.edm_scalings(sigma, sigma_data=0.5).c_out
    close(regression.karras(sigma, sigma_data=0.5, power=0.5) * c_out, torch.ones(3, dtype=F64))
    t, m = sigma.clone().requires_grad_(), 0.3 * sigma
    weight = regression.inverse_duration(t, m)
    assert not weight.requires_grad
    close(weight, regression.inverse_duration(m, t))
    close(weight * (t - m), torch.ones(3, dtype=F64))
    close(regression.inverse_duration(t, m, power=0.5).square(), weight)


def test_discretised_log_normal_is_the_continuous_one_on_a_grid():
    """The same uniform number puts the truncated log-normal into the interval that was drawn."""
    for points in (2, 11, 1281):
        grid = flow.karras_grid(max(points, 2), dtype=F64)[:-1]
        u = (torch.arange(2000, dtype=F64) + 0.5) / 2000
        index = flow.discretized_log_normal(u, grid, mean=-1.1, std=2.0)
        time = flow.truncated_log_normal_times(1 - u, mean=-1.1, std=2.0, low=float(grid[-1]), high=float(grid[0]))
        assert bool((time <= grid[index] * (1 + 1e-9)).all())
        assert bool((time >= grid[index + 1] * (1 - 1e-9)).all())
    for levels in (grid, grid.float()):
        ends = flow.discretized_log_normal(torch.tensor([0.0, 1.0]), levels)
        assert ends.tolist() == [0, len(grid) - 2]


def test_pairs_kept_apart():
    t, s = torch.tensor([1e-4, 0.002, 0.5], dtype=F64), torch.full((3,), 0.002, dtype=F64)
    apart = flow.keep_apart(t, s, gap=1e-6)
    close(apart.t, torch.tensor([0.002001, 0.002001, 0.5], dtype=F64))
    assert apart.s is s


def test_points_of_consistency_training_grow_from_start_to_end():
    points = [flow.progressive_points(k, total=500, start=2, end=150) for k in range(501)]
    assert points[0] == 2
    assert points[-1] == 151
    assert points == sorted(points)
    # Their squares grow linearly.
    assert (points[125] ** 2 - 2**2) / (151**2 - 2**2) == pytest.approx(0.25, abs=0.01)
    decay = [flow.target_decay(n, start=2, initial=0.9) for n in points]
    assert decay[0] == pytest.approx(0.9)
    assert decay == sorted(decay)
    assert decay[-1] < 1


def test_points_of_improved_training_double():
    points = [flow.doubling_points(k, total=800, start=10, end=1280) for k in range(900)]
    assert sorted(set(points)) == [10 * 2**i + 1 for i in range(8)]
    assert all(points.count(10 * 2**i + 1) == 100 for i in range(7))
    assert flow.doubling_points(10**6, total=1000, start=10, end=100) == 101


def test_steps_of_a_distilled_student_halve():
    steps = [flow.student_steps_at(k, every=10, start=64) for k in range(100)]
    assert [steps.count(n) for n in (64, 32, 16, 8, 4, 2, 1)] == [10, 10, 10, 10, 10, 20, 30]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("amplitude", [0.0, 8.0])
def test_second_times_close_in_stage_by_stage(amplitude):
    t = torch.linspace(0.001, 80, 400, dtype=F64)
    before = torch.full_like(t, -1.0)
    for stage in range(10):
        m = flow.ect_times(t, ratio=flow.ect_ratio(stage), amplitude=amplitude)
        assert bool(((m >= before) & (m < t) & (m >= 0)).all())
        before = m
    close(m, t, rtol=0.01, atol=0)
    close(flow.ect_times(t, ratio=0.0, floor=0.002), torch.full_like(t, 0.002))


# Preconditioning.


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


# Dropout.


def test_a_pair_that_shares_dropout_agrees_where_time_stands_still():
    """With ``m = t`` and ``z_m = z`` the target is the prediction; with masks of their own the two differ."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 3))
    z, t = torch.randn(4, 3), torch.ones(4)

    def raw(network):
        return lambda z, t: network(z)

    online, target = (raw(network) for network in shared_dropout(module))
    pair = objectives.consistency_regression(online, target, z, z, t, t)
    assert torch.equal(*pair)
    assert pair.prediction.requires_grad
    alone = objectives.consistency_regression(raw(module), raw(module), z, z, t, t)
    assert not torch.equal(*alone)


# Refusals.


@pytest.mark.parametrize(
    "make",
    [
        lambda: flow.progressive_points(-1, total=10),
        lambda: flow.progressive_points(1, total=0),
        lambda: flow.progressive_points(1, total=10, start=5, end=4),
        lambda: flow.doubling_points(1, total=10, start=0),
        lambda: flow.doubling_points(1, total=3, start=10, end=1280),
        lambda: flow.student_steps_at(1, every=0, start=4),
        lambda: flow.student_steps_at(1, every=3, start=0),
        lambda: flow.target_decay(0),
        lambda: flow.target_decay(3, initial=1.0),
        lambda: flow.ect_ratio(-1),
        lambda: flow.ect_ratio(0, factor=1.0),
        lambda: flow.ect_times(torch.ones(1), ratio=1.0),
        lambda: flow.ect_times(torch.ones(1), ratio=0.5, floor=-1.0),
        lambda: flow.keep_apart(torch.ones(1), torch.ones(1), gap=0.0),
        lambda: flow.discretized_log_normal(torch.ones(1), torch.ones(1)),
        lambda: flow.discretized_log_normal(torch.ones(1), torch.ones(2), std=0.0),
    ],
)
def test_what_cannot_work_is_refused(make):
    with pytest.raises(ConfigError, match="expected"):
        make()
