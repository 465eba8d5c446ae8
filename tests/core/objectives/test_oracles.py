"""Flow matching and MeanFlow against the oracle."""

from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives, shapes
from onestep_core.diagnostics import GaussianMixture
from onestep_core.regression import adaptive, pseudo_huber, squared_l2
from tests.cases import TWO_MODES

GENERAL = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.5], [1.0, -0.5], [0.0, 1.5]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.25, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.5]]],
)


def states(path, batch: int = 6, seed: int = 0, mixture=GENERAL) -> tuple[Tensor, Tensor, Tensor]:
    """Typical states with source and target times away from the ends."""
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    t, s = (strategies.spread_times(path, batch, seed + i) for i in (1, 2))
    z, _ = path(data, strategies.normal(seed + 3, *data.shape), t)
    return z, t, s


def posterior_problem(mixture: GaussianMixture, z: Tensor, t: Tensor, s: Tensor, nodes: int):
    """The problem spread over the posterior of every state: rows ``[batch * node]`` and their weights."""
    rule = mixture.quadrature(z, t, path=flow.Linear(), nodes=nodes)
    count = rule.weights.shape[1]
    t, s = (time.repeat_interleave(count) for time in (t, s))
    p = strategies.at(flow.Linear(), rule.data.flatten(0, 1), rule.noise.flatten(0, 1), t, s, s)
    return p, rule.weights


def shift_gradient(loss, z: Tensor) -> Tensor:
    shift = torch.zeros_like(z).requires_grad_()
    return torch.autograd.grad(loss(shift).sum(), shift)[0]


def meanflow_loss(p, weight=None, distance=squared_l2):
    exact = partial(TWO_MODES.average_velocity, path=flow.Linear(), steps=6)

    def loss(shift: Tensor) -> Tensor:
        raw = distance(*objectives.meanflow_regression(lambda *a: exact(*a) + shift, p.z, p.v, p.t, p.s))
        return raw if weight is None else raw * weight(raw)

    return loss


def flow_matching_loss(p, weight=None, distance=squared_l2):
    exact = partial(TWO_MODES.velocity, path=flow.Linear())

    def loss(shift: Tensor) -> Tensor:
        raw = distance(*objectives.flow_matching_regression(lambda *a: exact(*a) + shift, p.z, p.v, p.t))
        return raw if weight is None else raw * weight(raw)

    return loss


@pytest.mark.parametrize("make", [flow_matching_loss, meanflow_loss])
def test_conditional_velocities_are_unbiased_and_weights_are_not(make):
    z, t, s = states(flow.Linear(), 3, mixture=TWO_MODES)
    p, weights = posterior_problem(TWO_MODES, z, t, s, nodes=5)

    def expected(loss) -> Tensor:
        slopes = shift_gradient(loss, p.z).unflatten(0, weights.shape)
        return (weights[:, :, None] * slopes).sum(1)

    assert float(expected(make(p)).abs().max()) < 1e-6
    alone = shift_gradient(make(p), p.z)
    assert float(alone.abs().max()) > 0.1  # nothing vanishes but the expectation
    moved = expected(make(p, weight=partial(adaptive, power=1.0, epsilon=0.01)))
    assert float(moved.abs().max()) > 1e-3
    moved = expected(make(p, distance=partial(pseudo_huber, c=0.1)))
    assert float(moved.abs().max()) > 1e-3


def test_meanflow_on_the_marginal_velocity_has_no_gradient_in_any_sample_nor_parameter():
    """A correction ``features(z, t, s) @ w`` to the exact map, with per-sample gradients of ``w``."""
    z, t, s = states(flow.Linear(), 4, mixture=TWO_MODES)
    exact = partial(TWO_MODES.average_velocity, path=flow.Linear(), steps=6)
    v = TWO_MODES.velocity(z, t, path=flow.Linear())

    def loss(w: Tensor, z: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        def network(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
            features = torch.stack([torch.ones_like(t), t, s, z[:, 0].sin(), z[:, 1].square()], dim=1)
            return exact(z, t, s) + features @ w

        return squared_l2(*objectives.meanflow_regression(network, z, v, t, s)).sum()

    gradient = shapes.per_sample(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))
    at_truth = gradient(torch.zeros(5, 2, dtype=torch.float64), z, v, t, s)
    assert float(at_truth.abs().max()) < 1e-6
    wrong = torch.zeros(5, 2, dtype=torch.float64)
    wrong[0] = 0.1
    assert bool(((gradient(wrong, z, v, t, s) * wrong).sum((1, 2)) > 0).all())


def test_meanflow_s_fixed_point_is_the_average_and_not_the_instantaneous_velocity():
    z, t, s = states(flow.Linear(), 4, mixture=TWO_MODES)
    v = TWO_MODES.velocity(z, t, path=flow.Linear())
    pair = objectives.meanflow_regression(lambda z, t, s: TWO_MODES.velocity(z, t, path=flow.Linear()), z, v, t, s)
    assert float(squared_l2(*pair).min()) > 1e-4
