"""Guidance: a stronger effect of the condition.

Guidance wraps a callable or mixes its outputs; the network itself does not change. :func:`classifier_free` is for
sampling and for teachers, :func:`guided_velocity` for training a network whose one evaluation is already guided,
:func:`drift_negative_weight` for drifting, where guidance is a weight on real unconditional negatives.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full, without_gradient
from onestep_core.shapes import expand_like
from onestep_core.typing import PerSample, Sample, typed
from onestep_core.validators import require_finite


@typed
def classifier_free(
    conditional: Callable[..., Tensor], unconditional: Callable[..., Tensor], *, scale: float
) -> Callable[..., Tensor]:
    """``unconditional + scale (conditional - unconditional)``, as a callable of the same arguments.

    Args:
        conditional: a velocity, denoiser, average velocity, ...: any arity.
        unconditional: the same with the null condition.
        scale: 1 is the conditional network, 0 the unconditional one, more extrapolates.

    Raises:
        ConfigError: at a call, if the two answers differ in shape.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, eq. 6 (there ``1 + w`` is the scale),
    https://arxiv.org/abs/2207.12598.

    Example:
        >>> guided = classifier_free(lambda z, t: z, lambda z, t: 0 * z, scale=3.0)
        >>> guided(torch.ones(1, 1), torch.ones(1))
        tensor([[3.]])
    """
    require_finite("scale", scale)

    def guided(*arguments: Tensor) -> Tensor:
        base, towards = full(unconditional(*arguments)), full(conditional(*arguments))
        if base.shape != towards.shape:
            raise ConfigError(
                f"the conditional answer has shape {tuple(towards.shape)} and the unconditional one "
                f"{tuple(base.shape)}: expected the same"
            )
        return base + scale * (towards - base)

    return guided


@typed
def guided_velocity(
    v: Sample,
    conditional: Sample | None,
    unconditional: Sample,
    *,
    omega: float | PerSample,
    kappa: float | PerSample = 0.0,
    active: Bool[Tensor, "batch"] | None = None,
) -> Sample:
    """``sg[omega v + kappa v_c + (1 - omega - kappa) v_u]``: MeanFlow's regressand under guidance.

    The field whose average is learnt is the guided one, so that a single evaluation samples with guidance at the
    effective scale ``omega / (1 - kappa)``. Use the result both as ``v`` of the objective and in its tangent.

    Args:
        v: velocities of the pairs, ``[batch, *shape]``.
        conditional: the network's own ``a(z, t, t)`` given the label, ``[batch, *shape]``; ``None`` where
            ``kappa`` is the number zero.
        unconditional: the network's own ``a(z, t, t)`` given the null label, ``[batch, *shape]``.
        omega: weight of ``v``, a number or ``[batch]``; 1 with ``kappa = 0`` is no guidance.
        kappa: weight of ``conditional``, a number or ``[batch]``.
        active: where guidance applies, ``[batch]``, boolean: an interval of times, kept labels; everywhere
            by default. Elsewhere the result is ``v``.

    Returns:
        Guided velocities without gradient, ``[batch, *shape]``.

    Raises:
        ConfigError: if ``conditional`` is missing while ``kappa`` is not zero.

    Source: Geng et al., Mean Flows, eq. 20-21, https://arxiv.org/abs/2505.13447. The released code drops labels
    of the first samples of a batch and gives those the plain ``v``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> guided_velocity(one, None, 0 * one, omega=3.0)
        tensor([[3.]])
    """
    require_finite("omega", omega)
    require_finite("kappa", kappa)
    v = without_gradient(v)

    def weight(number: float | Tensor) -> float | Tensor:
        return expand_like(without_gradient(number), v) if isinstance(number, Tensor) else number

    mixed = weight(omega) * v + (1 - weight(omega) - weight(kappa)) * without_gradient(unconditional)
    if conditional is not None:
        mixed = mixed + weight(kappa) * without_gradient(conditional)
    elif isinstance(kappa, Tensor) or kappa != 0:
        raise ConfigError(
            f"kappa = {kappa} mixes in the conditional velocity, which is None: give a(z, t, t) for the label"
        )
    return mixed if active is None else torch.where(expand_like(active, v), mixed, v)


@typed
def kappa_for_scale(scale: PerSample, *, omega: float = 1.0) -> PerSample:
    """``1 - omega / scale``: the ``kappa`` by which :func:`guided_velocity` has that effective scale.

    The scale is ``omega / (1 - kappa)``; a network that takes it as an input is trained with one per sample. Improved
    MeanFlow has ``omega = 1``, for which the regressand is ``v + (1 - 1 / scale) (v_c - v_u)``.

    Args:
        scale: effective guidance scales, ``[batch]``, positive; 1 is no guidance.
        omega: weight of ``v``.

    Source: Geng et al., Mean Flows, appendix on improved guidance, https://arxiv.org/abs/2505.13447;
    Lyy-iiis/imeanflow, ``guidance_fn``.

    Example:
        >>> kappa_for_scale(torch.tensor([1.0, 4.0]))
        tensor([0.0000, 0.7500])
    """
    require_finite("omega", omega)
    return 1 - omega / without_gradient(scale)


@typed
def drop_labels(
    labels: Shaped[Tensor, "batch *label"], null: int | float | Shaped[Tensor, "..."], mask: Bool[Tensor, "batch"]
) -> Shaped[Tensor, "batch *label"]:
    """``null`` where ``mask`` holds, the label elsewhere: how a network learns the unconditional case.

    Args:
        labels: classes, ``[batch]``, integer; or vectors, ``[batch, *label]``: one-hot, embeddings of a text.
        null: the value that means no label: usually the number of classes, or a vector, ``[*label]``, ``[1, *label]``
            or one for each sample, ``[batch, *label]``, or 0 in all of it.
        mask: which labels to drop, ``[batch]``, boolean; drawn by the caller.

    Raises:
        ConfigError: if ``null`` is a tensor of another shape, NaN or infinite, or of a kind of number that the labels
            cannot hold.

    Example:
        >>> drop_labels(torch.tensor([3, 5]), 10, torch.tensor([True, False]))
        tensor([10,  5])
        >>> drop_labels(torch.eye(2), 0, torch.tensor([True, False]))
        tensor([[0., 0.],
                [0., 1.]])
    """
    shapes = (labels.shape[1:], torch.Size([1, *labels.shape[1:]]), labels.shape)
    if isinstance(null, Tensor) and null.ndim > 0 and null.shape not in shapes:
        raise ConfigError(
            f"null of shape {tuple(null.shape)} for labels of shape {tuple(labels.shape)}: expected one label, "
            f"{tuple(labels.shape[1:])}, the same with a batch axis, or a number"
        )
    require_finite("null", null)
    kept = torch.where(expand_like(mask, labels), null, labels)
    if _rank(kept.dtype) > _rank(labels.dtype):
        said = null.dtype if isinstance(null, Tensor) else repr(null)
        raise ConfigError(f"null = {said} for labels of {labels.dtype}: expected a number of their kind")
    return kept


def _rank(dtype: torch.dtype) -> int:
    """0 for truth values, 1 for integers, 2 for real and 3 for complex numbers; `torch.can_cast` cannot be traced."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else int(dtype != torch.bool)


