"""Nearest-neighbour comparisons of two sets: what is missing, what is invented, what is copied.

Every function takes feature matrices ``[n, d]`` (flat pixels, or an encoder's features), measures exact
Euclidean distances in float64 as differences, never as a product of norms, so that copies are at distance
exactly zero and ties are ties, and holds ``block_size`` rows of a distance matrix at a time.

Reading them together: *precision* and *density* ask whether samples lie where real data is, *recall* and
*coverage* whether real data lies where samples are. Density and coverage draw their balls around real
points only, so that a few outlying samples cannot inflate them. None of them sees memorisation, which
:func:`nearest_distances` does; *1-NN accuracy* sees every difference between the two distributions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onestep_adapters.metrics.estimates import require_finite_rows
from onestep_core.errors import ConfigError
from onestep_core.typing import typed
from onestep_core.validators import require_count

_BLOCK = 1024

Real = Float[Tensor, "n d"]
Generated = Float[Tensor, "m d"]
Scalar = Float[Tensor, ""]


class Manifold(NamedTuple):
    """Precision, recall, density and coverage: four float64 scalars."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


@typed
def manifold_metrics(real: Real, generated: Generated, *, k: int, block_size: int = _BLOCK) -> Manifold:
    """Precision, recall, density and coverage from one pass over the distances.

    With closed balls ``B(x) = {z : |z - x| <= distance from x to its k-th neighbour in its own set}``::

        precision  share of samples in the union of the real balls
        recall     share of real points in the union of the samples' balls
        density    (1 / k m) sum over samples of the number of real balls that hold it      (may exceed 1)
        coverage   share of real balls that hold at least one sample

    For two sets of one distribution, ``density`` is 1 in expectation and ``coverage`` is
    ``1 - prod_{i=1..k} (n - i) / (n + m - i)``, about ``1 - 2^-k`` for equal counts.

    Args:
        real: ``[n, d]``, more than ``k`` points.
        generated: ``[m, d]``, more than ``k`` points.
        k: which neighbour sets the radius; 5 for density and coverage and 3 for precision and recall in the
            papers. The released code of density and coverage has open balls, which loses exact copies.
        block_size: rows of a distance matrix held at once.

    Raises:
        ConfigError: if a set has not more than ``k`` points, if ``k`` is below one, or if rows are not finite.

    Source: Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991; Naeem et al. 2020,
    https://arxiv.org/abs/2002.09797.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> near = manifold_metrics(x, x + 0.25, k=2)
        >>> near.precision.item(), near.coverage.item()
        (1.0, 1.0)
        >>> manifold_metrics(x, x + 100, k=2).density.item()
        0.0
    """
    if k < 1 or min(len(real), len(generated)) <= k:
        raise ConfigError(
            f"the {k}-th neighbour needs k >= 1 and more than k points in each set; got {len(real)} real and "
            f"{len(generated)} generated: lower k or draw more samples"
        )
    require_finite_rows(real=real, generated=generated)
    real, generated = real.detach().double(), generated.detach().double()
    real_radius = _radii(real, k, block_size)
    generated_radius = _radii(generated, k, block_size)
    inside = real.new_zeros(len(generated))
    recalled, covered = [], []
    for rows, distance in _blocks(real, generated, block_size):
        held = distance <= real_radius[rows, None]
        inside += held.sum(0)
        covered.append(held.any(1))
        recalled.append((distance <= generated_radius).any(1))
    return Manifold(
        precision=(inside > 0).double().mean(),
        recall=torch.cat(recalled).double().mean(),
        density=inside.mean() / k,
        coverage=torch.cat(covered).double().mean(),
    )


@typed
def precision(real: Real, generated: Generated, *, k: int = 3) -> Scalar:
    """Share of samples inside the real manifold: see :func:`manifold_metrics`.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> precision(x, torch.cat([x, x + 100])).item()
        0.5
    """
    return manifold_metrics(real, generated, k=k).precision


@typed
def recall(real: Real, generated: Generated, *, k: int = 3) -> Scalar:
    """Share of real points inside the manifold of the samples: see :func:`manifold_metrics`.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> recall(torch.cat([x, x + 100]), x).item()
        0.5
    """
    return manifold_metrics(real, generated, k=k).recall


@typed
def density(real: Real, generated: Generated, *, k: int = 5) -> Scalar:
    """Mean number of real balls around a sample over ``k``; may exceed one: see :func:`manifold_metrics`.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> density(x, x + 100).item()
        0.0
    """
    return manifold_metrics(real, generated, k=k).density


@typed
def coverage(real: Real, generated: Generated, *, k: int = 5) -> Scalar:
    """Share of real balls that hold a sample: see :func:`manifold_metrics`.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> coverage(torch.cat([x, x + 100]), x).item()
        0.5
    """
    return manifold_metrics(real, generated, k=k).coverage


