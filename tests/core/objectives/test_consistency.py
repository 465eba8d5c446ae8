"""Consistency models against the oracle and against their relatives."""

import importlib.util
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from onestep_adapters.networks import shared_dropout
from onestep_adapters.testing import strategies
from onestep_core import flow, objectives, regression, shapes
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ArgumentError, ConfigError
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
        with pytest.raises(ArgumentError, match=r"(z_m|t|m) is"):
            objectives.consistency_regression(lambda z, t: z, lambda z, t: z, *arguments)


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
    source = Path(__file__).parents[3] / "examples" / "trivial_solution.py"
    spec = importlib.util.spec_from_file_location("trivial_solution", source)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    free, bound = (example.train(boundary=b, steps=250) for b in (False, True))
    assert sum(free.losses[-50:]) < sum(bound.losses[-50:]) / 10
    assert float(free.samples.std()) < 0.2
    assert float(bound.samples.std()) > 0.5
    example.draw_picture({"free": free, "bound": bound}, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


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