@typed
def drift_negative_weight(alpha: PerSample, *, generated: int, unconditional: int) -> PerSample:
    """``(alpha - 1) (generated - 1) / unconditional``: the weight of each real unconditional negative in a drift.

    The negatives then are the mixture ``(1 - gamma) q + gamma p(.|null)`` with ``alpha = 1 / (1 - gamma)``: a
    sample is repelled by ``generated - 1`` others. The field is balanced where ``q = alpha p_c - (alpha - 1) p_null``,
    which is no density where it is negative.

    Args:
        alpha: guidance scale of each group, ``[group]``, at least 1; 1 is no guidance.
        generated: generated samples in a group, at least 2.
        unconditional: extra negatives in a group; 0 gives weights for none, as released (division by one).

    Returns:
        ``[group]``, without gradient.

    Raises:
        ConfigError: if the counts are negative or a group has no generated sample.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``train.py`` (``uncond_w``).

    Example:
        >>> drift_negative_weight(torch.tensor([1.0, 3.0]), generated=65, unconditional=32)
        tensor([0., 4.])
    """
    if generated < 1 or unconditional < 0:
        raise ConfigError(
            f"{generated} generated and {unconditional} unconditional samples in a group: "
            "expected at least one and not fewer than none"
        )
    return (without_gradient(alpha) - 1) * (generated - 1) / max(1, unconditional)
