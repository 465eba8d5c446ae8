"""Optimal transport within a batch: a coupling of data and noise with straighter trajectories."""

import torch
from torch import Tensor

from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.validators import whole_numbers

try:
    from scipy.optimize import linear_sum_assignment
except ImportError as error:
    raise MissingExtraError(
        "optimal couplings need scipy, which is not installed: pip install 'onestep[training]'"
    ) from error


def optimal_noise(data: Tensor, noise: Tensor, labels: Tensor | None = None, *, size: int = 128) -> Tensor:
    """Reorder the noise so that the total squared distance between data and noise is smallest.

        argmin over permutations p of  sum_i |data_i - noise_p(i)|^2

    The straight lines of independent pairs cross each other, and the mean of their velocities is a curved flow. The
    lines of these pairs cross less, so the velocity changes less along a trajectory. For large batches the marginal
    distributions of data and noise do not change. With classes, noise is only exchanged within a class, so noise and
    class stay independent.

    Args:
        data: samples, ``[batch, *shape]``.
        noise: of the same shape as ``data``.
        labels: classes, ``[batch]``, or ``None``.
        size: largest number of consecutive samples that exchange their noise. The time of one assignment grows with
            the cube of ``size``.

    Returns:
        A permutation of ``noise`` along the batch, ``[batch, *shape]``.

    Raises:
        ConfigError: if the two shapes differ, ``size`` is not positive, there is not one integer label for each
            sample, or data or noise hold NaN or infinity.
        MissingExtraError: when this module is imported without scipy.

    Source: Pooladian et al., Multisample Flow Matching, https://arxiv.org/abs/2304.14772; Tong et al., Improving and
    Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, https://arxiv.org/abs/2302.00482.

    Example:
        >>> optimal_noise(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.9], [0.2]])).flatten()
        tensor([0.2000, 0.9000])
    """
    if data.shape != noise.shape:
        raise ConfigError(f"data {tuple(data.shape)} and noise {tuple(noise.shape)}: expected one shape for both")
    if size < 1:
        raise ConfigError(f"size = {size}: expected at least one sample")
    if labels is not None and (labels.shape != data.shape[:1] or not whole_numbers(labels)):
        raise ConfigError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} for {len(data)} samples: expected one integer "
            "for each sample, [batch]; labels.argmax(1) turns one-hot labels into classes, labels.long() numbers into "
            "integers"
        )
    for name, samples in (("data", data), ("noise", noise)):
        if not samples.isfinite().all():
            raise ConfigError(f"{name} hold NaN or infinity: distances cannot be compared; find where they come from")
    ordered = noise.clone()
    every = torch.arange(len(data), device=data.device)
    groups = [every] if labels is None else [(labels == k).nonzero()[:, 0] for k in labels.unique()]
    for rows in (part for group in groups for part in group.split(size)):
        cost = torch.cdist(data[rows].detach().flatten(1).double(), noise[rows].detach().flatten(1).double()).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        ordered[rows] = noise[rows[torch.from_numpy(columns).to(rows.device)]]
    return ordered
