"""f-divergences other than the reverse KL: the factor by which each multiplies a sample's score gap.

The gradient of ``D_f(data | samples)`` is the reverse KL's, with every sample's score gap multiplied by
``h(r) = r^2 f''(r)``, where ``r`` is the density of data over that of samples. The ratio comes from a discriminator
(:func:`density_ratio`); :func:`f_divergence_scale` turns it into the ``scale`` of
:func:`~onestep_core.fields.score_gap`. The seven functions at the end are ``h`` of published divergences.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import without_gradient
from onestep_core.shapes import per_sample_mean
from onestep_core.typing import PerSample, Sample, Time, typed
from onestep_core.validators import require_positive

FDivergence: TypeAlias = Callable[[Tensor], Tensor]
"""``r -> r^2 f''(r)``: what an f-divergence multiplies the score gap with, ``r`` the density of data over samples."""


@typed
def density_ratio(logits: Sample, *, smallest: float = 0.1, largest: float = 20.0, limit: float = 10.0) -> PerSample:
    """``exp`` of a sample's mean logit, clipped: the density of data over that of samples, by an optimal discriminator.

    Args:
        logits: logits of a discriminator trained by the non-saturating loss, larger for data, ``[batch, *heads]``.
        smallest: lower bound of the ratio.
        largest: upper bound.
        limit: largest absolute value of the mean logit, before the exponential.

    Returns:
        ``[batch]``, without gradient.

    Raises:
        ConfigError: unless ``0 < smallest < largest``.

    Source: NVlabs/FastGen, ``FdistillModel._get_f_div_weighting_h``.

    Example:
        >>> density_ratio(torch.tensor([[0.0], [50.0]]))
        tensor([ 1., 20.])
    """
    require_positive("limit", limit)
    if not 0 < smallest < largest:
        raise ConfigError(f"ratios from {smallest} to {largest}: expected 0 < smallest < largest")
    return per_sample_mean(without_gradient(logits)).clamp(-limit, limit).exp().clamp(smallest, largest)


def _bin_members(t: Tensor, count: int, low: float, high: float) -> Tensor:
    """1 where a time lies in a bin, else 0, for ``count`` equal bins between ``low`` and ``high``: ``[batch, bin]``."""
    if not low < high:
        raise ConfigError(f"bins of time from {low} to {high}: expected low < high")
    index = ((t - low) * (count / (high - low))).floor().clamp(0, count - 1)
    return (index.unsqueeze(1) == torch.arange(count, device=t.device)).to(t.dtype)


@typed
def ratio_means(
    ratio: PerSample,
    t: Time,
    previous: Float[Tensor, "bin"],
    *,
    decay: float = 0.0,
    low: float = 0.002,
    high: float = 80.0,
    epsilon: float = 1e-6,
) -> Float[Tensor, "bin"]:
    """The mean ratio in bins of time, averaged over updates: ``decay previous + (1 - decay) mean``; empty bins stay.

    Ratios grow as the noise falls. Divided by the mean of their bin they show which *samples* of a time are too rare,
    and not which times have the larger ratios.

    Args:
        ratio: from :func:`density_ratio`, ``[batch]``.
        t: times, ``[batch]``; outside the bins they count to the nearest.
        previous: means before, ``[bin]``; ten in the released code, ones at first.
        decay: weight of the past, in [0, 1]; 0 as released.
        low: lower end of the first bin.
        high: upper end of the last bin; all have equal width.
        epsilon: added to the count of a bin.

    Returns:
        ``[bin]``, without gradient; the caller keeps it for the next update.

    Raises:
        ConfigError: for a decay out of range, or ``low`` not below ``high``.

    Source: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
    https://arxiv.org/abs/2502.15681; NVlabs/FastGen, ``FdistillModel``.

    Example:
        >>> ratio_means(torch.tensor([2.0, 4.0]), torch.tensor([0.1, 0.2]), torch.ones(2), low=0.0, high=1.0)
        tensor([3.0000, 1.0000])
    """
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay = {decay!r}: expected a number in [0, 1]")
    before = without_gradient(previous)
    members = _bin_members(without_gradient(t), previous.shape[0], low, high).to(before.dtype)
    count = members.sum(0)
    mean = members.mT @ without_gradient(ratio).to(before.dtype) / (count + epsilon)
    return torch.where(count > 0, decay * before + (1 - decay) * mean, before)


@typed
def f_divergence_scale(
    logits: Sample,
    t: Time,
    *,
    divergence: FDivergence,
    means: Float[Tensor, "bin"] | None = None,
    low: float = 0.002,
    high: float = 80.0,
    smallest: float = 0.1,
    largest: float = 20.0,
    epsilon: float = 1e-6,
) -> PerSample:
    """``h(r) / mean h(r)`` with ``h(r) = r^2 f''(r)``: the ``scale`` by which a score gap follows another divergence.

    The gradient of ``D_f(data | samples)`` is the reverse KL's with every sample's score gap times ``h``. So ``h``
    belongs to the *field*, and the reported loss is ``h^2 |field|^2``; as a factor of the loss it would give the same
    gradient and report ``h |field|^2``. The mean over the batch keeps the step as long as it was, so samples of a batch
    interact.

    Args:
        logits: of a discriminator at ``(z, t)``, larger for data, ``[batch, *heads]``.
        t: times, ``[batch]``; used with ``means`` alone.
        divergence: ``r -> h(r)``: :func:`reverse_kl` (all equal), :func:`forward_kl`, :func:`jensen_shannon`,
            :func:`softened_reverse_kl`, :func:`neyman`, :func:`squared_hellinger`, :func:`jeffreys`, or a function of
            your own.
        means: from :func:`ratio_means`, with the same ``low`` and ``high``: the ratio is divided by its bin's first.
            ``None``: it is not.
        low: lower end of the first bin.
        high: upper end of the last bin.
        smallest: lower bound of the ratio, see :func:`density_ratio`.
        largest: its upper bound.
        epsilon: added to both divisors.

    Returns:
        ``[batch]``, without gradient, with mean 1 up to ``epsilon``.

    Raises:
        ConfigError: for bounds out of order.

    Source: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching, theorem 1 and table 1,
    https://arxiv.org/abs/2502.15681; NVlabs/FastGen, ``FdistillModel._get_f_div_weighting_h``, where the reverse KL
    raises.

    Example:
        >>> logits = torch.tensor([[0.0], [3.0]]).log1p()
        >>> f_divergence_scale(logits, torch.zeros(2), divergence=forward_kl)
        tensor([0.4000, 1.6000])
    """
    ratio = density_ratio(logits, smallest=smallest, largest=largest)
    if means is not None:
        members = _bin_members(without_gradient(t), means.shape[0], low, high).to(ratio.dtype)
        ratio = ratio / (members @ without_gradient(means).to(ratio.dtype) + epsilon)
    factor = without_gradient(divergence(ratio))
    return factor / (factor.mean() + epsilon)


def reverse_kl(r: Tensor) -> Tensor:
    """``1``, of ``f = -log r``: seeks modes.

    Example:
        >>> reverse_kl(torch.tensor([0.5, 2.0]))
        tensor([1., 1.])
    """
    return torch.ones_like(r)


def forward_kl(r: Tensor) -> Tensor:
    """``r``, of ``f = r log r``: covers modes, at the largest variance.

    Example:
        >>> forward_kl(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 2.0000])
    """
    return r


def jensen_shannon(r: Tensor) -> Tensor:
    """``r / (1 + r)``, of ``f = r log r - (1 + r) log((1 + r) / 2)``: bounded.

    Example:
        >>> jensen_shannon(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 0.7500])
    """
    return r / (1 + r)


def softened_reverse_kl(r: Tensor) -> Tensor:
    """``1 / (1 + r)``, of ``f = (1 + r) log((1 + r) / (2 r))``: seeks modes more than the reverse KL (FastGen's
    ``sf``).

    Example:
        >>> softened_reverse_kl(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 0.2500])
    """
    return 1 / (1 + r)


def neyman(r: Tensor) -> Tensor:
    """``1 / max(r, 1e-8)``, of ``f = 1 / r`` up to a factor: Neyman's chi-squared, seeks modes most.

    Example:
        >>> neyman(torch.tensor([0.5, 2.0]))
        tensor([2.0000, 0.5000])
    """
    return 1 / r.clamp(min=1e-8)


def squared_hellinger(r: Tensor) -> Tensor:
    """``sqrt(r)``, of ``f = (1 - sqrt(r))^2`` up to a factor: between the two KL divergences.

    Example:
        >>> squared_hellinger(torch.tensor([1.0, 4.0]))
        tensor([1., 2.])
    """
    return r.sqrt()


def jeffreys(r: Tensor) -> Tensor:
    """``1 + r``, of ``f = (r - 1) log r``: the sum of the two KL divergences.

    Example:
        >>> jeffreys(torch.tensor([1.0, 4.0]))
        tensor([2., 5.])
    """
    return 1 + r
