"""Weights: factors without gradient, one per sample.

A weight is what a published loss multiplies by, kept apart from the loss so that the raw number stays
loggable. It never carries a gradient: used alone as a loss it raises in ``backward`` instead of training.
Weights in ``sigma`` are for variance-exploding time (``z = data + sigma noise``), where the signal-to-noise
ratio is ``sigma^-2``; :func:`snr` serves any path.
"""

import math
from collections.abc import Callable

import torch

from onestep_core.precision import frozen
from onestep_core.protocols import Path
from onestep_core.regression.pair import Regression, pull
from onestep_core.shapes import expand_like, per_sample_sum
from onestep_core.typing import PerSample, Time, typed


@typed
def adaptive(loss: PerSample, *, power: float, epsilon: float) -> PerSample:
    """``(loss + epsilon)^-power``: large losses count less.

    With the squared distance, ``power = 1`` makes every sample's loss nearly one, ``power = 0.5`` resembles a
    pseudo-Huber loss. It moves the minimiser wherever the target is random given the state.

    Args:
        loss: raw losses, ``[batch]``; the released MeanFlow takes the *sum* over a sample.
        power: 0 for no weighting; 1.0 in the released JAX code of MeanFlow, 0.75 in its PyTorch code.
        epsilon: keeps the factor finite; 0.01 and 0.001 there.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, section 4.3 (adaptive loss weighting),
    https://arxiv.org/abs/2505.13447.

    Example:
        >>> adaptive(torch.tensor([0.5, 2.0]), power=1.0, epsilon=0.0)
        tensor([2.0000, 0.5000])
    """
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
def karras(sigma: Time, *, sigma_data: float) -> PerSample:
    """``sigma^-2 + sigma_data^-2 = 1 / c_out^2``: unit loss at initialisation for EDM's preconditioning.

    Args:
        sigma: noise levels, ``[batch]``, positive.
        sigma_data: standard deviation of the data, 0.5 for images in [-1, 1].

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> karras(torch.tensor([0.5]), sigma_data=0.5)
        tensor([8.])
    """
    return frozen(sigma) ** -2 + sigma_data**-2


@typed
def soft_min_snr(sigma: Time, *, sigma_data: float) -> PerSample:
    """``1 / (sigma^2 + sigma_data^2)``: a signal-to-noise ratio ``sigma^-2`` that levels off at ``sigma_data^-2``.

    Like the other weights here, of the denoising loss. k-diffusion measures the loss on the raw network, where its
    ``karras``, ``snr`` and ``soft-min-snr`` are :func:`karras`, :func:`inverse_variance` and this, each divided by
    :func:`karras`.

    Args:
        sigma: noise levels, ``[batch]``.
        sigma_data: standard deviation of the data, positive.

    Source: Crowson et al., Hourglass Diffusion Transformers (soft-min-SNR), https://arxiv.org/abs/2401.11605.

    Example:
        >>> soft_min_snr(torch.tensor([0.5]), sigma_data=0.5)
        tensor([2.])
    """
    return 1 / (frozen(sigma).square() + sigma_data**2)


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
