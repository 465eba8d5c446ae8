"""The Fréchet distance against closed forms."""

import math

import pytest
import torch

from onestep_adapters.metrics import frechet_distance
from onestep_core.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def with_moments(n, mean, covariance, seed=0):
    """Points whose sample mean and covariance are exactly these."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    turn = torch.linalg.qr(normal(3, 3)).Q
    x = with_moments(50, torch.tensor([1.0, 0.0, 2.0]).double(), turn @ a.diag() @ turn.T)
    y = with_moments(70, torch.tensor([0.0, 0.0, 0.0]).double(), turn @ b.diag() @ turn.T, seed=1)
    expected = 5.0 + (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_frechet_of_two_by_two_gaussians_is_the_closed_form():
    # In two dimensions tr (A B)^{1/2} = sqrt(tr(A B) + 2 sqrt(det A det B)).
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    zero = torch.zeros(2).double()
    root = math.sqrt((a @ b).trace().item() + 2 * math.sqrt(torch.det(a).item() * torch.det(b).item()))
    distance = frechet_distance(with_moments(40, zero, a), with_moments(30, zero, b, seed=1))
    assert distance.item() == pytest.approx((a + b).trace().item() - 2 * root, rel=1e-12)


def test_frechet_of_a_translation_and_of_itself_with_a_singular_covariance():
    x = normal(20, 3) @ normal(3, 40, seed=1)
    shift = normal(1, 40, seed=2)
    assert frechet_distance(x, x + shift).item() == pytest.approx(shift.square().sum().item(), rel=1e-12)
    assert frechet_distance(x, x).item() == pytest.approx(0, abs=1e-11)


def test_frechet_bias_is_the_documented_one():
    d, n = 16, 600
    found = [frechet_distance(normal(n, d, s), normal(n, d, s + 100)).item() for s in range(8)]
    assert sum(found) / 8 == pytest.approx((d + d * (d + 1) / 4) * 2 / n, rel=0.1)


def test_frechet_needs_two_samples():
    with pytest.raises(ConfigError, match="got 1 and 5"):
        frechet_distance(torch.ones(1, 2), torch.ones(5, 2))
