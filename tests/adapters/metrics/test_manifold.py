"""Nearest-neighbour comparisons against known expectations."""

import math

import pytest
import torch

from onestep_adapters.metrics import (
    coverage,
    density,
    frechet_distance,
    manifold_metrics,
    nearest_distances,
    nearest_neighbour_accuracy,
    nearest_training_distance,
    precision,
    recall,
)
from onestep_core.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def test_neighbour_accuracy_is_one_half_for_one_distribution_and_one_for_separated_sets():
    n = 400
    found = nearest_neighbour_accuracy(normal(n, 8), normal(n, 8, seed=1)).item()
    assert abs(found - (n - 1) / (2 * n - 1)) < 4 * 0.5 / math.sqrt(2 * n)
    assert nearest_neighbour_accuracy(normal(n, 8), normal(n, 8, seed=1) + 50).item() == 1.0


def test_neighbour_accuracy_shares_ties():
    # All points equal: every other point is a nearest one, n - 1 of 2 n - 1 with the right label.
    assert nearest_neighbour_accuracy(torch.zeros(5, 2), torch.zeros(5, 2)).item() == pytest.approx(4 / 9)
    x = normal(50, 3)
    assert nearest_neighbour_accuracy(x, x.clone()).item() == 0.0


def test_manifold_of_one_distribution_has_the_documented_expectations():
    n, k = 500, 5
    found = [manifold_metrics(normal(n, 4, s), normal(n, 4, s + 100), k=k) for s in range(6)]
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert sum(m.coverage.item() for m in found) / 6 == pytest.approx(expected, abs=0.01)
    assert sum(m.density.item() for m in found) / 6 == pytest.approx(1, abs=0.03)
    assert min(min(m.precision.item(), m.recall.item()) for m in found) > 0.85


def test_manifold_of_disjoint_sets_is_zero():
    assert [v.item() for v in manifold_metrics(normal(50, 3), normal(60, 3, 1) + 99, k=3)] == [0, 0, 0, 0]


def test_manifold_tells_missing_from_invented():
    two, one = torch.cat([normal(100, 2), normal(100, 2, 1) + 20]), normal(200, 2, 2)
    assert precision(two, one).item() > 0.9
    assert recall(two, one).item() < 0.6
    assert coverage(two, one).item() < 0.6
    assert precision(one, two).item() < 0.6
    assert density(one, two).item() < 0.7
    assert coverage(one, two).item() > 0.8


def test_manifold_counts_copies_and_does_not_depend_on_blocks():
    x = normal(70, 3)
    stacked = torch.cat([x, x])  # every radius is zero at k = 1, and the ball is closed
    assert manifold_metrics(stacked, stacked, k=1).precision.item() == 1.0
    y = normal(50, 3, 1)
    assert manifold_metrics(x, y, k=4, block_size=7) == manifold_metrics(x, y, k=4)
    assert torch.allclose(
        nearest_neighbour_accuracy(x, x + 0.3, block_size=9), nearest_neighbour_accuracy(x, x + 0.3), rtol=1e-12
    )


def test_manifold_needs_more_than_k_points():
    with pytest.raises(ConfigError, match="5-th neighbour"):
        density(normal(5, 2), normal(9, 2))


def test_nearest_training_distance_sees_copies_and_leaves_oneself_out():
    train = normal(40, 5)
    assert nearest_training_distance(train[:10], train)[0].item() == 0.0
    rows = torch.arange(10)
    others = [torch.cdist(train[i : i + 1], torch.cat([train[:i], train[i + 1 :]])).min() for i in range(10)]
    assert torch.allclose(nearest_distances(train[:10], train, own=rows), torch.stack(others))
    with pytest.raises(ConfigError, match="quantiles"):
        nearest_training_distance(train, train, quantiles=(1.5,))


@pytest.mark.parametrize(
    "metric",
    [
        lambda x, y: manifold_metrics(x, y, k=3),
        nearest_neighbour_accuracy,
        nearest_distances,
        frechet_distance,
    ],
    ids=["manifold", "1-NN", "distances", "Fréchet"],
)
def test_rows_that_are_not_finite_are_counted_and_refused(metric):
    x, y = torch.randn(2, 20, 3, dtype=torch.float64)
    y[3, 1], y[5, 0] = math.nan, math.inf
    with pytest.raises(ConfigError, match="2 of 20 rows"):
        metric(x, y)
    with pytest.raises(ConfigError, match="2 of 20 rows"):
        metric(y, x)
