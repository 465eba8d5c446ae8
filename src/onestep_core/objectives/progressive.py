"""Progressive distillation: one step of a student where its teacher takes two.

The teacher takes two DDIM steps, from ``t`` over ``m`` to ``s``. There is exactly one denoised state with which a
single DDIM step from ``t`` arrives at the same ``z_s``. The student learns that state:

    z_m = ddim(teacher, z, t, m)      z_s = ddim(teacher, z_m, m, s)
    student(z, t)  ->  sg[(z_s - r z) / (alpha(s) - r alpha(t))]      r = sigma(s) / sigma(t)

The state ``z`` cancels. What remains is a weighted mean of the teacher's two answers, which loses no digits when steps
are short:

    sg[(1 - w) D(z, t) + w D(z_m, m)]      w = (alpha(s) - alpha(m) sigma(s) / sigma(m)) / (alpha(s) - r alpha(t))

Then the student is the next teacher, with half as many steps (:func:`onestep_core.flow.halving_stages`). A student that
equals its target makes in ``N`` steps what its teacher makes in ``2 N``, so errors of the *first* teacher's steps are
inherited and never repaired: the fixed point is its sampler, and the exact flow map only as its steps become many.

On the variance-exploding path two DDIM steps are two Euler steps of the probability flow.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.flow import ddim, frozen_value
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import Denoiser, Path
from onestep_core.regression import Regression, regression
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def progressive_regression(
    student: Denoiser,
    teacher: Denoiser,
    z: Sample,
    t: Time,
    m: Time,
    s: Time,
    *,
    path: Path,
    last: Bool[Tensor, "batch"] | None = None,
) -> Regression:
    """``student(z, t)`` against the data with which one DDIM step lands where the teacher's two steps do.

    Both networks are denoisers here; one that predicts noise, a velocity, ``v`` or two things at once is wrapped
    (``flow.denoiser_from_noise``, ``_velocity``, ``_v_prediction``, ``_both``), and what it regresses onto follows.
    The published losses are weights on ``mse`` of this pair: none ("constant"), ``snr`` (the error in noise),
    ``truncated_snr`` (the larger of the two), ``snr_plus_one`` (the error in ``v``, on variance-preserving paths).

    Args:
        student: the network, ``(z, t) -> data``; initialised from the teacher.
        teacher: the network of the stage before, ``(z, t) -> data``, evaluated twice. Freeze its parameters: a graph
            through them would be built in vain.
        z: states on ``path`` at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``, where ``sigma`` is positive.
        m: middle times, ``[batch]``; halfway in ``t``, or in the quantity in which the grid is uniform
            (:func:`onestep_core.flow.progressive_times`).
        s: target times, ``[batch]``, other than ``t``.
        path: gives ``alpha`` and ``sigma``.
        last: which samples are in the step that ends at the data. Their target is the teacher's denoised state at the
            middle time: with no noise left at ``s`` the two agree, with a little left it drops that little.

    Returns:
        Prediction and target in data space, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree, or ``last`` is no mask.

    Source: Salimans and Ho, Progressive Distillation for Fast Sampling of Diffusion Models, algorithm 2,
    https://arxiv.org/abs/2202.00512. The released code marks the last step; openai/consistency_models
    (``progdist_losses``) does not, and there ``s = 0`` leaves no noise.

    Example:
        >>> from functools import partial
        >>> from onestep_core.flow import Linear, progressive_times, uniform_levels
        >>> from onestep_core.regression import mse, truncated_snr
        >>> path, index = Linear(0.01), torch.tensor([0, 3])
        >>> t, m, s = progressive_times(index, 4, levels=partial(uniform_levels, path=path))
        >>> z, _ = path(torch.zeros(2, 3), torch.randn(2, 3), t)
        >>> denoiser = lambda z, t: 0.5 * z
        >>> pair = progressive_regression(denoiser, denoiser, z, t, m, s, path=path, last=index == 3)
        >>> loss = (mse(*pair) * truncated_snr(t, path=path)).mean()
    """
    start = z.detach()
    first = full(like_states(frozen_value(teacher, start, t), start))
    middle = ddim(lambda z, t: first, without_gradient(z), t, m, path=path).to(z.dtype)
    second = full(like_states(frozen_value(teacher, middle, m.to(t.dtype)), start))
    # The state itself cancels: the target lies between the two expected data, and what it adds to them is small.
    target = first + expand_like(_share_of_second(t, m, s, path), first) * (second - first)
    if last is not None:
        target = torch.where(expand_like(last, second), second, target)
    return regression(like_states(student(z, t), z), target)


def _share_of_second(t: Time, m: Time, s: Time, path: Path) -> Tensor:
    """Factor of the data in a DDIM step from ``m`` to ``s``, divided by that of a step from ``t`` to ``s``:
    ``[batch]``."""
    (alpha_t, sigma_t), (alpha_m, sigma_m), (alpha_s, sigma_s) = (
        path.coefficients(without_gradient(time)) for time in (t, m, s)
    )
    return (alpha_s - sigma_s / sigma_m * alpha_m) / (alpha_s - sigma_s / sigma_t * alpha_t)
