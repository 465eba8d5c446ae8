"""Weights of times and noise levels: factors without gradient, one per sample.

A weight is what a published loss multiplies by. It is kept apart from the loss, so that the raw loss can be logged. It
never carries a gradient: used alone as a loss it raises in ``backward`` instead of training.

Weights in ``sigma`` are for the variance-exploding path (``z = data + sigma noise``). :func:`snr` and the weights made
of it serve any path; with ``path=VarianceExploding()`` they are ``sigma^-2``, ``sigma^-2 + 1`` and ``max(sigma^-2,
1)``, the weights ``snr``, ``snr+1`` and ``truncated-snr`` of the released consistency models.
"""

import torch

from onestep_core.precision import without_gradient
from onestep_core.protocols import Path
from onestep_core.typing import PerSample, Time, typed
from onestep_core.validators import positive_sigma_data, require_finite, require_not_negative


@typed
def uniform_weight(sigma: Time) -> PerSample:
    """``1``: the factor that changes nothing, for where a weight is an argument.

    Example:
        >>> uniform_weight(torch.tensor([0.5, 80.0]))
        tensor([1., 1.])
    """
    return torch.ones_like(without_gradient(sigma))


@typed
def karras(sigma: Time, *, sigma_data: float, power: float = 1.0) -> PerSample:
    """``(sigma^-2 + sigma_data^-2)^power = c_out^(-2 power)``: unit loss at initialisation for EDM's preconditioning.

    Args:
        sigma: noise levels, ``[batch]``, positive.
        sigma_data: standard deviation of the data, 0.5 for images in [-1, 1].
        power: 1/2 for losses in units of the data (``c_out`` in FastGen's consistency models).

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> karras(torch.tensor([0.5]), sigma_data=0.5)
        tensor([8.])
    """
    return (without_gradient(sigma) ** -2 + positive_sigma_data(sigma_data) ** -2) ** power


@typed
def soft_min_snr(sigma: Time, *, sigma_data: float) -> PerSample:
    """``1 / (sigma^2 + sigma_data^2)``: a signal-to-noise ratio ``sigma^-2`` that levels off at ``sigma_data^-2``.

    Like the other weights here, of the denoising loss. k-diffusion measures the loss on the raw network, where its
    ``karras``, ``snr`` and ``soft-min-snr`` are :func:`karras`, :func:`snr` and this, each divided by :func:`karras`.

    Args:
        sigma: noise levels, ``[batch]``.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Crowson et al., Hourglass Diffusion Transformers (soft-min-SNR), https://arxiv.org/abs/2401.11605.

    Example:
        >>> soft_min_snr(torch.tensor([0.5]), sigma_data=0.5)
        tensor([2.])
    """
    return 1 / (without_gradient(sigma).square() + positive_sigma_data(sigma_data) ** 2)


@typed
def square_root_weight(sigma: Time) -> PerSample:
    """``sqrt(sigma)``; the released CTM code calls it ``sq-t-inverse``.

    Example:
        >>> square_root_weight(torch.tensor([4.0]))
        tensor([2.])
    """
    return without_gradient(sigma).sqrt()


@typed
def signal_weight(t: Time, *, path: Path) -> PerSample:
    """``alpha(t)``, the share of the data in a state: DMD's weight of its normalised score gap.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, eq. 7 and 8,
    https://arxiv.org/abs/2311.18828.

    Example:
        >>> from onestep_core.flow import Linear
        >>> signal_weight(torch.tensor([0.25]), path=Linear())
        tensor([0.7500])
    """
    return without_gradient(path.coefficients(without_gradient(t))[0])


@typed
def snr(t: Time, *, path: Path) -> PerSample:
    """``alpha(t)^2 / sigma(t)^2``, the signal-to-noise ratio of any path; infinite where there is no noise.

    Example:
        >>> from onestep_core.flow import Linear
        >>> snr(torch.tensor([0.5, 0.75]), path=Linear())
        tensor([1.0000, 0.1111])
    """
    alpha, sigma = path.coefficients(without_gradient(t))
    return without_gradient(alpha / sigma).square()


