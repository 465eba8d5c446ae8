"""Metrics and divergences against independent implementations, on the same samples in float64."""

from functools import partial

import ot
import pytest
import torch
from geomloss import SamplesLoss
from prdc import compute_prdc
from scipy.spatial.distance import cdist, pdist
from sklearn.neighbors import NearestNeighbors

from onestep_adapters.metrics import manifold_metrics, nearest_distances, nearest_neighbour_accuracy
from onestep_core.fields import (
    energy_distance,
    gaussian,
    mmd,
    sinkhorn_divergence,
    sliced_wasserstein,
)

AGREE = {"rel": 0.0, "abs": 1e-6}


def clouds(n, m, d, seed=0):
    """Two clouds of other means, widths and counts."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draws, dtype=torch.float64)
    y = torch.randn(m, d, generator=draws, dtype=torch.float64)
    return x, 1.3 * y + 0.5


SHAPES = [(60, 60, 2), (50, 80, 3), (40, 64, 16), (64, 32, 1), (2, 3, 5)]


@pytest.mark.parametrize("n, m, d", SHAPES)
def test_energy_distance_is_that_of_geomloss(n, m, d):
    x, y = clouds(n, m, d)
    # geomloss has half of the squared energy distance, of all pairs, and raises distances to at least 1e-4: also that
    # of every point to itself.
    theirs = 2 * SamplesLoss("energy", backend="tensorized")(x, y).item() + 1e-4 / n + 1e-4 / m
    assert energy_distance(x, y, unbiased=False).item() == pytest.approx(theirs, **AGREE)


@pytest.mark.parametrize("n, m, d", SHAPES)
def test_unbiased_energy_distance_is_that_of_scipy(n, m, d):
    x, y = clouds(n, m, d)
    theirs = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    assert energy_distance(x, y).item() == pytest.approx(theirs, **AGREE)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("n, m, d", SHAPES)
def test_mmd_is_that_of_geomloss(n, m, d, bandwidth):
    x, y = clouds(n, m, d)
    # geomloss has half of the squared discrepancy, of all pairs.
    theirs = 2 * SamplesLoss("gaussian", blur=bandwidth, backend="tensorized")(x, y).item()
    ours = mmd(x, y, kernel=partial(gaussian, bandwidth=bandwidth), unbiased=False)
    assert ours.item() == pytest.approx(theirs, **AGREE)


@pytest.mark.parametrize("n, m, d, blur", [(20, 20, 2, 1.0), (15, 24, 3, 0.8), (12, 20, 16, 2.0), (20, 9, 1, 0.5)])
def test_sinkhorn_divergence_is_that_of_geomloss(n, m, d, blur):
    x, y = clouds(n, m, d)
    # The cost is |x - y|^2 / 2 in both; epsilon is blur^2. geomloss lowers its temperature from diameter^2 to blur^2,
    # with one update at each. With a diameter just above blur it makes 1,000 updates, all at blur^2 to 2e-9.
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, diameter=blur * (1 + 1e-9), scaling=1 - 1e-12, backend="tensorized")
    ours = sinkhorn_divergence(x, y, epsilon=blur**2, iterations=300)
    assert ours.item() == pytest.approx(loss(x, y).item(), **AGREE)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("n, m, d", SHAPES)
def test_sliced_wasserstein_is_that_of_pot(n, m, d, power):
    x, y = clouds(n, m, d)
    directions = torch.randn(20, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # POT takes the directions as columns, and leaves them at the length that they have.
    columns = (directions / directions.norm(dim=1, keepdim=True)).T.numpy()
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=columns, p=power)
    assert sliced_wasserstein(x, y, directions=directions, power=power).item() == pytest.approx(theirs, **AGREE)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("n, m, d", [(200, 200, 2), (150, 260, 8), (300, 90, 64), (8, 7, 1)])
def test_precision_recall_density_and_coverage_are_those_of_prdc(n, m, d, k):
    real, generated = clouds(n, m, d)
    # The balls of prdc are open. They differ from closed ones only where a distance is equal to a radius.
    theirs = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    ours = manifold_metrics(real, generated, k=k)
    assert {name: value.item() for name, value in ours._asdict().items()} == pytest.approx(theirs, **AGREE)


def test_closed_balls_hold_the_points_on_their_edge():
    """Where both sets are the same lattice, most distances are ties: the difference that the docstring names."""
    x = torch.arange(10.0, dtype=torch.float64)[:, None]
    # Eight balls of radius 1 and two of radius 2. Closed: three points each. Open: one, and two of the outer ones.
    assert manifold_metrics(x, x, k=2).density.item() == pytest.approx((8 * 3 + 2 * 3) / 20, **AGREE)
    assert compute_prdc(x.numpy(), x.numpy(), nearest_k=2)["density"] == pytest.approx((8 * 1 + 2 * 2) / 20, **AGREE)


@pytest.mark.parametrize("n, d", [(60, 2), (200, 16)])
def test_neighbours_are_those_of_scikit_learn(n, d):
    real, generated = clouds(n, n, d)
    both, label = torch.cat([real, generated]).numpy(), torch.arange(2 * n).numpy() < n
    nearest = NearestNeighbors(n_neighbors=1).fit(both).kneighbors(return_distance=False)[:, 0]
    assert nearest_neighbour_accuracy(real, generated).item() == pytest.approx(
        (label[nearest] == label).mean(), **AGREE
    )
    distance, _ = NearestNeighbors(n_neighbors=1).fit(real.numpy()).kneighbors(generated.numpy())
    assert nearest_distances(generated, real).numpy() == pytest.approx(distance[:, 0], **AGREE)
