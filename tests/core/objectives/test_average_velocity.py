"""The objectives on average velocities: equal where their formulas coincide, at rest where the oracle is exact."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.regression import squared_l2
from onestep_core.shapes import expand_like, per_sample
from tests.toy import Net

F64 = torch.float64


PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.05),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.01, 5.0),
}


MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: GaussianMixture(
        [0.5, 0.5], [[-1.0, 0.5], [1.0, 0.0]], [[[0.3, 0.1], [0.1, 0.25]], [[0.25, -0.05], [-0.05, 0.4]]]
    ),
    3: GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5, 0.0], [1.0, 0.0, 0.5]], [0.5, 0.6]),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


each_dim = pytest.mark.parametrize("dim", MIXTURES)


def problem(path, dim: int, batch: int = 5, margin: float = 0.05) -> strategies.Problem:
    """Jumps in both directions of time, with the middle time anywhere between."""
    data = MIXTURES[dim].sample(batch, generator=torch.Generator().manual_seed(dim))
    t, s = (strategies.spread_times(path, batch, 10 * dim + i, margin=margin) for i in range(2))
    share = torch.rand(batch, dtype=F64, generator=torch.Generator().manual_seed(7))
    return strategies.at(path, data, strategies.normal(dim, batch, dim), t, flow.time_between(t, s, share=share), s)


def value_and_gradient(net: Net, pair) -> tuple[Tensor, tuple[Tensor, ...]]:
    raw = squared_l2(*pair)
    return raw, torch.autograd.grad(raw.sum(), list(net.parameters()))


def largest(tensors) -> float:
    return max(float(x.detach().abs().max()) for x in tensors)


def halving(errors: list[float], order: int, slack: float = 0.25) -> bool:
    """Whether errors at steps ``h, h/2, h/4, ...`` fall as ``h^order``, the last ratio within ``slack``."""
    return abs(math.log2(errors[-2] / errors[-1]) - order) < slack and errors[-1] < errors[0] / 2 ** (order - slack)


@each_path
@each_dim
def test_meanflow_at_equal_times_is_flow_matching(path, dim):
    """``s = t``, any scale: the derivative has the factor zero."""
    net, p = Net(2, dim), problem(path, dim)
    expected = value_and_gradient(net, objectives.flow_matching_regression(flow.instantaneous(net), p.z, p.v, p.t))
    for pair in (
        objectives.meanflow_regression(net, p.z, p.v, p.t, p.t),
        objectives.improved_meanflow_regression(net, p.z, p.v, net(p.z, p.t, p.t), p.t, p.t),
        objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.t, alpha=0.3),
    ):
        torch.testing.assert_close(value_and_gradient(net, pair), expected)


@each_path
@each_dim
def test_improved_meanflow_along_the_pair_s_velocity_is_meanflow(path, dim):
    """``tangent = v``: value and gradient, also with one head of two."""
    net, p = Net(2, dim), problem(path, dim)
    expected = value_and_gradient(net, objectives.meanflow_regression(net, p.z, p.v, p.t, p.s))
    pair = objectives.improved_meanflow_regression(net, p.z, p.v, p.v, p.t, p.s)
    torch.testing.assert_close(value_and_gradient(net, pair), expected)
    pairs = objectives.improved_meanflow_regressions(
        lambda z, t, s: (net(z, t, s), net(z, t, t)), p.z, p.v, p.v, p.t, p.s
    )
    torch.testing.assert_close(value_and_gradient(net, pairs.average), expected)
    matching = objectives.flow_matching_regression(flow.instantaneous(net), p.z, p.v, p.t)
    torch.testing.assert_close(value_and_gradient(net, pairs.instantaneous), value_and_gradient(net, matching))


@each_path
@each_dim
def test_improved_meanflow_is_flow_matching_of_the_compound_velocity(path, dim):
    """``|a - (s - t) sg[D_t a] - v|``, the published form, with the gradient through ``a`` alone."""
    net, p = Net(2, dim), problem(path, dim)
    tangent = net(p.z, p.t, p.t)
    a, slope = flow.eulerian_derivative(net, p.z, tangent, p.t, p.s)
    compound = a - expand_like(p.s - p.t, a) * slope
    pair = objectives.improved_meanflow_regression(net, p.z, p.v, tangent, p.t, p.s)
    expected = squared_l2(compound, p.v)
    torch.testing.assert_close(squared_l2(*pair), expected)
    torch.testing.assert_close(
        value_and_gradient(net, pair)[1], torch.autograd.grad(expected.sum(), list(net.parameters()))
    )


@each_path
@each_dim
def test_alpha_flow_at_one_is_flow_matching_of_every_average(path, dim):
    """``alpha = 1``, any target time, any frozen network: ``a(., ., s)`` onto ``v``."""
    net, p = Net(2, dim), problem(path, dim)
    pair = objectives.alpha_flow_regression(net, lambda z, t, s: 1e3 * z, p.z, p.v, p.t, p.s, alpha=1.0)
    expected = objectives.flow_matching_regression(lambda z, t: net(z, t, p.s), p.z, p.v, p.t)
    torch.testing.assert_close(value_and_gradient(net, pair), value_and_gradient(net, expected))


@each_path
@each_dim
def test_alpha_flow_over_alpha_tends_to_meanflow(path, dim):
    """The gradient of the squared loss over ``alpha``, at rate ``alpha``: frozen network the same, no bound."""
    net, p = Net(2, dim), problem(path, dim)
    _, expected = value_and_gradient(net, objectives.meanflow_regression(net, p.z, p.v, p.t, p.s))
    errors = []
    for alpha in (0.04, 0.02, 0.01, 0.005):
        pair = objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.s, alpha=alpha)
        _, gradient = value_and_gradient(net, pair)
        errors.append(largest(g / alpha - e for g, e in zip(gradient, expected, strict=True)))
    assert halving(errors, 1), errors
    assert errors[-1] < 0.05 * largest(expected)


@each_path
@each_dim
def test_shortcut_is_split_meanflow_at_the_midpoint(path, dim):
    """The same frozen network, no bound."""
    net, averaged, p = Net(2, dim), Net(2, dim), problem(path, dim)
    with torch.no_grad():
        averaged.last.weight.mul_(0.9)
    middle = flow.time_between(p.t, p.s, share=0.5)
    short = objectives.shortcut_regression(net, averaged, p.z, p.t, p.s)
    split = objectives.split_meanflow_regression(net, averaged, p.z, p.t, middle, p.s)
    torch.testing.assert_close(value_and_gradient(net, short), value_and_gradient(net, split))


@each_path
@each_dim
def test_alpha_flow_at_a_half_along_the_network_s_own_half_jump_is_shortcut(path, dim):
    """``alpha = 1/2`` with ``a(z, t, m)`` in the place of the velocity."""
    net, p = Net(2, dim), problem(path, dim)
    half = net(p.z, p.t, flow.time_between(p.t, p.s, share=0.5))
    pair = objectives.alpha_flow_regression(net, net, p.z, half, p.t, p.s, alpha=0.5)
    short = objectives.shortcut_regression(net, net, p.z, p.t, p.s)
    torch.testing.assert_close(value_and_gradient(net, pair), value_and_gradient(net, short))


@each_path
@each_dim
def test_solution_flow_is_alpha_flow_times_the_duration(path, dim):
    """Euler's parameterisation ``f = z + (s - t) a`` and ``alpha = (m - t) / (s - t)``: every residual."""
    net, p = Net(2, dim), problem(path, dim)
    solution = flow.flow_map_from_average_velocity(net)
    alpha = 0.3
    m = flow.time_between(p.t, p.s, share=alpha)
    f = objectives.solution_flow_regression(solution, solution, p.z, p.v, p.t, m, p.s)
    a = objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.s, alpha=alpha)
    duration = expand_like(p.s - p.t, p.z)
    torch.testing.assert_close(f.prediction - f.target, duration * (a.prediction - a.target), rtol=1e-9, atol=1e-10)


