"""Adversarial losses: one number per sample from a discriminator's logits, and what keeps them in bounds.

These are no regressions: there is no target, and the value of a loss shows which network is ahead, not how good the
samples are. The
discriminator is the caller's; here are the two pairs of losses that one-step generation uses, each with the side of the
generator and the side of the discriminator:

===============  ==========================  ==========================================  ==============================
pair             generator                   discriminator                               used by
===============  ==========================  ==========================================  ==============================
non-saturating   ``softplus(-fake)``         ``softplus(-real) + softplus(fake)``        DMD2, f-distill
hinge            ``-fake``                   ``relu(1 - real) + relu(1 + fake)``         CTM, ADD, LADD
===============  ==========================  ==========================================  ==============================

Logits are ``[batch, *heads]``, larger for real; more than one a sample (patches, layers) are averaged.

On the side of the discriminator give logits of *detached* samples; on the side of the generator freeze the
discriminator's parameters and let the gradient pass to its input.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from onestep_core.errors import ConfigError
from onestep_core.precision import full, without_gradient
from onestep_core.shapes import per_sample_mean, per_sample_sum
from onestep_core.typing import PerSample, Sample, typed
from onestep_core.validators import require_not_negative


@typed
def non_saturating_generator(fake: Sample) -> PerSample:
    """``softplus(-fake)``, the mean over a sample's logits.

    Args:
        fake: logits of generated samples, with their graph, ``[batch, *heads]``.

    Source: Goodfellow et al., Generative Adversarial Networks, section 3, https://arxiv.org/abs/1406.2661; Yin et al.,
    Improved Distribution Matching Distillation, section 4.3, https://arxiv.org/abs/2405.14867.

    Example:
        >>> non_saturating_generator(torch.zeros(1, 1))
        tensor([0.6931])
    """
    return per_sample_mean(softplus(-full(fake)))


@typed
def non_saturating_discriminator(real: Sample, fake: Sample) -> PerSample:
    """``softplus(-real) + softplus(fake)``, the mean over a sample's logits.

    Args:
        real: logits of data, ``[batch, *heads]``.
        fake: logits of as many generated samples, ``[batch, *heads]``.

    Raises:
        ArgumentError: if the shapes differ.

    Source: as :func:`non_saturating_generator`.

    Example:
        >>> non_saturating_discriminator(torch.zeros(1, 1), torch.zeros(1, 1))
        tensor([1.3863])
    """
    return per_sample_mean(softplus(-full(real)) + softplus(full(fake)))


@typed
def hinge_generator(fake: Sample) -> PerSample:
    """``-fake``, the mean over a sample's logits. Arguments as :func:`non_saturating_generator`.

    Source: Lim and Ye, Geometric GAN, https://arxiv.org/abs/1705.02894; Kim et al., Consistency Trajectory Models,
    https://arxiv.org/abs/2310.02279 (sony/ctm, ``get_GAN_loss``).

    Example:
        >>> hinge_generator(torch.tensor([[2.0, 4.0]]))
        tensor([-3.])
    """
    return per_sample_mean(-full(fake))


@typed
def hinge_discriminator(real: Sample, fake: Sample) -> PerSample:
    """``relu(1 - real) + relu(1 + fake)``, the mean over a sample's logits.

    Arguments and errors as :func:`non_saturating_discriminator`, source as :func:`hinge_generator`.

    Example:
        >>> hinge_discriminator(torch.tensor([[3.0]]), torch.tensor([[-0.5]]))
        tensor([0.5000])
    """
    return per_sample_mean(relu(1 - full(real)) + relu(1 + full(fake)))


@typed
def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Sample) -> PerSample:
    """``|d logit / d real|^2`` at data, with the graph that trains the discriminator.

    The published penalty is ``gamma / 2`` times it. Logits of a sample are summed, so the samples of a batch must not
    interact: no batch normalisation in training mode.

    Args:
        discriminator: ``[batch, *shape] -> [batch, *heads]``.
        real: data, ``[batch, *shape]``.

    Source: Mescheder et al., Which Training Methods for GANs do actually Converge?, section 4.1,
    https://arxiv.org/abs/1801.04406; Sauer et al., Adversarial Diffusion Distillation, https://arxiv.org/abs/2311.17042.

    Example:
        >>> r1_penalty(lambda x: 3 * x, torch.ones(2, 4))
        tensor([36., 36.])
    """

    def total(x: Tensor) -> Tensor:
        return full(discriminator(x)).sum()

    slope = cast(Tensor, torch.func.grad(total)(real.detach()))
    return per_sample_sum(full(slope).square())


@typed
def gradient_balance(
    reference: Tensor, gradient: Tensor, *, epsilon: float = 1e-4, smallest: float = 0.0, largest: float = 1e4
) -> Float[Tensor, ""]:
    """``clamp(|reference| / (|gradient| + epsilon), smallest, largest)``: the factor that gives two losses equally
    large gradients.

    Of the gradients of a main and of an added loss at one tensor that both reach, the last layer's weight as published:

        reference, gradient = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (main, added))
        total = main + gradient_balance(reference, gradient) * added

    Args:
        reference: gradient of the main loss, any shape.
        gradient: gradient of the added loss, of the same shape.
        epsilon: keeps the factor finite.
        smallest: lower bound; the released CTM takes 0.01 for its adversarial term.
        largest: upper bound; 10 there, 1e4 for its denoising term.

    Returns:
        One number, 0-d, without gradient.

    Raises:
        ConfigError: if the shapes differ, or the bounds are out of order.

    Source: Esser et al., Taming Transformers for High-Resolution Image Synthesis, section 3.1 (there epsilon 1e-6),
    https://arxiv.org/abs/2012.09841; Kim et al., Consistency Trajectory Models, https://arxiv.org/abs/2310.02279
    (sony/ctm, ``calculate_adaptive_weight``).

    Example:
        >>> gradient_balance(torch.full((4,), 3.0), torch.ones(4), epsilon=0.0)
        tensor(3.)
    """
    require_not_negative("epsilon", epsilon)
    if reference.shape != gradient.shape:
        raise ConfigError(
            f"gradients of shape {tuple(reference.shape)} and {tuple(gradient.shape)}: take both at one tensor"
        )
    if not 0 <= smallest <= largest:
        raise ConfigError(f"bounds from {smallest} to {largest}: expected 0 <= smallest <= largest")
    ratio = without_gradient(reference).square().sum().sqrt() / (
        without_gradient(gradient).square().sum().sqrt() + epsilon
    )
    return ratio.clamp(smallest, largest)
