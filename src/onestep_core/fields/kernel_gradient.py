"""Gradients of kernels as displacements: of log-densities, of witness functions, of the energy.

In the other fields attraction points along ``y - x`` for every kernel. Here the direction is the kernel's gradient:

    kernel gradient   V = grad log sum_p k(x, y_p) - grad log sum_n k(x, y_n)      two kernel density estimates
    MMD               V = grad [mean_p k(x, y_p) - mean_n k(x, y_n)]               the witness of the discrepancy
    energy            the same with  k = -|x - y|                                  no length to choose

The first is a difference of scores, the second and third descend a squared distance between distributions, which is
zero only for equal ones if the kernel is characteristic. For the Gaussian kernel the first is the mean-shift field
divided by ``bandwidth^2``. With ``keys`` the gradient passes through the features.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.fields.affinity.streamed_distances import block_rows
from onestep_core.fields.attraction_repulsion import evaluated
from onestep_core.fields.clouds import Clouds, stack
from onestep_core.fields.euclidean import distances, subtracted_pairs
from onestep_core.precision import without_gradient
from onestep_core.protocols import Drift, Kernel
from onestep_core.typing import typed


@typed
def kernel_gradient_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    kernel: Kernel,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    block_size: int | None = None,
) -> Drift:
    """``grad log sum_p w_p k(x_i, y_p) - grad log sum_n w_n k(x_i, y_n)``, a difference of scores.

    Arguments as :func:`onestep_core.fields.mean_shift_field`; the kernel is differentiated, so one of your own needs a
    gradient that is finite where points coincide. In units of an inverse length.

    Returns:
        A :class:`Drift`, scale 1.

    Raises:
        ConfigError: on an empty set, a lone sample with self pairs masked, weights without their set, or an empty
            block.
        ArgumentError: if channels or leading axes differ.

    Source: Esteban-Casadevall et al., Kernel-Gradient Drifting Models, https://arxiv.org/abs/2605.10727; Cao et al.,
    Gradient Flow Drifting, https://arxiv.org/abs/2603.10592.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import gaussian
        >>> kernel = partial(gaussian, bandwidth=0.5)
        >>> kernel_gradient_field(torch.tensor([[0.0], [2.0]]), torch.ones(3, 1), kernel=kernel).field
        tensor([[-4.],
                [ 4.]])
    """
    given = Clouds(
        samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys
    )

    def log_density(log_k: Tensor, weights: Tensor) -> Tensor:
        weighted = log_k + weights.log()
        reached = (weighted > -torch.inf).any(-1, keepdim=True)
        return torch.where(reached, weighted, 0.0).logsumexp(-1)

    return _difference(given, kernel, log_density, block_size)


@typed
def mmd_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    kernel: Kernel,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    block_size: int | None = None,
) -> Drift:
    """``grad [mean_p k(x_i, y_p) - mean_n k(x_i, y_n)]``, means weighted: the steepest descent of ``MMD^2 / 2``.

    Arguments and errors as :func:`kernel_gradient_field`. ``negatives=None`` is the gradient of the unbiased estimator,
    the samples themselves as ``negatives`` that of the biased one (for kernels with no slope at zero the same up to the
    count of negatives). It vanishes far from all points: samples there get no drift.

    Source: Arbel et al., Maximum Mean Discrepancy Gradient Flow, https://arxiv.org/abs/1906.04370; Gretton et al., On
    the Wasserstein Gradient Flow Interpretation of Drifting Models, https://arxiv.org/abs/2605.05118.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import gaussian
        >>> x, y = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0]])
        >>> mmd_field(x, y, kernel=partial(gaussian, bandwidth=1.0)).field[0].round(decimals=4)
        tensor([0.6065])
    """
    given = Clouds(
        samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys
    )

    def witness(log_k: Tensor, weights: Tensor) -> Tensor:
        return _mean(log_k.exp(), weights)

    return _difference(given, kernel, witness, block_size)


@typed
def energy_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    block_size: int | None = None,
) -> Drift:
    """``grad [mean_n |x_i - y_n| - mean_p |x_i - y_p|]``, means weighted: the steepest descent of the energy distance.

    Every pair attracts with unit force at any distance, so there is no temperature, and every sample is reached; two
    points that coincide have no force. Arguments and errors as :func:`mmd_field`, without a kernel.

    Source: Szekely and Rizzo, Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018; Hertrich et al.,
    Generative Sliced MMD Flows with Riesz Kernels, https://arxiv.org/abs/2305.11463.

    Example:
        >>> energy_field(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0]])).field
        tensor([[0.],
                [0.]])
        >>> energy_field(torch.tensor([[0.0]]), torch.tensor([[5.0]]), torch.tensor([[-1.0]])).field
        tensor([[2.]])
    """
    given = Clouds(
        samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys
    )

    def closeness(apart: Tensor, weights: Tensor) -> Tensor:
        return -_mean(apart, weights)

    return _difference(given, distances, closeness, block_size)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted, over the last axis; 0 where there is no weight."""
    total = weights.sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, 1.0)


def _itself(points: Tensor) -> Tensor:
    """Points as their own keys, about no centre: differences of near-duplicates keep every digit."""
    return points


def _difference(
    given: Clouds,
    kernel: Kernel,
    value: Callable[[Tensor, Tensor], Tensor],
    block_size: int | None,
) -> Drift:
    """The gradient of ``value(kernel, weights)`` of the positives minus that of the negatives, row by row."""
    samples, keys = given.samples, given.keys
    sets = stack(given._replace(keys=keys or _itself))
    x = without_gradient(samples).to(sets.samples.dtype)

    def slope(part: slice, *, themselves: bool) -> Tensor:
        targets = sets.target_keys[..., part, :]
        n, m = x.shape[-2], targets.shape[-2]
        mass = targets.new_ones(targets.shape[:-1]) if sets.weights is None else sets.weights[..., part]
        index = torch.arange(max(n, m), device=x.device)

        def total(block: Tensor, start: int) -> Tensor:
            others = index[start : start + block.shape[-2]].unsqueeze(-1) != index[:m]
            weights = mass.unsqueeze(-2) * others if themselves else mass.unsqueeze(-2)
            return value(kernel(block if keys is None else keys(block), targets), weights).sum()

        # As many as keep every digit.
        pairs = subtracted_pairs(targets) if x.dtype == torch.float64 else None
        size = block_rows(x[..., 0, 0].numel(), n, m, block_size, most=pairs)
        starts = range(0, n, size)
        parts = [torch.func.grad(total)(x[..., start : start + size, :], start) for start in starts]
        return torch.cat(parts, -2) if len(parts) > 1 else parts[0]

    towards = slope(sets.positive, themselves=False)
    return evaluated(samples, without_gradient(towards - slope(sets.negative, themselves=sets.repel_one_another)))
