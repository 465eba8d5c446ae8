"""A network's answer of another shape or kind than its states is named, in every objective and wrapper."""

from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from tests.cases import TWO_MODES

F64 = torch.float64


MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: TWO_MODES,
    3: GaussianMixture(
        [0.5, 0.5], [[-0.7, 0.0, 0.4], [0.7, 0.3, 0.0]], torch.eye(3, dtype=F64).mul(0.4).expand(2, 3, 3)
    ),
}


def problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


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


WRONG = {
    "wide": (lambda z, *times: torch.cat([z, z], -1), r"answered torch.float64 \[4, 4\] to states of shape \[4, 2\]"),
    "broadcast": (
        lambda z, *times: z.mean(0, keepdim=True),
        r"answered torch.float64 \[1, 2\] to states of shape \[4, 2\]",
    ),
    "several": (lambda z, *times: (z, z), "answered tuple to states|the network returned 2"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("make", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_another_shape_than_the_states_are_named(make, wrong, message):
    """The network's in training and the target's: where both are wrong alike, the pair does not show it."""
    p = problem(flow.Linear(), MIXTURES[2])
    right = lambda z, *times: 0.5 * z  # noqa: E731
    called = []
    make(p, right, lambda *state: called.append(1) or right(*state))
    for first, second in [(wrong, wrong), (wrong, right), (right, wrong)][: 3 if called else 2]:
        with pytest.raises(ConfigError, match=message):
            make(p, first, second)


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_so_are_answers_to_what_wraps_a_network(wrong, message):
    """Before scalings and skips broadcast them."""
    p = problem(flow.Linear(), MIXTURES[2])
    scalings = partial(flow.edm_scalings, sigma_data=0.5)
    of_two = partial(flow.euler_scalings, path=flow.Linear(), sigma_data=0.5)
    right = lambda z, *times: 0.5 * z  # noqa: E731
    for function in (
        flow.edm(wrong),
        flow.consistency(wrong),
        flow.preconditioned(wrong, scalings),
        flow.unwrap(wrong, scalings=scalings),
        flow.truncated(wrong, right, transition=0.5),
        flow.truncated(right, wrong, transition=0.5),
        flow.trigflow(wrong, sigma_data=0.5),
        flow.trigflow_velocity(wrong, sigma_data=0.5),
        flow.trigflow_from_denoiser(wrong, sigma_data=0.5),
        flow.denoiser_from_network(wrong, form=flow.EulerForm()),
    ):
        with pytest.raises(ConfigError, match=message):
            function(p.z, p.t)
    for flow_map in (
        flow.preconditioned_flow_map(wrong, scalings=of_two),
        flow.flow_map_from_network(wrong, form=flow.EulerForm()),
        flow.flow_map_from_average_velocity(wrong),
        flow.average_velocity_from_flow_map(wrong),
        flow.average_velocity_from_displacement(wrong),
        flow.average_velocity_from_network(wrong),
    ):
        with pytest.raises(ConfigError, match=message):
            flow_map(p.z, p.t, p.s)


def test_two_heads_are_two_and_answers_floating_point_numbers():
    p = problem(flow.Linear(), MIXTURES[2])
    for heads in (lambda z, t, s: z, lambda z, t, s: (z, z, z)):
        with pytest.raises(ConfigError, match="expected two heads"):
            one.improved_meanflow_regressions(heads, p.z, p.v, p.v, p.t, p.s)
    whole = lambda z, *times: z.long()  # noqa: E731
    for make in ANSWERS.values():
        with pytest.raises(ConfigError, match=r"answered torch.int64 \[4, 2\]"):
            make(p, whole, whole)