@each_path
@each_dim
def test_terminal_velocity_with_a_frozen_derivative_is_the_lagrangian_identity(path, dim):
    """Value and gradient, whatever the velocity: ``a + (s - t) sg[D_s a] - v = a - target``."""
    net, p = Net(2, dim), problem(path, dim)
    velocity = flow.instantaneous(net)
    pair = objectives.terminal_velocity_regression(net, velocity, p.z, p.t, p.s, derivative=flow.two_pass)
    a, slope = flow.lagrangian_derivative(net, p.z, p.t, p.s)
    target = flow.lagrangian_target(velocity(flow.jump(net, p.z, p.t, p.s), p.s), slope, p.t, p.s)
    torch.testing.assert_close(value_and_gradient(net, pair), value_and_gradient(net, (a, target)))
    through, _ = value_and_gradient(net, objectives.terminal_velocity_regression(net, velocity, p.z, p.t, p.s))
    torch.testing.assert_close(through, squared_l2(*pair))


def test_terminal_velocity_trains_through_its_derivative_by_default():
    """The default gradient is the finite difference of the loss with the target held; the frozen one is not."""
    net, p = Net(2, 2), problem(flow.Linear(), 2)
    velocity = partial(MIXTURES[2].velocity, path=flow.Linear())
    held = objectives.terminal_velocity_regression(net, velocity, p.z, p.t, p.s).target

    def gradient(**options) -> Tensor:
        pair = objectives.terminal_velocity_regression(net, velocity, p.z, p.t, p.s, **options)
        return torch.autograd.grad(squared_l2(*pair).sum(), net.last.weight)[0]

    def loss() -> Tensor:
        prediction = objectives.terminal_velocity_regression(net, velocity, p.z, p.t, p.s).prediction
        return squared_l2(prediction, held).sum()

    step = 1e-6
    with torch.no_grad():
        net.last.weight[0, 0] += step
        ahead = loss()
        net.last.weight[0, 0] -= 2 * step
        behind = loss()
        net.last.weight[0, 0] += step
    slope = float((ahead - behind) / (2 * step))
    assert float(gradient()[0, 0]) == pytest.approx(slope, rel=1e-6)
    assert abs(float(gradient(derivative=flow.two_pass)[0, 0]) - slope) > 1e-2 * abs(slope)


