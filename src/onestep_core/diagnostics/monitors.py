"""Monitors: numbers that show progress where a loss does not.

The loss of a normalised drift is constant by construction. The loss of a raw drift is smallest when all samples have
collapsed to one point.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields import energy_distance
from onestep_core.precision import without_gradient
from onestep_core.protocols import Drift
from onestep_core.regression import Regression, mse
from onestep_core.shapes import per_sample_mean, per_sample_sum
from onestep_core.typing import Sample, typed


class RealisedDrift(NamedTuple):
    """How an update followed the field: mean cosine, and ratio of lengths (1 is a full step)."""

    cosine: Tensor
    length_ratio: Tensor


class TangentTerms(NamedTuple):
    """Size of the derivative term in a target of average velocities."""

    norm: Tensor
    """Root mean square of the term, ``[batch]``."""
    ratio: Tensor
    """The same over the root mean square of the velocity, ``[batch]``."""
    spike: Tensor
    """Largest norm of the batch over the median of those above zero; 0 if all are zero."""


class TrajectoryTerms(NamedTuple):
    """The two parts of a loss on average velocities, each ``[batch]``; their gradients often oppose each other."""

    flow_matching: Tensor
    consistency: Tensor


def drift_norm(drift: Drift) -> Tensor:
    """Root mean square of the displacement before normalisation, ``[temperature]``: falls as samples settle.

    Example:
        >>> zero = torch.zeros(2, 1)
        >>> drift_norm(Drift(zero, zero, torch.ones(()), torch.tensor([4.0])))
        tensor([2.])
    """
    return without_gradient(drift.force_norms).sqrt()


@typed
def effective_sample_size(log_weights: Float[Tensor, "*groups n m"]) -> Float[Tensor, "*groups n"]:
    """``(sum w)^2 / sum w^2`` of every row: the effective number of targets of a sample, 1 to ``m``.

    Args:
        log_weights: log-kernel or log-affinities, ``[.., n, m]``; shifts of a row do not matter.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0, 0.0, -100.0]]))
        tensor([2.])
    """
    share = without_gradient(log_weights).softmax(-1)
    return 1 / share.square().sum(-1)


@typed
def affinity_saturation(log_weights: Float[Tensor, "*groups n m"], *, threshold: float = 0.99) -> Float[Tensor, ""]:
    """Share of samples whose nearest target takes more than ``threshold`` of their affinity: at 1 the field cannot
    change any more.

    Raises:
        ConfigError: if ``threshold`` is not between 0 and 1.

    Example:
        >>> affinity_saturation(torch.tensor([[0.0, -100.0], [0.0, 0.0]]))
        tensor(0.5000)
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold = {threshold}: expected a share between 0 and 1")
    largest = without_gradient(log_weights).softmax(-1).amax(-1)
    return (largest > threshold).to(largest.dtype).mean()


@typed
def spread(samples: Float[Tensor, "n *shape"], data: Float[Tensor, "m *shape"]) -> Float[Tensor, ""]:
    """Total standard deviation of the samples over that of the data: 1 is right, 0 has collapsed.

    Example:
        >>> data = torch.tensor([[0.0], [2.0]])
        >>> spread(data / 2, data)
        tensor(0.5000)
    """

    def total(points: Tensor) -> Tensor:
        points = without_gradient(points).flatten(1)
        return (points - points.mean(0)).square().sum(1).mean().sqrt()

    return total(samples) / total(data)


@typed
def realised_drift(before: Sample, after: Sample, field: Sample) -> RealisedDrift:
    """``f_{i+1}(noise) - f_i(noise)`` compared with the field: did the update follow the drift?

    Args:
        before: samples before the update, ``[batch, *shape]``, in the units of the field.
        after: samples of the same noise after it.
        field: the displacement that the update should have made.

    Example:
        >>> x = torch.ones(1, 2)
        >>> realised_drift(0 * x, 0.5 * x, x)
        RealisedDrift(cosine=tensor(1.0000), length_ratio=tensor(0.5000))
    """
    moved, asked = without_gradient(after) - without_gradient(before), without_gradient(field)
    lengths = [per_sample_sum(x.square()).sqrt() for x in (moved, asked)]
    tiny = torch.finfo(moved.dtype).tiny
    cosine = per_sample_sum(moved * asked) / (lengths[0] * lengths[1]).clamp(min=tiny)
    return RealisedDrift(cosine.mean(), lengths[0].mean() / lengths[1].mean().clamp(min=tiny))


@typed
def held_out_energy(samples: Float[Tensor, "n *shape"], held_out: Float[Tensor, "m *shape"]) -> Float[Tensor, ""]:
    """The unbiased squared energy distance of samples to data that took no part in training: 0 if the distributions are
    equal.

    The one number here that vanishes only for equal distributions. For those it scatters around zero and is negative
    half of the time.

    Args:
        samples: ``[n, *shape]``, at least two.
        held_out: ``[m, *shape]``, at least two; fresh draws, or a validation split.

    Raises:
        ConfigError: with fewer than two points.

    Source: Szekely and Rizzo, Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018.

    Example:
        >>> held_out_energy(torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
        tensor(2.)
    """
    return energy_distance(without_gradient(samples).flatten(1), without_gradient(held_out).flatten(1))


