"""Numbers that say whether features are worth something: collapse, alignment, uniformity, nearest neighbours.

A contrastive loss says little about features: MoCo's starts flat and can rise while features improve. Two numbers show
a collapse, where all images get nearly the same features:

    effective rank    exp(entropy of s / sum s), s the singular values of the centred features; 1 to the width
    spread            sqrt(mean square distance of unit vectors from their mean); 0 collapsed, 1 for random directions

Two describe views on the unit sphere (Wang and Isola): views of one image should be near, images spread evenly.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from onestep_adapters.metrics.estimates import require_finite_rows
from onestep_core.errors import ConfigError
from onestep_core.typing import typed

Rows = Float[Tensor, "n channel"]


@typed
def effective_rank(features: Rows) -> float:
    """``exp(-sum p log p)`` with ``p = s / sum s``, ``s`` the singular values of the centred features.

    Between 1 (all on a line) and ``min(n - 1, channel)``; 0 if all features are equal.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.

    Example:
        >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])), 3)
        3.0
    """
    _require_rows(features)
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    if not values.sum() > 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


@typed
def spread(features: Rows) -> float:
    """``sqrt(mean |u - mean u|^2)`` of the features at unit length: 0 collapsed, 1 if directions cancel.

    Chen and He plot the same as the mean standard deviation of a channel, which is about this over ``sqrt(channel)``
    (Exploring Simple Siamese Representation Learning, figure 2, https://arxiv.org/abs/2011.10566).

    Example:
        >>> spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])), spread(torch.ones(4, 2))
        (1.0, 0.0)
    """
    _require_rows(features)
    unit = normalize(features, dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())


@typed
def alignment(first: Rows, second: Rows) -> float:
    """``mean |u_i - v_i|^2`` of two views at unit length, 0 to 4; smaller is better aligned.

    Source: Wang and Isola, Understanding Contrastive Representation Learning, section 4,
    https://arxiv.org/abs/2005.10242.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        2.0
    """
    _require_rows(first)
    require_finite_rows(second=second)
    return float((normalize(first, dim=1) - normalize(second, dim=1)).square().sum(1).mean())


@typed
def uniformity(features: Rows) -> float:
    """``log mean_{i != j} exp(-2 |u_i - u_j|^2)`` of features at unit length, -8 to 0; smaller is more even.

    Source: as :func:`alignment`.

    Raises:
        ConfigError: for fewer than two rows.

    Example:
        >>> round(uniformity(torch.eye(2)), 6)
        -4.0
    """
    if len(features) < 2:
        raise ConfigError(f"uniformity of {len(features)} features: expected at least two")
    require_finite_rows(features=features)
    unit = normalize(features.double(), dim=1)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    off = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return float((-2 * squared[off]).logsumexp(0) - torch.log(off.sum().double()))


@typed
def nearest_neighbours(queries: Float[Tensor, "m channel"], references: Rows, count: int = 1) -> Int[Tensor, "m count"]:
    """The indices of the nearest references of every query by the angle, the nearest first.

    Raises:
        ConfigError: if there are fewer references than neighbours wanted.

    Example:
        >>> nearest_neighbours(torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])).tolist()
        [[1]]
    """
    if not 1 <= count <= len(references):
        raise ConfigError(f"{count} nearest neighbours among {len(references)} references: expected 1 to that")
    require_finite_rows(queries=queries, references=references)
    unit = normalize(references, dim=1)
    return torch.cat([(normalize(rows, dim=1) @ unit.T).topk(count).indices for rows in queries.split(1024)])


@typed
def knn_accuracy(
    queries: Float[Tensor, "m channel"],
    labels: Int[Tensor, "m"],
    references: Rows,
    reference_labels: Int[Tensor, "n"],
    *,
    neighbours: int = 5,
) -> float:
    """Share of queries whose class is the most frequent among their nearest references by the angle.

    Of classes that are equally frequent, that of the nearest neighbour among them wins.

    Example:
        >>> x, y = torch.eye(2), torch.arange(2)
        >>> knn_accuracy(x, y, x, y, neighbours=1)
        1.0
    """
    places = nearest_neighbours(queries, references, min(neighbours, len(references)))
    found = reference_labels[places]
    classes = int(max(reference_labels.max(), labels.max())) + 1
    # A nearer neighbour counts a little more, which only decides between classes that are equally frequent.
    weights = 1 + 2.0 ** -torch.arange(2, found.shape[1] + 2, device=found.device) / found.shape[1]
    votes = torch.zeros(len(found), classes, device=found.device)
    votes.scatter_add_(1, found, weights.expand(len(found), -1).to(votes))
    return float((votes.argmax(1) == labels).float().mean())


def _require_rows(features: Tensor) -> None:
    if len(features) == 0:
        raise ConfigError("no row of features: expected at least one")
    require_finite_rows(features=features)