def corrected(exact, w: Tensor):
    """The exact map plus ``features(z, t, s) @ w``: a network whose parameters are right at zero."""

    def network(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        features = torch.stack([torch.ones_like(t), t.sin(), s.cos(), z[:, 0].sin(), (t * s).tanh()], dim=1)
        return exact(z, t, s) + features @ w

    return network


def at_rest(name: str, path, dim: int):
    """The loss of one sample as a function of ``w``, and the frozen network a perturbed one has to be drawn to."""
    mixture = MIXTURES[dim]
    exact = partial(mixture.average_velocity, path=path, steps=6)
    velocity = partial(mixture.velocity, path=path)

    def loss(w: Tensor, z: Tensor, t: Tensor, m: Tensor, s: Tensor) -> Tensor:
        network = corrected(exact, w)
        v = velocity(z, t)
        pair = {
            "improved meanflow": lambda: objectives.improved_meanflow_regression(network, z, v, v, t, s),
            "split meanflow": lambda: objectives.split_meanflow_regression(network, exact, z, t, m, s),
            "shortcut": lambda: objectives.shortcut_regression(network, exact, z, t, s),
            "terminal velocity": lambda: objectives.terminal_velocity_regression(network, velocity, z, t, s),
            "terminal velocity, frozen": lambda: objectives.terminal_velocity_regression(
                network, velocity, z, t, s, derivative=flow.two_pass
            ),
            # Their own targets, as in training.
            "improved meanflow of itself": lambda: objectives.improved_meanflow_regression(
                network, z, v, network(z, t, t), t, s
            ),
            "split meanflow of itself": lambda: objectives.split_meanflow_regression(network, network, z, t, m, s),
            "shortcut of itself": lambda: objectives.shortcut_regression(network, network, z, t, s),
            "terminal velocity of itself": lambda: objectives.terminal_velocity_regression(
                network, flow.instantaneous(network), z, t, s
            ),
        }[name]()
        return squared_l2(*pair).sum()

    return per_sample(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))


