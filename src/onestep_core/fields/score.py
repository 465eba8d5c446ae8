"""Score gaps: from the estimates of two denoisers at a noised sample to a displacement of the sample.

For samples ``x`` noised to ``z = alpha x + sigma noise``, the scores of the noised data and of the noised samples are

    score real = (alpha R - z) / sigma^2,    score fake = (alpha F - z) / sigma^2,

where ``R`` is the expected data and ``F`` the expected sample, given ``z``. The state cancels in their difference,

    score real - score fake = alpha (R - F) / sigma^2,

so a gap of scores is the gap ``R - F`` of denoised samples, times a number that depends on the time alone. The
displacement is computed from denoisers. It points from places with too many samples to places with too few. For equal
distributions it is zero. A gap that vanishes at *one* noise level proves equal distributions for exact scores, but not
for networks.

Published factors of ``R - F``, before any normaliser:

====================================  ====================================================================
``1``                                 DMD2 as released
``signal_weight(t, path=path)``              ``alpha``: DMD, equations 7 and 8
``snr(t, path=path) ** 0.5``          ``alpha / sigma``: a gap of noise predictions (score distillation)
``snr(t, path=path) * w``             the KL divergence of the noised distributions with weight ``w(t)``
====================================  ====================================================================
"""

import torch

from onestep_core.precision import without_gradient
from onestep_core.protocols import Normalizer
from onestep_core.shapes import expand_like, per_sample_mean
from onestep_core.typing import PerSample, Sample, Time, typed
from onestep_core.validators import require_not_negative


@typed
def denoising_error(samples: Sample, denoised: Sample, *, epsilon: float = 0.0, floor: float = 0.0) -> PerSample:
    """``max(mean |x - R|, floor) + epsilon``: how far a denoiser moves a sample, the published normaliser.

    It brings the gaps of all noise levels to one size. It depends on the sample, so it is not a weight in time: the
    expected field has another *direction* than the gradient of a divergence.

    Args:
        samples: ``x``, ``[batch, *shape]``.
        denoised: ``R``, ``[batch, *shape]``.
        epsilon: added; 0 as released, 1e-6 in FastGen.
        floor: smallest value before it is added; 1e-5 in SiD.

    Returns:
        ``[batch]``, without gradient, in at least float32.

    Raises:
        ArgumentError: if the shapes differ.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, eq. 8,
    https://arxiv.org/abs/2311.18828; tianweiy/DMD2, ``compute_distribution_matching_loss``.

    Example:
        >>> denoising_error(torch.zeros(1, 2), torch.tensor([[1.0, -3.0]]))
        tensor([2.])
    """
    require_not_negative("epsilon", epsilon)
    require_not_negative("floor", floor)
    return per_sample_mean((without_gradient(samples) - without_gradient(denoised)).abs()).clamp(min=floor) + epsilon


@typed
def score_gap(
    samples: Sample,
    real_denoised: Sample,
    fake_denoised: Sample,
    *,
    scale: Time | None = None,
    normalizer: Normalizer | None = denoising_error,
) -> Sample:
    """``scale (R - F) / normalizer(x, R)``: a displacement of every sample.

    :func:`~onestep_core.regression.field_regression` makes a loss of it.

    Args:
        samples: ``x``, ``[batch, *shape]``.
        real_denoised: ``R``, the real denoiser's estimate at ``(z, t)``, ``[batch, *shape]``.
        fake_denoised: ``F``, the fake one's at the same state, ``[batch, *shape]``.
        scale: factor of each sample's displacement, ``[batch]``: a weight in time, an f-divergence's. 1 without it.
        normalizer: divides, ``[batch]``; ``partial(denoising_error, epsilon=1e-6)`` for FastGen's. ``None``: nothing
            divides.

    Returns:
        Without gradient, ``[batch, *shape]``, in at least float32. Zero where the normaliser is zero: a sample that the
        real denoiser leaves where it is stays. The released code keeps a zero there only where ``R = F``.

    Raises:
        ArgumentError: if shapes disagree.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, eq. 7 and 8,
    https://arxiv.org/abs/2311.18828; Improved Distribution Matching Distillation, https://arxiv.org/abs/2405.14867.

    Example:
        >>> x, real, fake = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]])
        >>> score_gap(x, real, fake)
        tensor([[ 1., -2.]])
        >>> score_gap(x, real, fake, scale=torch.tensor([0.5]), normalizer=None)
        tensor([[ 0.5000, -1.0000]])
    """
    gap = without_gradient(real_denoised) - without_gradient(fake_denoised)
    if normalizer is not None:
        size = expand_like(without_gradient(normalizer(samples, real_denoised)), gap)
        gap = torch.where(size == 0, 0.0, gap / torch.where(size == 0, 1.0, size))
    return gap if scale is None else gap * expand_like(without_gradient(scale), gap)
