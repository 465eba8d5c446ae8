"""Monitors: numbers that move where a loss does not."""

import pytest
import torch

from onestep_adapters.testing import strategies
from onestep_core import (
    diagnostics,
    flow,
    mse,
    objectives,
)
from onestep_core.diagnostics import GaussianMixture, guidance_deficit, held_out_energy
from onestep_core.flow import Linear
from tests.toy import Net

F64 = torch.float64


def modes(weights):
    return GaussianMixture.isotropic(weights, [[-1.0], [1.0]], 0.25)


CONDITIONAL, NULL = (0.4, 0.6), (0.6, 0.4)


def guided(alpha):
    """Masses of ``alpha p_c - (alpha - 1) p_null``, a distribution for alpha up to 3."""
    return tuple(alpha * c - (alpha - 1) * n for c, n in zip(CONDITIONAL, NULL, strict=True))


def test_the_deficit_is_the_negative_mass():
    """Of two well separated modes it is the negative weight; where a distribution exists it is zero."""
    null = modes(NULL).sample(20_000, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(len(null), dtype=F64)
    ratio = modes(CONDITIONAL).log_density(null, zero, path=Linear()) - modes(NULL).log_density(
        null, zero, path=Linear()
    )
    for alpha, missing in ((1.0, 0.0), (2.5, 0.0), (3.0, 0.0), (4.0, 0.2), (6.0, 0.6)):
        assert min(guided(alpha)) == pytest.approx(-missing) or missing == 0
        assert float(guidance_deficit(ratio, alpha=alpha)) == pytest.approx(missing, abs=0.01)


def test_held_out_energy_orders_samples_by_what_is_wrong_with_them():
    generator = torch.Generator().manual_seed(0)
    data, held_out, near, far = (torch.randn(500, 1, 2, 2, generator=generator) for _ in range(4))
    energies = [float(held_out_energy(x.requires_grad_(), held_out)) for x in (data, near + 0.3, far * 0.3, far * 0.0)]
    assert energies == sorted(energies)
    assert abs(energies[0]) < 0.02


MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: GaussianMixture(
        [0.5, 0.5], [[-1.0, 0.5], [1.0, 0.0]], [[[0.3, 0.1], [0.1, 0.25]], [[0.25, -0.05], [-0.05, 0.4]]]
    ),
    3: GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5, 0.0], [1.0, 0.0, 0.5]], [0.5, 0.6]),
}


def problem(path, dim: int, batch: int = 5, margin: float = 0.05) -> strategies.Problem:
    """Jumps in both directions of time, with the middle time anywhere between."""
    data = MIXTURES[dim].sample(batch, generator=torch.Generator().manual_seed(dim))
    t, s = (strategies.spread_times(path, batch, 10 * dim + i, margin=margin) for i in range(2))
    share = torch.rand(batch, dtype=F64, generator=torch.Generator().manual_seed(7))
    return strategies.at(path, data, strategies.normal(dim, batch, dim), t, flow.time_between(t, s, share=share), s)


def largest(tensors) -> float:
    return max(float(x.detach().abs().max()) for x in tensors)


def test_the_trajectory_terms_have_the_gradient_of_the_loss():
    net, p = Net(2, 2), problem(flow.Linear(), 2)
    pair = objectives.meanflow_regression(net, p.z, p.v, p.t, p.s)
    terms = diagnostics.trajectory_terms(pair, p.v)
    weights = list(net.parameters())
    both = torch.autograd.grad(sum(terms).sum(), weights, retain_graph=True)
    torch.testing.assert_close(both, torch.autograd.grad(mse(*pair).sum(), weights))
    plain = objectives.alpha_flow_regression(net, net, p.z, p.v, p.t, p.s, alpha=1.0)
    assert largest([diagnostics.trajectory_terms(plain, p.v).consistency]) < 1e-12


def test_the_tangent_terms_are_the_derivative_times_the_duration():
    net, p = Net(2, 2), problem(flow.Linear(), 2)
    s = torch.cat([p.s[:3], p.t[3:]])
    pair = objectives.meanflow_regression(net, p.z, p.v, p.t, s)
    _, slope = flow.two_pass(net, (p.z, p.t, s), (p.v, torch.ones_like(p.t), torch.zeros_like(s)))
    expected = ((s - p.t)[:, None] * slope).square().mean(1).sqrt()
    terms = diagnostics.tangent_terms(pair, p.v)
    torch.testing.assert_close(terms.norm, expected)
    torch.testing.assert_close(terms.ratio, expected / p.v.square().mean(1).sqrt())
    torch.testing.assert_close(terms.spike, expected.max() / expected[:3].median())
    assert terms.norm[3:].eq(0).all()
    still = objectives.meanflow_regression(net, p.z, p.v, p.t, p.t)
    assert diagnostics.tangent_terms(still, p.v).spike == 0
