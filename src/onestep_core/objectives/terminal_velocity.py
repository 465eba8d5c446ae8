"""Terminal velocity matching: as the target time changes, the end of a jump moves with the velocity at that end.

With ``X(z, t, s) = z + (s - t) a(z, t, s)`` the trajectory through ``z``, its end obeys

    D_s X = a(z, t, s) + (s - t) D_s a(z, t, s) = v(X, s)

the lagrangian identity. The left side is the prediction. With the gradient through ``D_s a`` (the default) the loss
bounds a distance between distributions; with a frozen derivative the difference is that of ``a`` and the lagrangian
target, Lagrangian self-distillation. The identity does *not* give the velocity: ``v`` is a
teacher's, or the network's own at ``s = t``, which flow matching on the same network then has to learn.
"""

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value, lagrangian_derivative, with_graph
from onestep_core.precision import full
from onestep_core.protocols import AverageVelocity, Derivative, Velocity
from onestep_core.regression import Regression, regression
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def terminal_velocity_regression(
    average_velocity: AverageVelocity,
    velocity: Velocity,
    z: Sample,
    t: Time,
    s: Time,
    *,
    derivative: Derivative = with_graph,
) -> Regression:
    """``a(z, t, s) + (s - t) D_s a(z, t, s)`` against ``sg[velocity(X, s)]``, ``X = z + (s - t) sg[a]``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``.
        velocity: ``(z, t) -> dz/dt``: a teacher, or ``instantaneous`` of a moving average. Gets no gradient.
        z: states on a path at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``; where ``s = t`` it compares ``a(z, t, t)`` with ``velocity(z, t)``.
        derivative: method for ``D_s a``. ``with_graph`` trains through it, at the price of a second-order graph; any
            other of :mod:`onestep_core.flow.derivatives` freezes it.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32. The prediction is the velocity at the end of
        the jump, not the average.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.
        NotImplementedError: from torch, where an operation has no forward derivative.

    Source: Zhou et al., Terminal Velocity Matching, section 3, https://arxiv.org/abs/2511.19797; with a frozen
    derivative Boffi et al., How to Build a Consistency Model, https://arxiv.org/abs/2505.18825. The released TVM adds
    ``flow_matching_regression(instantaneous(average_velocity), z', v, t')`` at other times of the same pair, weights
    both by ``beta^2 = 1 / omega^2`` for the guidance scale ``omega`` (an input of the network), may multiply the
    network by ``omega``, and leaves pairs with ``s = t`` out of this part.

    Example:
        >>> import torch
        >>> from onestep_core.flow import instantaneous
        >>> def net(z, t, s):
        ...     return -z * s[:, None]
        >>> z, t, s = torch.ones(1, 1), torch.ones(1), torch.tensor([0.5])
        >>> terminal_velocity_regression(net, instantaneous(net), z, t, s)
        Regression(prediction=tensor([[0.]]), target=tensor([[-0.6250]]))
    """
    average, slope = lagrangian_derivative(average_velocity, z, t, s, derivative=derivative)
    duration, average = expand_like(full(s) - full(t), z), full(like_states(average, z))
    reached = full(z).detach() + duration * average.detach()
    target = like_states(frozen_value(velocity, reached.to(z.dtype), s), z)
    return regression(average + duration * full(slope), target)
