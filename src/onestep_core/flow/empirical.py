"""Empirical posteriors: the expected data given a noisy state, for a finite data set, in closed form.

For data drawn from a finite set ``x_1 .. x_m`` the posterior of the data given a state ``z = alpha x + sigma noise`` is

    w_j = softmax_j(-|z - alpha x_j|^2 / (2 sigma^2)),

and its mean and velocity are weighted sums. Regressing onto them instead of onto the one pair that made ``z`` does not
change the expected gradient, since every objective here is linear in the velocity of the pair, and removes most of its
variance: a *stable target*. With a set that is a sample of a larger distribution, such as a fresh batch, the weights
have a bias of order ``1 / m``.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.predictions import velocity_from_data
from onestep_core.precision import no_autocast, without_gradient
from onestep_core.protocols import Path
from onestep_core.typing import Sample, Time, typed


@typed
def empirical_denoiser(
    z: Sample,
    references: Float[Tensor, "reference *shape"],
    t: Time,
    *,
    path: Path,
    allowed: Bool[Tensor, "batch reference"] | None = None,
) -> Sample:
    """``sum_j w_j x_j``: the expected data given ``z``, for data drawn from ``references``.

    Args:
        z: states, ``[batch, *shape]``.
        references: data, ``[reference, *shape]``, at least one; those that made ``z`` belong among them.
        t: times, ``[batch]``, where ``sigma`` is positive (at ``sigma = 0`` the nearest reference is taken).
        path: gives ``alpha`` and ``sigma``.
        allowed: which references a state may come from, ``[batch, reference]``: those of its class. All by default;
            every state needs one.

    Returns:
        Expected data without gradient, ``[batch, *shape]``.

    Raises:
        ConfigError: without references.
        ArgumentError: if shapes disagree.

    Source: Xu et al., Stable Target Field for Reduced Variance Score Estimation, eq. 6,
    https://arxiv.org/abs/2302.00670.

    Example:
        >>> from onestep_core.flow import Linear
        >>> references = torch.tensor([[-1.0], [1.0]])
        >>> empirical_denoiser(torch.tensor([[0.0], [0.9]]), references, torch.tensor([0.5, 0.1]), path=Linear())
        tensor([[0.],
                [1.]])
    """
    if references.shape[0] < 1:
        raise ConfigError("no references: expected at least one")
    state, data = without_gradient(z).flatten(1), without_gradient(references).flatten(1)
    alpha, sigma = (c.unsqueeze(1) for c in path.coefficients(without_gradient(t)))
    with no_autocast(state):
        # |z|^2 is the same for every reference and cancels in the softmax.
        distance = alpha.square() * data.square().sum(1) - 2 * alpha * (state @ data.T)
        variance = sigma.square().clamp(min=torch.finfo(state.dtype).tiny ** 0.5)
        logits = distance / (-2 * variance)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        mean = logits.softmax(1) @ data
    return mean.reshape(z.shape)


@typed
def empirical_velocity(
    z: Sample,
    references: Float[Tensor, "reference *shape"],
    t: Time,
    *,
    path: Path,
    allowed: Bool[Tensor, "batch reference"] | None = None,
) -> Sample:
    """The marginal velocity ``E[v | z]`` for data drawn from ``references``. Arguments as :func:`empirical_denoiser`.

    Example:
        >>> from onestep_core.flow import Linear
        >>> empirical_velocity(torch.tensor([[0.0]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[0.]])
    """
    data = empirical_denoiser(z, references, t, path=path, allowed=allowed)
    return velocity_from_data(without_gradient(z), data, without_gradient(t), path=path)
