"""MeanFlow: the average velocity of a jump, learnt from the instantaneous one without a teacher.

Differentiating ``(s - t) a(z, t, s) = integral of v`` along the trajectory gives the eulerian identity

    a(z, t, s) = v(z, t) + (s - t) D_t a(z, t, s),

where ``D_t`` is the derivative of ``(z, t, s)`` along ``(v, 1, 0)``. Its right side, frozen, is the target; at
``s = t`` it is flow matching. The minimiser samples in one evaluation: ``data = z - a(z, 1, 0)`` on the linear path.

The formula "v = d_z u . v + d_t u", which some texts give, holds for the *displacement* ``(t - r) u`` and not for the
average velocity. The paper and its code order times ``(z, r, t)``, target first, with tangents ``(v, 0, 1)``.
"""

from onestep_core.errors import like_states
from onestep_core.flow import eulerian_derivative, eulerian_target, single_pass
from onestep_core.protocols import AverageVelocity, Derivative
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def meanflow_regression(
    average_velocity: AverageVelocity,
    z: Sample,
    v: Sample,
    t: Time,
    s: Time,
    *,
    scale: float | Time = 1.0,
    moving: int | None = None,
    derivative: Derivative = single_pass,
) -> Regression:
    """``a(z, t, s)`` against ``sg[v + scale (s - t) D_t a(z, t, s)]``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``.
        z: states on a path at ``t``, ``[batch, *shape]``.
        v: velocities there, ``[batch, *shape]``: of the pairs, of a teacher, or guided; also the tangent of ``z``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``; on either side of ``t``.
        scale: factor of the derivative, a number or ``[batch]``: a warm-up from 0 to 1.
        moving: a promise that ``scale (s - t)`` is zero beyond the first ``moving`` samples, by which a derivative may
            save.
        derivative: method for the tangent, see :mod:`onestep_core.flow.derivatives`.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, eq. 6-11 and algorithm 1,
    https://arxiv.org/abs/2505.13447. The released codes weight the squared distance *summed* over a sample by
    ``adaptive(power=1.0, epsilon=0.01)`` (JAX) or ``adaptive(power=0.75, epsilon=0.001)`` (PyTorch).

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> from onestep_core.regression import adaptive, squared_l2
        >>> network = torch.nn.Linear(4, 2)
        >>> def net(z, t, s):
        ...     return network(torch.cat([z, t[:, None], s[:, None]], dim=1))
        >>> t, s = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5])
        >>> z, v = Linear()(torch.randn(2, 2), torch.randn(2, 2), t)
        >>> raw = squared_l2(*meanflow_regression(net, z, v, t, s))
        >>> loss = (raw * adaptive(raw, power=1.0, epsilon=0.01)).mean()
    """
    prediction, slope = eulerian_derivative(average_velocity, z, v, t, s, derivative=derivative, moving=moving)
    return regression(like_states(prediction, z), eulerian_target(v, slope, t, s, scale=scale))
