"""Weights: factors without gradient, one per sample.

A weight is what a published loss multiplies by, kept apart from the loss so that the raw number stays
loggable. It never carries a gradient: used alone as a loss it raises in ``backward`` instead of training.
Weights in ``sigma`` are for variance-exploding time (``z = data + sigma noise``), where the signal-to-noise
ratio is ``sigma^-2``; :func:`snr` serves any path.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from onestep_core.errors import ConfigError, positive_sigma_data
from onestep_core.precision import frozen
from onestep_core.protocols import Path
from onestep_core.regression.pair import Regression, pull
from onestep_core.shapes import expand_like, per_sample_sum
from onestep_core.typing import PerSample, Sample, Time, typed


@typed
def adaptive(loss: PerSample, *, power: float, epsilon: float) -> PerSample:
    """``(loss + epsilon)^-power``: large losses count less.

    With the squared distance, ``power = 1`` makes every sample's loss nearly one, ``power = 0.5`` resembles a
    pseudo-Huber loss. It moves the minimiser wherever the target is random given the state.

    Args:
        loss: raw losses, ``[batch]``; the released MeanFlow takes the *sum* over a sample.
        power: 0 for no weighting; 1.0 in the released JAX code of MeanFlow, 0.75 in its PyTorch code.
        epsilon: keeps the factor finite, not below 0; 0.01 and 0.001 there.

    Raises:
        ConfigError: if ``epsilon`` is below 0.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, section 4.3 (adaptive loss weighting),
    https://arxiv.org/abs/2505.13447.

    Example:
        >>> adaptive(torch.tensor([0.5, 2.0]), power=1.0, epsilon=0.0)
        tensor([2.0000, 0.5000])
    """
    if not epsilon >= 0:
        raise ConfigError(f"epsilon = {epsilon}: expected a number not below 0, such as 0.01")
    return (frozen(loss) + epsilon) ** -power


@typed
def exponential(loss: PerSample, *, amplitude: float, rate: float, offset: float = 0.0) -> PerSample:
    """``amplitude * exp(rate * loss + offset)``; a negative ``rate`` turns large losses down.

    Source: NVlabs/FastGen, ``MeanFlowModel._compute_weight``, normalisation ``exp_A_s``.

    Example:
        >>> exponential(torch.zeros(2), amplitude=0.5, rate=-0.1)
        tensor([0.5000, 0.5000])
    """
    return amplitude * (rate * frozen(loss) + offset).exp()


@typed
def uniform(sigma: Time) -> PerSample:
    """``1``: the factor that changes nothing, for where a weight is an argument.

    Example:
        >>> uniform(torch.tensor([0.5, 80.0]))
        tensor([1., 1.])
    """
    return torch.ones_like(frozen(sigma))


@typed
def inverse_variance(sigma: Time) -> PerSample:
    """``sigma^-2``, the signal-to-noise ratio of variance-exploding noise (``snr`` in the released CM code).

    Example:
        >>> inverse_variance(torch.tensor([0.5]))
        tensor([4.])
    """
    return frozen(sigma) ** -2


@typed
def inverse_variance_plus_one(sigma: Time) -> PerSample:
    """``sigma^-2 + 1`` (``snr+1`` in the released CM code).

    Example:
        >>> inverse_variance_plus_one(torch.tensor([0.5]))
        tensor([5.])
    """
    return frozen(sigma) ** -2 + 1


@typed
def truncated_inverse_variance(sigma: Time) -> PerSample:
    """``max(sigma^-2, 1)`` (``truncated-snr`` in the released CM code).

    Source: Salimans and Ho, Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512.

    Example:
        >>> truncated_inverse_variance(torch.tensor([0.5, 80.0]))
        tensor([4., 1.])
    """
    return (frozen(sigma) ** -2).clamp(min=1.0)


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
    return (frozen(sigma) ** -2 + positive_sigma_data(sigma_data) ** -2) ** power


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
    return (frozen(t) - frozen(m)).abs() ** -power


@typed
def separate_means(loss: PerSample, group: Bool[Tensor, "batch"], *, weight: float) -> PerSample:
    """Factors under which the mean over the batch is ``mean over the rest + weight * mean over the group``.

    A weight that knows the batch: its factors are ``weight * batch / group`` and ``batch / rest``. An empty group
    or an empty rest adds nothing.

    Args:
        loss: raw losses, ``[batch]``; only their type is used.
        group: which samples form the group, ``[batch]``, boolean: the boundary samples of a truncated consistency
            model, say.
        weight: of the group's mean; 0.1 there.

    Source: Lee et al., Truncated Consistency Models, section 3 (boundary and consistency loss),
    https://arxiv.org/abs/2410.14895.

    Example:
        >>> separate_means(torch.ones(4), torch.tensor([True, False, False, False]), weight=0.5)
        tensor([2.0000, 1.3333, 1.3333, 1.3333])
    """
    inside = group.to(frozen(loss).dtype)
    outside = 1 - inside
    share = weight * inside / inside.sum().clamp(min=1) + outside / outside.sum().clamp(min=1)
    return frozen(loss.shape[0] * share)


@typed
def soft_min_snr(sigma: Time, *, sigma_data: float) -> PerSample:
    """``1 / (sigma^2 + sigma_data^2)``: a signal-to-noise ratio ``sigma^-2`` that levels off at ``sigma_data^-2``.

    Like the other weights here, of the denoising loss. k-diffusion measures the loss on the raw network, where its
    ``karras``, ``snr`` and ``soft-min-snr`` are :func:`karras`, :func:`inverse_variance` and this, each divided by
    :func:`karras`.

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
    return 1 / (frozen(sigma).square() + positive_sigma_data(sigma_data) ** 2)