@typed
def nearest_neighbour_accuracy(real: Real, generated: Float[Tensor, "n d"], *, block_size: int = _BLOCK) -> Scalar:
    """Leave-one-out 1-NN two-sample accuracy: how well a neighbour tells real from generated.

    Each of the ``2 n`` points is labelled by its nearest other point; the result is the share labelled
    right. 1 for separated sets; ``(n - 1) / (2 n - 1)``, just under 0.5, for two sets of one distribution; towards 0
    where every sample is a near copy of a point of ``real``. Where several neighbours are equally near, the
    share of them with the right label counts: the expectation of a random choice.

    Args:
        real: ``[n, d]``, at least two points.
        generated: ``[n, d]``: as many, since the chance level moves with the ratio of the counts.
        block_size: rows of a distance matrix held at once.

    Returns:
        A float64 scalar in [0, 1], with a standard error of about ``0.5 (2 n)^{-1/2}`` for one distribution.

    Raises:
        ConfigError: for fewer than two points in each set.

    Source: Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545; Xu et al. 2018,
    https://arxiv.org/abs/1806.07755.

    Example:
        >>> x = torch.arange(10.0)[:, None]
        >>> nearest_neighbour_accuracy(x, x + 100).item()
        1.0
        >>> nearest_neighbour_accuracy(x, x + 0.25).item()
        0.0
    """
    n = len(real)
    if n < 2:
        raise ConfigError(f"leaving one out of {n} points leaves no neighbour: draw at least two of each kind")
    require_finite_rows(real=real, generated=generated)
    both = torch.cat([real, generated]).detach().double()
    right = both.new_zeros(())
    for rows, distance in _blocks(both, both, block_size):
        index = torch.arange(rows.start, rows.stop, device=both.device)
        distance[torch.arange(len(index), device=both.device), index] = torch.inf
        nearest = distance == distance.amin(1, keepdim=True)
        share_real = nearest[:, :n].sum(1) / nearest.sum(1)
        right += torch.where(index < n, share_real, 1 - share_real).sum()
    return right / (2 * n)


@typed
def nearest_distances(
    samples: Float[Tensor, "m d"],
    training: Real,
    *,
    own: Int[Tensor, "m"] | None = None,
    block_size: int = _BLOCK,
) -> Float[Tensor, "m"]:
    """Distance from each sample to the nearest training point, ``[m]``, float64: small means copied.

    Args:
        samples: ``[m, d]``.
        training: ``[n, d]``.
        own: where the samples are training points themselves, the row of each in ``training``, which is left
            out; ``[m]``.
        block_size: rows of a distance matrix held at once.

    Raises:
        ConfigError: where no training point is left to be near, or rows are not finite.

    Example:
        >>> nearest_distances(torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [1.0]]))
        tensor([0., 3.], dtype=torch.float64)
    """
    if len(training) < (1 if own is None else 2):
        raise ConfigError(f"no training point is left to be near: got {len(training)}, pass the training split")
    require_finite_rows(samples=samples, training=training)
    nearest = []
    for rows, distance in _blocks(samples.detach().double(), training.detach().double(), block_size):
        if own is not None:
            distance[torch.arange(len(distance), device=distance.device), own[rows]] = torch.inf
        nearest.append(distance.amin(1))
    return torch.cat(nearest)


@typed
def nearest_training_distance(
    samples: Float[Tensor, "m d"],
    training: Real,
    *,
    quantiles: tuple[float, ...] = (0.05,),
    own: Int[Tensor, "m"] | None = None,
) -> Float[Tensor, "quantile"]:
    """Quantiles of :func:`nearest_distances`: a low one far below held-out data's own tells of copies.

    Raises:
        ConfigError: for a quantile outside [0, 1], or without samples.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> nearest_training_distance(x, x[:1], quantiles=(0.0, 0.5))
        tensor([0., 2.], dtype=torch.float64)
    """
    if len(samples) == 0 or not all(0 <= q <= 1 for q in quantiles):
        raise ConfigError(f"expected samples and quantiles in [0, 1]; got {len(samples)} samples and {quantiles}")
    nearest = nearest_distances(samples, training, own=own)
    return torch.quantile(nearest, nearest.new_tensor(quantiles))


def _blocks(x: Tensor, y: Tensor, block_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the distance matrix, exact: a copy is at distance zero."""
    require_count("block_size", block_size, least=1)
    for start in range(0, len(x), block_size):
        rows = slice(start, min(start + block_size, len(x)))
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int, block_size: int) -> Tensor:
    """Distance of each point to its ``k``-th neighbour in its own set; the point itself is not one."""
    radii = []
    for rows, distance in _blocks(x, x, block_size):
        index = torch.arange(rows.start, rows.stop, device=x.device)
        distance[torch.arange(len(index), device=x.device), index] = torch.inf
        radii.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radii)