@typed
def snr_plus_one(t: Time, *, path: Path) -> PerSample:
    """``alpha^2 / sigma^2 + 1``: on variance-preserving paths an error in data becomes one in ``v`` by it.

    ``v = alpha noise - sigma data``, see :func:`onestep_core.flow.v_prediction_from_data`.

    Source: Salimans and Ho, Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512.

    Example:
        >>> from onestep_core.flow import Linear
        >>> snr_plus_one(torch.tensor([0.5]), path=Linear())
        tensor([2.])
    """
    return snr(t, path=path) + 1


@typed
def truncated_snr(t: Time, *, path: Path) -> PerSample:
    """``max(alpha^2 / sigma^2, 1)``: turns a squared error in data into the larger of the errors in data and in noise.

    Source: Salimans and Ho, Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512.

    Example:
        >>> from onestep_core.flow import Linear
        >>> truncated_snr(torch.tensor([0.25, 0.75]), path=Linear())
        tensor([9., 1.])
    """
    return snr(t, path=path).clamp(min=1.0)


@typed
def sigmoid_elbo(t: Time, *, path: Path, shift: float, power: float = 1.0) -> PerSample:
    """``sigmoid(b - l) |dl/dt| alpha^a / (2 (alpha^2 + sigma^2))`` for ``l = log(alpha^2 / sigma^2)``.

    The likelihood's weight with its high signal-to-noise ratios turned down, and a factor that trusts states with
    signal; inductive moment matching's. For ``a`` of 1 or more it is finite at the noise end; not a number at a data
    end without noise.

    Args:
        t: source times, ``[batch]``.
        path: gives the coefficients and their rates. The paper's ``sigma`` does not hold the spread of the noise: give
            the path without :class:`~onestep_core.flow.NoiseScaled`.
        shift: ``b``.
        power: ``a``; the paper's are 1 and 2.

    Source: Zhou et al., Inductive Moment Matching, section 4, https://arxiv.org/abs/2503.07565; Kingma and Gao,
    Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation, https://arxiv.org/abs/2303.00848.

    Example:
        >>> from onestep_core.flow import Linear
        >>> sigmoid_elbo(torch.tensor([0.5]), path=Linear(), shift=0.0)
        tensor([2.])
    """
    require_finite("shift", shift)
    t = without_gradient(t)
    alpha, sigma = path.coefficients(t)
    alpha_rate, sigma_rate = path.rates(t)
    log_snr = 2 * (alpha / sigma).log()
    # ``alpha |dl/dt|``, finite at the noise end.
    slope = 2 * (alpha_rate - sigma_rate * alpha / sigma).abs()
    factor = slope * alpha ** (power - 1) / (2 * (alpha.square() + sigma.square()))
    return without_gradient((shift - log_snr).sigmoid() * factor)


@typed
def inverse_duration(t: Time, m: Time, *, power: float = 1.0) -> PerSample:
    """``|t - m|^-power``: consistency between near times counts more.

    Args:
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``, elsewhere.
        power: 1 in iCT, ECT and TCM; 1/2 is FastGen's ``sqrt``.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.1 and table 1,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> inverse_duration(torch.tensor([3.0]), torch.tensor([1.0]))
        tensor([0.5000])
    """
    require_not_negative("power", power)
    return (without_gradient(t) - without_gradient(m)).abs() ** -power


@typed
def inverse_jump(t: Time, s: Time, *, power: float) -> PerSample:
    """``(1 - s / t)^-power``, large for short jumps; infinite at ``s = t`` (``uniform_g`` in the released CTM code).

    On the variance-exploding path ``1 - s / t`` is what CTM's outer form multiplies its network with.

    Args:
        t: source noise levels, ``[batch]``, positive.
        s: target noise levels, ``[batch]``, below ``t``.
        power: 0 for no weighting.

    Example:
        >>> inverse_jump(torch.tensor([2.0]), torch.tensor([1.0]), power=2.0)
        tensor([4.])
    """
    require_not_negative("power", power)
    return (1 - without_gradient(s) / without_gradient(t)) ** -power
