"""Couplings of data and noise that make a flow straighter: optimal transport within a batch."""

import torch
from torch import Tensor

from onestep_core.errors import ConfigError, MissingExtraError

try:
    from scipy.optimize import linear_sum_assignment
except ImportError as error:
    raise MissingExtraError(
        "optimal couplings need scipy, which is not installed: pip install 'onestep[training]'"
    ) from error


def optimal_noise(data: Tensor, noise: Tensor, labels: Tensor | None = None, *, size: int = 128) -> Tensor:
    """The noise in the order that brings data and noise nearest to one another, in squared distance.

        argmin over permutations p of  sum_i |data_i - noise_p(i)|^2

    Pairs of an independent batch cross one another and their velocities average to a curved flow. These pairs do not,
    up to what a batch can know, and the flow's velocity changes less on the way. Given enough samples the marginals
    stay those of data and noise. With classes the order changes within a class only, so that noise and class stay
    independent.

    Args:
        data: ``[batch, *shape]``.
        noise: of the same shape.
        labels: classes, ``[batch]``, or ``None``.
        size: at most so many samples, next to one another in the batch, share their noise: the time grows with the
            cube of it.

    Returns:
        A permutation of ``noise`` along the batch, ``[batch, *shape]``.

    Raises:
        ConfigError: if the two shapes differ, or ``size`` is not positive.
        MissingExtraError: at the import of this module, without scipy.

    Source: Pooladian et al., Multisample Flow Matching, https://arxiv.org/abs/2304.14772; Tong et al., Improving and
    Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, https://arxiv.org/abs/2302.00482.

    Example:
        >>> optimal_noise(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.9], [0.2]])).flatten()
        tensor([0.2000, 0.9000])
    """
    if data.shape != noise.shape:
        raise ConfigError(f"data {tuple(data.shape)} and noise {tuple(noise.shape)}: expected one shape")
    if size < 1:
        raise ConfigError(f"size = {size}: expected at least one sample")
    ordered = noise.clone()
    every = torch.arange(len(data), device=data.device)
    groups = [every] if labels is None else [(labels == k).nonzero()[:, 0] for k in labels.unique()]
    for rows in (part for group in groups for part in group.split(size)):
        cost = torch.cdist(data[rows].flatten(1).double(), noise[rows].flatten(1).double()).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        ordered[rows] = noise[rows[torch.from_numpy(columns).to(rows.device)]]
    return ordered
