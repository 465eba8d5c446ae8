"""Flow maps: conversions, other conventions of time arguments, identities and their limits."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import onestep_core as one
from onestep_adapters.testing import strategies
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.shapes import expand_like
from tests.cases import TWO_MODES
from tests.toy import Net

F64 = torch.float64


def test_a_jump_and_the_conversions_agree():
    def displacement(z, t, s):
        return expand_like((s - t) * (1 + s), z) * z

    z, t, s = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64), torch.rand(4, dtype=F64) + 2
    average = flow.average_velocity_from_displacement(displacement)
    flow_map = flow.flow_map_from_average_velocity(average)
    torch.testing.assert_close(flow_map(z, t, s), z + displacement(z, t, s))
    torch.testing.assert_close(flow.average_velocity_from_flow_map(flow_map)(z, t, s), average(z, t, s))
    torch.testing.assert_close(flow.consistency_from_flow_map(flow_map, end=3.0)(z, t), flow_map(z, t, 0 * t + 3))


def test_foreign_time_arguments():
    z, t, s = torch.ones(2, 1, dtype=F64), torch.tensor([0.9, 0.5], dtype=F64), torch.tensor([0.4, 0.5], dtype=F64)
    seen = {}

    def network(z, first, second):
        seen["times"] = (first, second)
        return z

    flow.from_duration(network)(z, t, s)
    torch.testing.assert_close(seen["times"], (t, t - s))
    flow.from_reversed(network)(z, t, s)
    torch.testing.assert_close(seen["times"], (s, t))
    flow.from_log_step(network, finest=5)(z, t, s)
    torch.testing.assert_close(seen["times"], (t, torch.tensor([1.0, 5.0], dtype=F64)))


def test_semigroup_target_of_no_jump_is_the_first_half():
    one, t = torch.ones(2, 1), torch.tensor([0.5, 1.0])
    out = flow.semigroup_target(one, 3 * one, t, t, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 3.0]))


def network(width=8):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, 2)).double()


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


def largest(tensors) -> float:
    return max(float(x.detach().abs().max()) for x in tensors)


def halving(errors: list[float], order: int, slack: float = 0.25) -> bool:
    """Whether errors at steps ``h, h/2, h/4, ...`` fall as ``h^order``, the last ratio within ``slack``."""
    return abs(math.log2(errors[-2] / errors[-1]) - order) < slack and errors[-1] < errors[0] / 2 ** (order - slack)


@each_path
@each_dim
def test_the_eulerian_target_is_the_limit_of_a_short_first_jump(path, dim):
    """``m -> t``, first jump along ``v``: ``(s - t) (a - semigroup) / (m - t) -> a - eulerian`` at rate ``m - t``."""
    net, p = Net(2, dim), problem(path, dim)
    a, slope = flow.eulerian_derivative(net, p.z, p.v, p.t, p.s)
    expected = a - flow.eulerian_target(p.v, slope, p.t, p.s)
    errors = []
    for share in (0.04, 0.02, 0.01, 0.005):
        m = flow.time_between(p.t, p.s, share=share)
        errors.append(largest([(a - flow.two_jump_target(p.v, net, p.z, p.t, m, p.s)) / share - expected]))
    assert halving(errors, 1), errors
    assert errors[-1] < 0.05 * largest([expected])


@each_path
@each_dim
def test_the_lagrangian_target_is_the_limit_of_a_short_second_jump(path, dim):
    """``m -> s``, second jump along ``v``: ``(s - t) (a - semigroup) / (s - m) -> a - lagrangian``, rate ``s - m``."""
    net, p = Net(2, dim), problem(path, dim)
    velocity = partial(MIXTURES[dim].velocity, path=path)
    a, slope = flow.lagrangian_derivative(net, p.z, p.t, p.s)
    end = flow.jump(net, p.z, p.t, p.s)
    expected = a - flow.lagrangian_target(velocity(end, p.s), slope, p.t, p.s)
    errors = []
    for share in (0.02, 0.01, 0.005, 0.0025):
        m = flow.time_between(p.s, p.t, share=share)
        first = net(p.z, p.t, m)
        target = flow.two_jump_target(first, lambda z, m, s: velocity(z, m), p.z, p.t, m, p.s)
        errors.append(largest([(a - target) / share - expected]))
    assert halving(errors, 1), errors
    assert errors[-1] < 0.1 * max(1.0, largest([expected]))


def test_bounds_clip_the_target_and_the_state_between():
    one, t, s = torch.ones(1, 1), torch.ones(1), torch.zeros(1)
    far = 100 * one
    pair = objectives.alpha_flow_regression(lambda z, t, s: z, lambda z, t, s: z, far, -far, t, s, alpha=0.5, bound=4.0)
    assert float(pair.target) == 4.0  # (-100 + 150) / 2 = 25, clipped; the state at 150 is not
    seen = []

    def frozen(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        seen.append(float(z))
        return -z

    pair = objectives.shortcut_regression(lambda z, t, s: z, frozen, far, t, s, bound=4.0)
    assert seen == [100.0, 4.0]
    assert float(pair.target) == -4.0


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


TRAJECTORY_MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: TWO_MODES,
    3: GaussianMixture(
        [0.5, 0.5], [[-0.7, 0.0, 0.4], [0.7, 0.3, 0.0]], torch.eye(3, dtype=F64).mul(0.4).expand(2, 3, 3)
    ),
}


each_dimension = pytest.mark.parametrize("dim", TRAJECTORY_MIXTURES)


TRAJECTORY_PATHS = {
    "linear": flow.Linear(),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.002, 10.0),
}


each_trajectory_path = pytest.mark.parametrize("path", TRAJECTORY_PATHS.values(), ids=TRAJECTORY_PATHS)


def trajectory_problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


@each_trajectory_path
def test_the_velocity_of_the_exact_flow_map(path):
    p = trajectory_problem(path, TWO_MODES)
    velocity = flow.velocity_from_flow_map(partial(TWO_MODES.flow_map, path=path, steps=2))
    torch.testing.assert_close(velocity(p.z, p.t), TWO_MODES.velocity(p.z, p.t, path=path), rtol=1e-8, atol=1e-8)


@each_trajectory_path
@each_dimension
def test_a_flow_map_is_its_own_composition(path, dim):
    """The exact one in two jumps, each sample with its own middle; another map is not."""
    p = trajectory_problem(path, TRAJECTORY_MIXTURES[dim])
    exact = partial(TRAJECTORY_MIXTURES[dim].flow_map, path=path, steps=40)
    torch.testing.assert_close(flow.two_jumps(exact, p.z, p.t, p.m, p.s), exact(p.z, p.t, p.s), rtol=1e-5, atol=1e-5)
    jumps = flow.flow_map_from_average_velocity(Net(2, dim))
    assert (flow.two_jumps(jumps, p.z, p.t, p.m, p.s) - jumps(p.z, p.t, p.s)).abs().max() > 1e-3


ANSWERS = {
    "flow_matching": lambda p, f, g: one.flow_matching_regression(f, p.z, p.v, p.t),
    "denoising": lambda p, f, g: one.denoising_regression(f, p.z, p.data, p.t),
    "meanflow": lambda p, f, g: one.meanflow_regression(f, p.z, p.v, p.t, p.s),
    "improved_meanflow": lambda p, f, g: one.improved_meanflow_regression(f, p.z, p.v, p.v, p.t, p.s),
    "alpha_flow": lambda p, f, g: one.alpha_flow_regression(f, g, p.z, p.v, p.t, p.s, alpha=0.5),
    "split_meanflow": lambda p, f, g: one.split_meanflow_regression(f, g, p.z, p.t, p.m, p.s),
    "shortcut": lambda p, f, g: one.shortcut_regression(f, g, p.z, p.t, p.s),
    "terminal_velocity": lambda p, f, g: one.terminal_velocity_regression(f, g, p.z, p.t, p.s),
    "solution_flow": lambda p, f, g: one.solution_flow_regression(f, g, p.z, p.v, p.t, p.m, p.s),
    "consistency": lambda p, f, g: one.consistency_regression(f, g, p.z, p.z, p.t, p.m),
    "continuous_consistency": lambda p, f, g: one.continuous_consistency_regression(f, p.z, p.v, p.t, sigma_data=0.5),
    "consistency_trajectory": lambda p, f, g: one.consistency_trajectory_regression(
        f, g, g, p.z, p.z, p.t, p.m, p.s, end=0.0
    ),
    "progressive": lambda p, f, g: one.progressive_regression(f, g, p.z, p.t, p.m, p.s, path=flow.Linear(0.01)),
    "moment_matching": lambda p, f, g: one.moment_matching_loss(
        f, g, p.z, p.z, p.t, p.m, p.s, particles=1, kernel=partial(one.laplace, temperature=1.0)
    ),
    "rectified_flow": lambda p, f, g: one.rectified_flow_regression(f, p.z, p.data, p.t, p.m, p.s),
    "knowledge_distillation": lambda p, f, g: one.knowledge_distillation_regression(f, p.z, p.data, p.t, p.s),
    "distribution_matching": lambda p, f, g: one.distribution_matching_regression(
        f, g, p.data, p.z, p.t, path=flow.Linear()
    ),
}


@pytest.mark.parametrize("name", ["shortcut", "split_meanflow", "alpha_flow", "rectified_flow", "meanflow"])
def test_single_precision_states_at_double_precision_times(name):
    """As times come from a script with another default than the data's."""
    p = trajectory_problem(flow.Linear(), TRAJECTORY_MIXTURES[2])
    single = p._replace(z=p.z.float(), v=p.v.float(), data=p.data.float())
    right = lambda z, *times: 0.5 * z  # noqa: E731
    close(
        ANSWERS[name](single, right, right).target.double(), ANSWERS[name](p, right, right).target, rtol=1e-5, atol=1e-6
    )
