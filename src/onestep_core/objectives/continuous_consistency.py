"""Continuous-time consistency (sCM): the limit of consistency models, without a step size.

On the trigonometric path the consistency function ``f = cos(t) z - sin(t) sigma_data F(z, t)`` should not change along
a trajectory. The gradient of the discrete loss, divided by its step, tends to that of

    | F(z, t) - sg[F(z, t) + g] |^2,        g = cos(t) df/dt,

so ``g`` is the direction in which ``F`` should move; it is zero at the exact map. Distillation takes a teacher's
velocity as ``v``, training the velocity of the pair; nothing else differs. The minimiser samples in one evaluation,
``data = -sigma_data F(z, pi/2)``.

The value of the loss is ``|g|^2``. With normalised tangents it is close to 1 from the first step on and shows little of
the progress: watch the length of the raw tangent, and the samples.
"""

from collections.abc import Callable

from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.flow import single_pass, trigflow_tangent
from onestep_core.precision import full
from onestep_core.protocols import Derivative, Velocity
from onestep_core.regression import Regression, field_regression, normalize_tangent
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def continuous_consistency_regression(
    network: Velocity,
    z: Sample,
    v: Sample,
    t: Time,
    *,
    sigma_data: float,
    warmup: float | Time = 1.0,
    normalize: Callable[[Tensor], Tensor] | None = normalize_tangent,
    derivative: Derivative = single_pass,
) -> Regression:
    """``F(z, t)`` against ``sg[F(z, t) + normalize(g)]``, ``g`` as in :func:`~onestep_core.flow.trigflow_tangent`.

    Args:
        network: ``F(z, t)``, so that ``sigma_data F`` is a velocity and ``flow.trigflow(F)`` the consistency function.
        z: states on ``Trigonometric(sigma_data)`` at ``t``, ``[batch, *shape]``.
        v: velocities there, ``[batch, *shape]``: of the pairs (training), or of a teacher,
            ``flow.trigflow_velocity(teacher)(z, t)``, guided or not (distillation).
        t: times in [0, pi/2), ``[batch]``.
        sigma_data: standard deviation of the data, positive; the path's.
        warmup: from 0 to 1 over the first steps, :func:`~onestep_core.flow.tangent_warmup`: a number, or ``[batch]``
            where the step is compiled, which a number that changes would do anew.
        normalize: normalisation of the tangent; ``None`` leaves it as it is.
        derivative: method for ``cos(t) sin(t) dF/dt``, see :mod:`onestep_core.flow.derivatives`.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if ``sigma_data`` is not positive, a number ``warmup`` not from 0 to 1, or the network's answer not
            of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Lu and Song, Simplifying, Stabilizing and Scaling Continuous-time Consistency Models, section 4 and
    algorithm 1, https://arxiv.org/abs/2410.11081. The loss there is ``uncertainty(weight * mse(F, target),
    log_variance)`` with the prior weight ``1 / (sigma_data tan t)``, which is ``snr(t, path=path).sqrt()``.
    FastGen differs: its norm is the root mean square (``normalize_tangent(..., per_dimension=True)``), and it divides
    the mean square by the dimension once more.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Trigonometric
        >>> from onestep_core.regression import mse, snr, uncertainty
        >>> linear, log_variance = torch.nn.Linear(3, 2), torch.nn.Linear(1, 1)
        >>> path, t = Trigonometric(0.5), torch.tensor([0.4, 1.2])
        >>> z, v = path(torch.randn(2, 2), torch.randn(2, 2), t)
        >>> def net(z, t):
        ...     return linear(torch.cat([z, t[:, None]], dim=1))
        >>> raw = mse(*continuous_consistency_regression(net, z, v, t, sigma_data=0.5, warmup=0.1))
        >>> loss = uncertainty(snr(t, path=path).sqrt() * raw, log_variance(t[:, None])[:, 0]).mean()
    """
    rate = full(t).cos() * full(t).sin()
    along = (expand_like(rate, v) * full(v)).to(z.dtype), rate.to(t.dtype)
    prediction, slope = derivative(network, (z, t), along)
    z, v, t = full(z), full(v), full(t)
    tangent = trigflow_tangent(
        full(like_states(prediction, z)), z, v, full(slope), t, sigma_data=sigma_data, warmup=warmup
    )
    return field_regression(prediction, tangent if normalize is None else normalize(tangent))
