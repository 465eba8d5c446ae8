"""Distribution matching distillation: samples move along the gap between a teacher's score and their own score.

Samples ``x`` are noised to ``z``. There the *real* denoiser, a frozen teacher, estimates the expected data, and the
*fake* one, trained on the current samples, the expected sample. The gap of the two is the displacement,

    loss = distance(x, sg[x + field]),    field = scale (R - F) / mean |x - R|,

or, without the normaliser, ``field = scale alpha (score real - score fake)``, whose gradient in the generator's
parameters is exactly that of ``sum_t scale KL(noised samples | noised data)``. The normaliser rescales that gradient
sample by sample, and so changes its direction.

The other parts of the published methods are other objectives of this library:

* the fake score: :func:`~onestep_core.objectives.denoising_regression` on detached samples, several updates for each of
  the generator's (DMD2: five);
* DMD's pairs: :func:`~onestep_core.objectives.knowledge_distillation_regression`, the generator's output for a noise
  against what the teacher's sampler makes of it;
* DMD2's adversary: :func:`~onestep_core.regression.non_saturating_generator` and its counterpart on logits of a head
  that reads the features of the **fake** score network, which moves with the generator; a head on the teacher is
  another method;
* several steps: the student's input is what its own sampler produced at that time, not noised data (backward
  simulation);
* no second network: the samples' distribution by a kernel, ``partial(empirical_denoiser, ...)`` of the batch itself.
  With the data's in the same way, this is drifting by mean shift;
* divergences other than the reverse KL: :func:`~onestep_core.fields.f_divergence_scale`.

Real and fake denoiser are called without a graph: neither receives a gradient. The loss is ``|field|^2``; with the
normaliser it shows nothing of the progress. Watch the fake score's own loss, and distances of samples to data.
"""

from onestep_core.errors import like_states
from onestep_core.fields import denoising_error, score_gap
from onestep_core.flow import frozen_value
from onestep_core.precision import without_gradient
from onestep_core.protocols import Denoiser, Normalizer, Path
from onestep_core.regression import Regression, field_regression, snr
from onestep_core.typing import Sample, Time, typed


@typed
def distribution_matching_regression(
    real: Denoiser,
    fake: Denoiser,
    samples: Sample,
    z: Sample,
    t: Time,
    *,
    path: Path,
    scale: Time | None = None,
    normalizer: Normalizer | None = denoising_error,
) -> Regression:
    """``x`` against ``sg[x + score_gap(x, real(z, t), fake(z, t))]``.

    Args:
        real: the teacher, ``(z, t) -> expected data``; guidance wraps it (``classifier_free``), other predictions are
            adapted by ``denoiser_from_velocity`` and its like.
        fake: the same for the generator's samples.
        samples: ``x``, the generator's output, with its graph, ``[batch, *shape]``.
        z: the samples noised, ``path(samples, noise, t).z``, ``[batch, *shape]``.
        t: times, ``[batch]``; published: even over the middle 96 % of the steps, see ``flow.central_steps``.
        path: gives ``alpha`` and ``sigma``.
        scale: factor of every sample's displacement, ``[batch]``: a weight in time, ``f_divergence_scale(...)``.
            Without one, 1. DMD's is ``signal_weight(t, path=path)``; DMD2's code has none.
        normalizer: ``(x, R) -> [batch]``, divides; ``partial(denoising_error, epsilon=1e-6)`` in FastGen. ``None``: the
            gap is one of scores, ``alpha (score real - score fake)``, which is ``snr`` times the gap of denoised
            samples and needs noise (``sigma > 0``).

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32. With ``mse`` the released loss is half its
        mean, and ``-field / numel`` its gradient in the samples.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, eq. 7 and 8,
    https://arxiv.org/abs/2311.18828; Improved Distribution Matching Distillation, https://arxiv.org/abs/2405.14867;
    Luo et al., Diff-Instruct, https://arxiv.org/abs/2305.18455 (without normaliser).

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> from onestep_core.regression import mse
        >>> samples, t = torch.randn(4, 3, requires_grad=True), torch.full((4,), 0.5)
        >>> z, _ = Linear()(samples.detach(), torch.randn(4, 3), t)
        >>> pair = distribution_matching_regression(lambda z, t: 0 * z, lambda z, t: z, samples, z, t, path=Linear())
        >>> mse(*pair).mean().backward()
    """
    z, t = z.detach(), t.detach()
    if normalizer is None:
        scores = snr(t, path=path)
        scale = scores if scale is None else scores * without_gradient(scale)
    denoised = (like_states(frozen_value(denoiser, z, t), z) for denoiser in (real, fake))
    return field_regression(samples, score_gap(samples, *denoised, scale=scale, normalizer=normalizer))