TAUGHT = ["improved meanflow", "split meanflow", "shortcut", "terminal velocity", "terminal velocity, frozen"]


OWN = [
    "improved meanflow of itself",
    "split meanflow of itself",
    "shortcut of itself",
    "terminal velocity of itself",
]


@pytest.mark.parametrize("name", TAUGHT + OWN)
@pytest.mark.parametrize("dim, path", list(zip((1, 2, 3, 2, 1, 2), PATHS.values(), strict=True)), ids=PATHS)
def test_no_gradient_in_any_sample_at_the_exact_average_velocity(name, dim, path):
    """Squared distance, marginal velocity, exact teacher or the exact network itself: class (i), 1e-6 per sample."""
    p = problem(path, dim, batch=3)
    gradient = at_rest(name, path, dim)(torch.zeros(5, dim, dtype=F64), p.z, p.t, p.m, p.s)
    assert gradient.shape == (3, 5, dim)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("dim, path", [(1, PATHS["cosine"]), (2, PATHS["linear"]), (3, PATHS["trigonometric"])])
def test_the_gradient_at_a_perturbed_average_velocity_points_back(name, dim, path):
    """Under a teacher. Terminal velocity: over jumps of a tenth of the path, as over long ones the velocity at the
    displaced end differs by more than the shift. With its own target nothing pulls a shifted flow back: see below."""
    p = problem(path, dim, batch=4)
    p = p._replace(s=flow.time_between(p.t, p.s, share=0.1), m=flow.time_between(p.t, p.s, share=0.05))
    wrong = torch.zeros(5, dim, dtype=F64)
    wrong[0] = 0.1
    gradient = at_rest(name, path, dim)(wrong, p.z, p.t, p.m, p.s)
    assert bool(((gradient * wrong).sum((1, 2)) > 0).all())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_agreeing_with_itself_is_no_anchor(share):
    """A flow without motion, and one of another velocity, have no loss: SplitMeanFlow needs flow matching."""
    p = problem(flow.Linear(), 2)
    m = flow.time_between(p.t, p.s, share=share)
    for still in (lambda z, t, s: 0 * z, lambda z, t, s: torch.ones_like(z)):
        pair = objectives.split_meanflow_regression(still, still, p.z, p.t, m, p.s)
        assert float(squared_l2(*pair).max()) < 1e-24


def expected_gradient(loss, path, dim: int, batch: int = 4, nodes: int = 8) -> Tensor:
    """``E[gradient of loss in a shift | z]`` over the posterior of the pairs, ``[batch, dim]``."""
    p = problem(path, dim, batch)
    rule = MIXTURES[dim].quadrature(p.z, p.t, path=path, nodes=nodes)
    count = rule.weights.shape[1]
    t, s = (time.repeat_interleave(count) for time in (p.t, p.s))
    q = strategies.at(path, rule.data.flatten(0, 1), rule.noise.flatten(0, 1), t, t, s)
    shift = torch.zeros_like(q.z).requires_grad_()
    exact = partial(MIXTURES[dim].average_velocity, path=path, steps=6)
    raw = loss(lambda z, t, s: exact(z, t, s) + shift, exact, q)
    (slope,) = torch.autograd.grad(raw.sum(), shift)
    return (rule.weights[:, :, None] * slope.unflatten(0, rule.weights.shape)).sum(1)


