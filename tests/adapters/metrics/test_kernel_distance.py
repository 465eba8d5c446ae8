"""The kernel distance against the formula written out, closed forms, and its subsets."""

import itertools

import pytest
import torch

from onestep_adapters.metrics import frechet_distance, kernel_distance
from onestep_core.errors import ConfigError


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(x, y):
    """The sums of the paper, pair by pair."""
    d = x.shape[1]

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    x, y = x.tolist(), y.tolist()
    within = [
        sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_it_is_the_formula():
    x, y = normal(7, 3), 0.5 * normal(5, 3, seed=1) + 1
    assert kernel_distance(x, y).item() == pytest.approx(written_out(x, y), rel=1e-12)
    assert kernel_distance(x.float(), y.float()).dtype == torch.float64
    torch.testing.assert_close(kernel_distance(x, y), kernel_distance(y, x))


def test_it_is_the_mean_over_all_pairs_of_subsets():
    """The released KID is the mean over random subsets: both have one expectation."""
    x, y = normal(5, 2), normal(5, 2, seed=1) + 0.5
    parts = [list(rows) for rows in itertools.combinations(range(5), 3)]
    mean = sum(kernel_distance(x[a], y[b]).item() for a in parts for b in parts) / len(parts) ** 2
    assert kernel_distance(x, y).item() == pytest.approx(mean, rel=1e-12)


def test_it_is_unbiased_and_below_zero_half_of_the_time():
    found = torch.tensor([kernel_distance(normal(40, 4, s), normal(60, 4, s + 500)).item() for s in range(300)])
    assert abs(found.mean()) < 3 * found.std() / 300**0.5
    assert 0.35 < (found < 0).double().mean() < 0.8


def test_it_sees_a_third_moment_that_the_frechet_distance_does_not():
    """Mean 0 and variance 1 in both: the squared distance of the third moments, 0 and 1.5, remains."""
    x = torch.tensor([-1.0, 1.0]).double().repeat(500)[:, None]
    y = torch.tensor([-0.5, -0.5, -0.5, -0.5, 2.0]).double().repeat(200)[:, None]
    assert frechet_distance(x, y).item() == pytest.approx(0, abs=1e-9)
    assert kernel_distance(x, y).item() == pytest.approx(2.25, abs=0.05)


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match="at least two samples; got 1 and 5"):
        kernel_distance(normal(1, 2), normal(5, 2))
    with pytest.raises(ConfigError, match="5 of 5 rows of x hold NaN"):
        kernel_distance(normal(5, 2) / 0, normal(5, 2))