@typed
def signal(t: Time, *, path: Path) -> PerSample:
    """``alpha(t)``, the share of the data in a state: DMD's weight of its normalised score gap.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, eq. 7 and 8,
    https://arxiv.org/abs/2311.18828.

    Example:
        >>> from onestep_core.flow import Linear
        >>> signal(torch.tensor([0.25]), path=Linear())
        tensor([0.7500])
    """
    return frozen(path.coefficients(frozen(t))[0])


@typed
def snr(t: Time, *, path: Path) -> PerSample:
    """``alpha(t)^2 / sigma(t)^2``, the signal-to-noise ratio of any path; infinite where there is no noise.

    Example:
        >>> from onestep_core.flow import Linear
        >>> snr(torch.tensor([0.5, 0.75]), path=Linear())
        tensor([1.0000, 0.1111])
    """
    alpha, sigma = path.coefficients(frozen(t))
    return frozen(alpha / sigma).square()


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
    t = frozen(t)
    alpha, sigma = path.coefficients(t)
    alpha_rate, sigma_rate = path.rates(t)
    log_snr = 2 * (alpha / sigma).log()
    # ``alpha |dl/dt|``, finite at the noise end.
    slope = 2 * (alpha_rate - sigma_rate * alpha / sigma).abs()
    factor = slope * alpha ** (power - 1) / (2 * (alpha.square() + sigma.square()))
    return frozen((shift - log_snr).sigmoid() * factor)


@typed
def rescale_residual(
    pair: Regression, weight: Callable[[PerSample], PerSample], *, per_dimension: bool = False
) -> Regression:
    """Weight the gradient and not the loss: the pair whose residual is ``w(|r|) r``, for ``r = target - prediction``.

    With :func:`squared_l2` the value is ``|w r|^2`` and the gradient in the prediction ``-2 w r``; a factor on
    the loss would give ``-2 w r`` beside the value ``w |r|^2``. The optimised gradient of sCM and of FastGen's
    MeanFlow (``opt_grad``) has this form.

    Args:
        pair: the regression to rescale, each ``[batch, *shape]``.
        weight: from the residual's norm ``[batch]`` to a factor ``[batch]``.
        per_dimension: divide the residual by ``sqrt(dimension)`` first, so that one weight serves all sizes.

    Source: NVlabs/FastGen, ``MeanFlowModel._mf_pred_to_loss`` with ``loss_type="opt_grad"``.

    Example:
        >>> from functools import partial
        >>> pair = Regression(torch.zeros(1, 4), torch.ones(1, 4))
        >>> rescale_residual(pair, partial(adaptive, power=1.0, epsilon=0.0)).target
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    residual = frozen(pair.target) - frozen(pair.prediction)
    if per_dimension:
        residual = residual / math.sqrt(math.prod(residual.shape[1:]))
    norm = per_sample_sum(residual.square()).sqrt()
    return pull(pair.prediction, residual * expand_like(frozen(weight(norm)), residual))


@typed
def normalize_tangent(tangent: Sample, *, constant: float = 0.1, per_dimension: bool = False) -> Sample:
    """``g / (|g| + constant)``: tangents of bounded length, in the direction that they had.

    Long ones, where a network's derivative is wildest, get length one; short ones are hardly touched, so that what
    vanishes goes on vanishing. It moves the minimiser wherever the tangent is random given the state.

    Args:
        tangent: ``[batch, *shape]``.
        constant: the length at which half is left, not negative; 0.1 in the paper.
        per_dimension: take the root mean square over a sample for the norm, as released, so that the result has length
            ``sqrt(dimension)`` at most.

    Returns:
        Without gradient, ``[batch, *shape]``; zero where the tangent is zero.

    Raises:
        ConfigError: if ``constant`` is negative.

    Source: Lu and Song, Simplifying, Stabilizing and Scaling Continuous-time Consistency Models, section 4
    (tangent normalization), https://arxiv.org/abs/2410.11081; NVlabs/FastGen, ``g_norm_spatial_invariance``.

    Example:
        >>> normalize_tangent(torch.tensor([[3.0, 4.0]]), constant=5.0)
        tensor([[0.3000, 0.4000]])
    """
    if constant < 0:
        raise ConfigError(f"constant = {constant}: expected a length, not negative")
    tangent = frozen(tangent)
    square = per_sample_sum(tangent.square())
    if per_dimension:
        square = square / math.prod(tangent.shape[1:])
    length = square.sqrt() + constant
    return tangent / expand_like(torch.where(length > 0, length, 1.0), tangent)


@typed
def square_root(sigma: Time) -> PerSample:
    """``sqrt(sigma)``; the released CTM code calls it ``sq-t-inverse``.

    Example:
        >>> square_root(torch.tensor([4.0]))
        tensor([2.])
    """
    return frozen(sigma).sqrt()


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
    return (1 - frozen(s) / frozen(t)) ** -power