@pytest.mark.parametrize("dim, path", [(1, PATHS["linear"]), (2, PATHS["trigonometric"]), (1, PATHS["reversed"])])
def test_alpha_flow_is_biased_and_its_bias_falls_with_alpha(dim, path):
    """Class (iii): at the exact map the expected gradient over ``alpha`` is not zero; it falls as ``alpha``.

    Over ``alpha``, since a shift of the network is answered by ``alpha`` times the shift. Conditional velocities,
    by quadrature; the marginal velocity has the same rate, from Euler's error of the first jump.
    """
    conditional, marginal = [], []
    for alpha in (0.08, 0.04, 0.02, 0.01):

        def loss(network, frozen, q, v, alpha=alpha):
            return squared_l2(*objectives.alpha_flow_regression(network, frozen, q.z, v, q.t, q.s, alpha=alpha))

        def given(network, frozen, q, loss=loss):
            return loss(network, frozen, q, MIXTURES[dim].velocity(q.z, q.t, path=path))

        conditional.append(largest([expected_gradient(lambda n, f, q: loss(n, f, q, q.v), path, dim)]) / alpha)
        marginal.append(largest([expected_gradient(given, path, dim, nodes=1)]) / alpha)
    assert halving(conditional, 1), conditional
    assert halving(marginal, 1), marginal
    assert conditional[0] > 1e-2


@pytest.mark.parametrize("dim, path", [(1, PATHS["linear"]), (2, PATHS["trigonometric"]), (1, PATHS["reversed"])])
def test_solution_flow_has_alpha_flow_s_bias(dim, path):
    """Class (iii), in states: the expected gradient over the first jump's share ``r`` falls as ``r``."""
    errors = []
    for share in (0.08, 0.04, 0.02, 0.01):

        def loss(network, frozen, q, share=share):
            f, g = (flow.flow_map_from_average_velocity(a) for a in (network, frozen))
            m = flow.time_between(q.t, q.s, share=share)
            return squared_l2(*objectives.solution_flow_regression(f, g, q.z, q.v, q.t, m, q.s))

        errors.append(largest([expected_gradient(loss, path, dim)]) / share)
    assert halving(errors, 1), errors
    assert errors[0] > 1e-3


@pytest.mark.parametrize("dim, path", [(1, PATHS["linear"]), (2, PATHS["trigonometric"]), (1, PATHS["cosine"])])
def test_improved_meanflow_is_unbiased_along_the_marginal_velocity(dim, path):
    """Class (ii): conditional velocities as targets, the marginal one as the tangent."""

    def loss(network, _, q):
        tangent = MIXTURES[dim].velocity(q.z, q.t, path=path)
        return squared_l2(*objectives.improved_meanflow_regression(network, q.z, q.v, tangent, q.t, q.s))

    assert largest([expected_gradient(loss, path, dim, nodes=3)]) < 1e-6


def test_given_the_state_improved_meanflow_s_target_varies_as_the_velocity_alone():
    """What the predicted tangent is for; MeanFlow's target also varies by a Jacobian times the pair's noise."""
    path, dim = flow.Linear(), 2
    p = problem(path, dim, 3)
    rule = MIXTURES[dim].quadrature(p.z, p.t, path=path, nodes=5)
    count = rule.weights.shape[1]
    t, s = (time.repeat_interleave(count) for time in (p.t, p.s))
    q = strategies.at(path, rule.data.flatten(0, 1), rule.noise.flatten(0, 1), t, t, s)
    net = partial(MIXTURES[dim].average_velocity, path=path, steps=6)
    marginal = MIXTURES[dim].velocity(q.z, q.t, path=path)

    def variance(target: Tensor) -> Tensor:
        x = target.unflatten(0, rule.weights.shape)
        mean = (rule.weights[:, :, None] * x).sum(1, keepdim=True)
        return (rule.weights[:, :, None] * (x - mean).square()).sum((1, 2))

    improved = variance(objectives.improved_meanflow_regression(net, q.z, q.v, marginal, q.t, q.s).target)
    torch.testing.assert_close(improved, variance(q.v))
    plain = variance(objectives.meanflow_regression(net, q.z, q.v, q.t, q.s).target)
    assert bool((plain - improved).abs().min() > 1e-3)


