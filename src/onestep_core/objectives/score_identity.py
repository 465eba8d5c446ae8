"""Score identity distillation (SiD): the squared gap of two scores, estimated without the samples' score.

With ``R`` and ``F`` the estimates of the real and of the fake denoiser at ``z``, a noised sample ``x``, the expected
squared gap ``E |R - F|^2`` is a Fisher divergence of the noised distributions, but the fake score moves with the
generator. Where the fake denoiser is exact, ``F = E[x | z]`` gives ``E <R - F, F - x> = 0`` for the samples' own
distribution, and so for every ``alpha``

    E <R - F, (R - x) - alpha (R - F)> = (1 - alpha) E |R - F|^2.

That holds for the *value*. The gradient is different, since training keeps the fake score fixed: at ``alpha = 1/2`` the
loss is ``(|R - x|^2 - |F - x|^2) / 2``, the fake denoiser is at the minimum of the second term, and the gradient is
exactly half of the divergence's. The published ``alpha = 1.2`` gives no divergence's gradient; it was chosen by
results. The value shows nothing of the progress: it is often negative.

This objective returns a loss and not a pair: nothing in it is a target. The gradient passes through ``x``, through
``z`` and **through both denoisers** to the generator. The denoisers' parameters must not receive any:
``onestep_adapters.networks.frozen(module)`` makes such a callable; one under ``no_grad`` would stop the gradient
through ``z``.
"""

from functools import partial

from onestep_core.errors import like_states
from onestep_core.fields import denoising_error
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import Denoiser, Normalizer
from onestep_core.shapes import expand_like, per_sample_sum
from onestep_core.typing import PerSample, Sample, Time, typed
from onestep_core.validators import require_finite

released_normalizer: Normalizer = partial(denoising_error, floor=1e-5)
"""``max(mean |x - R|, 1e-5)``."""


@typed
def score_identity(
    samples: Sample,
    real_denoised: Sample,
    fake_denoised: Sample,
    *,
    alpha: float,
    scale: Time | None = None,
    normalizer: Normalizer | None = released_normalizer,
) -> Sample:
    """``scale (R - F) [(R - x) - alpha (R - F)] / normalizer(x, R)``, coordinate by coordinate, with its graph.

    For loops that have both estimates already; :func:`score_identity_loss` is its sum over a sample. Arguments as
    there, the two estimates ``[batch, *shape]``.

    Returns:
        ``[batch, *shape]``, in at least float32.

    Raises:
        ArgumentError: if shapes disagree.

    Example:
        >>> import torch
        >>> x, real, fake = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]])
        >>> score_identity(x, real, fake, alpha=0.5, normalizer=None)
        tensor([[0.5000, 0.0000]])
    """
    require_finite("alpha", alpha)
    x, real = full(samples), full(real_denoised)
    gap = real - full(fake_denoised)
    product = gap * ((real - x) - alpha * gap)
    if normalizer is not None:
        product = product / expand_like(without_gradient(normalizer(samples, real_denoised)), product)
    return product if scale is None else product * expand_like(without_gradient(scale), product)


@typed
def score_identity_loss(
    real: Denoiser,
    fake: Denoiser,
    samples: Sample,
    z: Sample,
    t: Time,
    *,
    alpha: float,
    scale: Time | None = None,
    normalizer: Normalizer | None = released_normalizer,
) -> PerSample:
    """``sum (R - F) [(R - x) - alpha (R - F)] / w`` over a sample, for ``R = real(z, t)``, ``F = fake(z, t)``.

    Args:
        real: the teacher, ``(z, t) -> expected data``; the gradient passes through it to ``z``.
        fake: the same for the generator's samples, likewise; it is trained by
            :func:`~onestep_core.objectives.denoising_regression` on detached samples.
        samples: ``x``, the generator's output, with its graph, ``[batch, *shape]``.
        z: the samples noised, with *their* graph, ``path(samples, noise, t).z``, ``[batch, *shape]``.
        t: times, ``[batch]``.
        alpha: 1.2 as released; 1 in one of the paper's two settings.
        scale: a factor of each sample's loss, ``[batch]``, a weight in time; 1 without it.
        normalizer: divides, without gradient, ``[batch]``; ``max(mean |x - R|, 1e-5)`` as released. ``None``: nothing
            divides.

    Returns:
        One loss a sample, ``[batch]``, in at least float32, of either sign.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Zhou et al., Score identity Distillation, eq. 23 (the loss), https://arxiv.org/abs/2404.04057;
    mingyuanzhou/SiD, ``SID_EDMLoss.generator_loss``, which sums over a batch and draws noise levels from a Karras grid
    at ``1 - u t_max / 1000``.

    Example:
        >>> import torch
        >>> from onestep_core.flow import VarianceExploding
        >>> scale = torch.ones(3, requires_grad=True)
        >>> samples, t = scale * torch.randn(4, 3), torch.full((4,), 0.5)
        >>> z, _ = VarianceExploding()(samples, torch.randn(4, 3), t)
        >>> loss = score_identity_loss(lambda z, t: 0.5 * z, lambda z, t: 0.8 * z, samples, z, t, alpha=1.2)
        >>> loss.mean().backward()
    """
    estimates = (like_states(denoiser(z, t), z) for denoiser in (real, fake))
    products = score_identity(samples, *estimates, alpha=alpha, scale=scale, normalizer=normalizer)
    return per_sample_sum(products)
