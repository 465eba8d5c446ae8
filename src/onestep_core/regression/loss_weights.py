"""Weights that adapt to the loss or to a residual: factors without gradient, one per sample.

Each is computed from values of the current batch. They move the minimiser wherever the target is random given the
state. A weight never carries a gradient: used alone as a loss it raises in ``backward`` instead of training.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import without_gradient
from onestep_core.regression.pair import Regression, field_regression
from onestep_core.shapes import expand_like, largest_entry, per_sample_sum
from onestep_core.typing import PerSample, Sample, typed
from onestep_core.validators import require_finite, require_not_negative, require_positive


@typed
def adaptive(loss: PerSample, *, power: float, epsilon: float) -> PerSample:
    """``(loss + epsilon)^-power``: large losses count less.

    With the squared distance, ``power = 1`` makes every sample's loss nearly one, ``power = 0.5`` resembles a
    pseudo-Huber loss. It moves the minimiser wherever the target is random given the state.

    Args:
        loss: raw losses, ``[batch]``; the released MeanFlow takes the *sum* over a sample.
        power: 0 for no weighting; 1.0 in the released JAX code of MeanFlow, 0.75 in its PyTorch code.
        epsilon: keeps the factor finite, not below 0; 0.01 and 0.001 there. With 0 the factor of a loss of zero is 0.

    Raises:
        ConfigError: if ``epsilon`` is below 0.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, section 4.3 (adaptive loss weighting),
    https://arxiv.org/abs/2505.13447.

    Example:
        >>> adaptive(torch.tensor([0.5, 2.0]), power=1.0, epsilon=0.0)
        tensor([2.0000, 0.5000])
    """
    require_not_negative("power", power)
    if not epsilon >= 0:
        raise ConfigError(f"epsilon = {epsilon}: expected a number not below 0, such as 0.01")
    shifted = without_gradient(loss) + epsilon
    # Without epsilon the weight of a loss of zero would be infinite, and the weighted loss NaN.
    nothing = shifted == 0
    return torch.where(nothing, 1.0, shifted).pow(-power) * torch.where(nothing, float(power == 0), 1.0)


@typed
def exponential(loss: PerSample, *, amplitude: float, rate: float, offset: float = 0.0) -> PerSample:
    """``amplitude * exp(rate * loss + offset)``; a negative ``rate`` turns large losses down.

    Source: NVlabs/FastGen, ``MeanFlowModel._compute_weight``, normalisation ``exp_A_s``.

    Example:
        >>> exponential(torch.zeros(2), amplitude=0.5, rate=-0.1)
        tensor([0.5000, 0.5000])
    """
    require_positive("amplitude", amplitude)
    require_finite("rate", rate)
    require_finite("offset", offset)
    return amplitude * (rate * without_gradient(loss) + offset).exp()


@typed
def separate_means(loss: PerSample, group: Bool[Tensor, "batch"], *, weight: float) -> PerSample:
    """Factors under which the mean over the batch is ``mean over the rest + weight * mean over the group``.

    A weight that depends on the whole batch: its factors are ``weight * batch / group`` and ``batch / rest``. An empty
    group or an empty rest adds nothing.

    Args:
        loss: raw losses, ``[batch]``; only their type is used.
        group: which samples form the group, ``[batch]``, boolean: the boundary samples of a truncated consistency
            model, say.
        weight: factor of the group's mean; 0.1 there.

    Source: Lee et al., Truncated Consistency Models, section 3 (boundary and consistency loss),
    https://arxiv.org/abs/2410.14895.

    Example:
        >>> separate_means(torch.ones(4), torch.tensor([True, False, False, False]), weight=0.5)
        tensor([2.0000, 1.3333, 1.3333, 1.3333])
    """
    require_not_negative("weight", weight)
    inside = group.to(without_gradient(loss).dtype)
    outside = 1 - inside
    share = weight * inside / inside.sum().clamp(min=1) + outside / outside.sum().clamp(min=1)
    return without_gradient(loss.shape[0] * share)


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
    residual = without_gradient(pair.target) - without_gradient(pair.prediction)
    if per_dimension:
        residual = residual / math.sqrt(math.prod(residual.shape[1:]))
    unit = largest_entry(residual)
    norm = unit * per_sample_sum((residual / expand_like(unit, residual)).square()).sqrt()
    return field_regression(pair.prediction, residual * expand_like(without_gradient(weight(norm)), residual))


@typed
def normalize_tangent(tangent: Sample, *, constant: float = 0.1, per_dimension: bool = False) -> Sample:
    """``g / (|g| + constant)``: tangents of bounded length, in the direction that they had.

    Long ones get length one; short ones hardly change, so a tangent that tends to zero still does. It moves the
    minimiser wherever the tangent is random given the state.

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
    require_not_negative("constant", constant)
    if constant < 0:
        raise ConfigError(f"constant = {constant}: expected a length, not negative")
    tangent = without_gradient(tangent)
    unit = largest_entry(tangent)
    length = unit * per_sample_sum((tangent / expand_like(unit, tangent)).square()).sqrt()
    if per_dimension:
        length = length / math.sqrt(math.prod(tangent.shape[1:]))
    length = length + constant
    return tangent / expand_like(torch.where(length == 0, 1.0, length), tangent)