def test_what_is_frozen_gets_no_gradient():
    net, other, p = Net(2, 2), Net(2, 2), problem(flow.Linear(), 2)
    solution, frozen = (flow.flow_map_from_average_velocity(a) for a in (net, other))
    pairs = [
        objectives.alpha_flow_regression(net, other, p.z, p.v, p.t, p.s, alpha=0.3),
        objectives.split_meanflow_regression(net, other, p.z, p.t, p.m, p.s),
        objectives.shortcut_regression(net, other, p.z, p.t, p.s),
        objectives.terminal_velocity_regression(net, flow.instantaneous(other), p.z, p.t, p.s),
        objectives.improved_meanflow_regression(net, p.z, p.v, other(p.z, p.t, p.t), p.t, p.s),
        objectives.improved_meanflow_regression(
            net, p.z, p.v, other(p.z, p.t, p.t), p.t, p.s, derivative=flow.with_graph
        ),
        objectives.solution_flow_regression(solution, frozen, p.z, p.v, p.t, p.m, p.s),
    ]
    for pair in pairs:
        squared_l2(*pair).sum().backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_alpha_outside_its_range_is_refused_and_zero_names_meanflow(alpha):
    p = problem(flow.Linear(), 2)
    net = Net(2, 2)
    with pytest.raises(ConfigError, match="meanflow_regression"):
        objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.s, alpha=alpha)


@pytest.mark.parametrize(
    "make",
    [
        lambda net, p: objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.s, alpha=0.5, bound=0.0),
        lambda net, p: objectives.shortcut_regression(net, net, p.z, p.t, p.s, bound=-4.0),
        lambda net, p: flow.two_jump_target(p.v, net, p.z, p.t, p.m, p.s, state_bound=math.nan),
        lambda net, p: flow.truncated_logit_normal_times(p.t, mean=0.0, std=1.0, low=0.5, high=0.5),
        lambda net, p: flow.truncated_logit_normal_times(p.t, mean=0.0, std=1.0, high=1.5),
        lambda net, p: flow.interval_around(p.t, p.s, middle=1.5),
        lambda net, p: flow.log_steps(-1),
        lambda net, p: flow.log_steps(8, finest=0),
        lambda net, p: flow.log_steps(8, finest=1, biased=True),
        lambda net, p: flow.annealed(0, begin=2, end=1, initial=0.0, final=1.0),
        lambda net, p: flow.exponential_ramp(0.5, 1.0, -1.0),
        lambda net, p: flow.exponential_ramp(0.5, 0.0, 1.0),
    ],
)
def test_what_cannot_work_is_refused(make):
    with pytest.raises(ConfigError, match="expected"):
        make(Net(2, 2), problem(flow.Linear(), 2))


def test_the_average_of_improved_meanflow_does_not_move_its_tangent():
    """In forward mode too: a derivative of the loss in the tangent is zero for its prediction."""
    net, p = Net(2, 2), problem(flow.Linear(), 2)

    def prediction(tangent: Tensor) -> Tensor:
        return objectives.improved_meanflow_regression(
            net, p.z, p.v, tangent, p.t, p.s, derivative=flow.with_graph
        ).target

    _, moved = torch.func.jvp(prediction, (p.v,), (torch.ones_like(p.v),))
    assert float(moved.abs().max()) == 0.0


def test_a_small_alpha_keeps_its_share_in_half_precision():
    """The target is ``alpha v + (1 - alpha) a'``; with a middle time in bfloat16 the share of ``v`` was zero."""
    t, s = (torch.full((2,), time, dtype=torch.bfloat16) for time in (0.9375, 0.4375))
    z = torch.ones(2, 3, dtype=torch.bfloat16)

    def still(z, t, s):
        assert t.dtype == torch.bfloat16
        return 0 * z

    pair = objectives.alpha_flow_regression(still, still, z, z, t, s, alpha=0.005)
    torch.testing.assert_close(pair.target, torch.full((2, 3), 0.005), rtol=1e-5, atol=0)
