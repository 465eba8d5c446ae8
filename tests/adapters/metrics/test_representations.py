"""Monitors of representations: known answers and formulas written out."""

import pytest
import torch

from onestep_adapters.metrics import (
    alignment,
    effective_rank,
    knn_accuracy,
    nearest_neighbours,
    spread,
    uniformity,
)
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded


def test_the_effective_rank_counts_directions():
    line = torch.randn(50, 1, generator=seeded()) * torch.randn(1, 8, generator=seeded(1))
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(50, 8)) == 0
    wide = torch.randn(5000, 8, generator=seeded())
    assert effective_rank(wide) == pytest.approx(8, abs=0.05)
    assert effective_rank(3 * wide + 7) == pytest.approx(effective_rank(wide), rel=1e-4)
    # Two directions with singular values 3 : 1, entropy of (3/4, 1/4).
    two = torch.cat([3 * torch.eye(2)[:1], -3 * torch.eye(2)[:1], torch.eye(2)[1:], -torch.eye(2)[1:]])
    assert effective_rank(two) == pytest.approx(4 / 27**0.25, rel=1e-6)


def test_spread_shows_a_collapse():
    assert spread(torch.randn(4000, 16, generator=seeded())) == pytest.approx(1, abs=0.01)
    near = 100 + torch.randn(100, 16, generator=seeded())
    assert spread(near) < 0.02


def test_alignment_and_uniformity_equal_their_formulas():
    x, y = torch.randn(6, 4, generator=seeded()), torch.randn(6, 4, generator=seeded(1))
    u, v = (t / t.norm(dim=1, keepdim=True) for t in (x, y))
    assert alignment(x, y) == pytest.approx(float(sum((u[i] - v[i]).norm() ** 2 for i in range(6)) / 6), rel=1e-5)
    terms = [torch.exp(-2 * (u[i] - u[j]).norm() ** 2) for i in range(6) for j in range(6) if i != j]
    assert uniformity(x) == pytest.approx(float(torch.log(sum(terms) / 30)), rel=1e-5)
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="at least two"):
        uniformity(x[:1])


def test_nearest_neighbours_are_those_by_the_angle():
    queries, references = torch.randn(20, 3, generator=seeded()), torch.randn(30, 3, generator=seeded(1))
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], references[None], dim=2)
    assert torch.equal(nearest_neighbours(queries, references, 4), cosine.argsort(1, descending=True)[:, :4])
    assert torch.equal(nearest_neighbours(9 * queries, references, 4), nearest_neighbours(queries, references, 4))
    with pytest.raises(ConfigError, match="31 nearest neighbours among 30"):
        nearest_neighbours(queries, references, 31)


def test_the_majority_of_neighbours_votes_and_the_nearest_decides_a_tie():
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    references = torch.stack([angles.cos(), angles.sin()], 1)
    query = torch.tensor([[1.0, 0.0]])

    def vote(kinds, neighbours=5):
        predicted = [
            knn_accuracy(query, torch.tensor([k]), references, torch.tensor(kinds), neighbours=neighbours)
            for k in range(3)
        ]
        return predicted.index(1.0)

    assert vote([0, 1, 1, 1, 0]) == 1
    assert vote([0, 1, 1, 2, 2]) == 1
    assert vote([2, 1, 1, 2, 0]) == 2
    assert vote([0, 1, 1, 1, 1], neighbours=1) == 0


@pytest.mark.parametrize(
    "measure",
    [
        effective_rank,
        spread,
        uniformity,
        lambda x: alignment(torch.ones_like(x), x),
        lambda x: nearest_neighbours(x, torch.ones_like(x)),
        lambda x: nearest_neighbours(torch.ones_like(x), x),
        lambda x: knn_accuracy(x, torch.arange(4), torch.ones_like(x), torch.arange(4)),
    ],
)
def test_rows_that_are_no_numbers_are_counted(measure):
    x = torch.randn(4, 3, generator=seeded())
    x[1, 2] = torch.nan
    with pytest.raises(ConfigError, match="1 of 4 rows"):
        measure(x)