@typed
def guidance_deficit(
    log_ratio: Float[Tensor, "n"], *, alpha: float | Float[Tensor, ""] | Float[Tensor, "n"]
) -> Float[Tensor, ""]:
    """``E_null max(0, (alpha - 1) - alpha p_c / p_null)``: the negative mass of the distribution that guidance aims at.

    A guided drift is balanced where ``q = alpha p_c - (alpha - 1) p_null``. That is a
    distribution only if this number, the mass of its negative part, is zero. Where ``p_c < (1 - 1 / alpha) p_null`` it
    is
    negative: then no generator balances the field, samples leave those places, and the result depends on the kernel.

    Args:
        log_ratio: ``log p_c - log p_null`` at unconditional samples, ``[n]``; for a classifier the log posterior of the
            class less its log share, for kernel densities the difference of two ``logsumexp - log count``.
        alpha: guidance scale, at least 1, a number or ``[n]``.

    Source: Deng et al., Generative Modeling via Drifting, section on guidance, https://arxiv.org/abs/2602.04770.

    Example:
        Half of the unconditional samples belong to the class, half do not:

        >>> guidance_deficit(torch.tensor([0.6931, -torch.inf]), alpha=2.0)
        tensor(0.5000)
    """
    return ((alpha - 1) - alpha * without_gradient(log_ratio).exp()).clamp(min=0).mean()


@typed
def mode_masses(labels: Int[Tensor, "n"], modes: int) -> Float[Tensor, "mode"]:
    """Share of samples in each mode.

    Args:
        labels: mode of each sample, ``[n]``: a class, or the nearest centre.
        modes: number of modes.

    Raises:
        ConfigError: without samples or modes, or on a label of no mode.

    Example:
        >>> mode_masses(torch.tensor([0, 0, 1, 0]), 3)
        tensor([0.7500, 0.2500, 0.0000])
    """
    if modes < 1 or len(labels) < 1:
        raise ConfigError(f"{len(labels)} labels in {modes} modes: expected at least one of each")
    if int(labels.min()) < 0:
        raise ConfigError(f"a label of {int(labels.min())} in {modes} modes: expected labels from 0 to {modes - 1}")
    counts = torch.bincount(labels, minlength=modes)
    if len(counts) > modes:
        raise ConfigError(f"a label of {len(counts) - 1} in {modes} modes: expected labels from 0 to {modes - 1}")
    return counts.to(torch.get_default_dtype()) / len(labels)


@typed
def mode_mass_error(labels: Int[Tensor, "n"], masses: Float[Tensor, "mode"]) -> Float[Tensor, ""]:
    """Total variation between the shares of modes and what they should be, 0 to 1.

    Example:
        >>> mode_mass_error(torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5]))
        tensor(0.2500)
    """
    return (mode_masses(labels, len(masses)).to(masses) - masses).abs().sum() / 2


@typed
def trajectory_terms(pair: Regression, v: Sample) -> TrajectoryTerms:
    """``mean (a - v)^2`` and ``mean 2 (v - target) a``: the two parts of a squared loss on average velocities.

    Their sum is ``mean (a - target)^2`` up to a term without gradient. The first alone is flow matching of whole
    trajectories, the second makes the average agree with itself; it vanishes where the target is ``v``.

    Args:
        pair: the regression of MeanFlow, alpha-Flow or a related method, ``[batch, *shape]``.
        v: the velocity that the target was made with, ``[batch, *shape]``, guided or not.

    Returns:
        Both terms with their gradient, ``[batch]``.

    Source: Zhang et al., AlphaFlow, section on the decomposition of MeanFlow's objective,
    https://arxiv.org/abs/2510.20771.

    Example:
        >>> one = torch.ones(1, 2)
        >>> trajectory_terms(Regression(2 * one, 3 * one), one)
        TrajectoryTerms(flow_matching=tensor([1.]), consistency=tensor([-8.]))
    """
    v = without_gradient(v)
    return TrajectoryTerms(mse(pair.prediction, v), per_sample_mean(2 * (v - pair.target) * pair.prediction))


@typed
def tangent_terms(pair: Regression, v: Sample) -> TangentTerms:
    """Norm, ratio and spike of ``target - v``, which is ``(s - t) du/dt`` for MeanFlow.

    Large jumps of the loss late in training come from this term, mostly at large ``t``. A ratio far above one says that
    the target is made of the network's own derivative; a spike above about ten, that one sample decides the gradient
    (an adaptive weight limits it).

    Args:
        pair: the regression of MeanFlow or improved MeanFlow, ``[batch, *shape]``.
        v: the velocity that the target was made with, ``[batch, *shape]``, guided or not.

    Source: https://github.com/Lyy-iiis/imeanflow/issues/7 (the spikes).

    Example:
        >>> one = torch.ones(2, 2)
        >>> tangent_terms(Regression(one, torch.tensor([[1.0, 1.0], [3.0, 3.0]])), one)
        TangentTerms(norm=tensor([0., 2.]), ratio=tensor([0., 2.]), spike=tensor(1.))
    """
    velocity = without_gradient(v)
    norm = per_sample_mean((pair.target - velocity).square()).sqrt()
    size = per_sample_mean(velocity.square()).sqrt()
    median = torch.where(norm > 0, norm, torch.nan).nanmedian()
    return TangentTerms(norm, norm / size, (norm.max() / median).nan_to_num(0.0))
