"""SplitMeanFlow: an average velocity that agrees with itself, without a derivative.

Average velocities add up along a trajectory, which is the semigroup identity

    (s - t) a(z, t, s) = (m - t) a(z, t, m) + (s - m) a(z_m, m, s)      z_m = z + (m - t) a(z, t, m)

for every middle time. Its right side, frozen, is the target. MeanFlow's identity is the limit ``m -> t``. The identity
does *not* determine the flow: every flow agrees with itself, the one that never moves too. Flow matching at ``s = t``
on a part of the batch determines it.
"""

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value, two_jump_target
from onestep_core.protocols import AverageVelocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def split_meanflow_regression(
    average_velocity: AverageVelocity, frozen: AverageVelocity, z: Sample, t: Time, m: Time, s: Time
) -> Regression:
    """``a(z, t, s)`` against ``sg[((m - t) a'(z, t, m) + (s - m) a'(z_m, m, s)) / (s - t)]``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``.
        frozen: the network of the two jumps: the network itself, or a moving average of it. Gets no gradient.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``, between ``t`` and ``s``: ``time_between(t, s, share=u)`` for draws ``u`` in
            (0, 1).
        s: target times, ``[batch]``; where ``s = t`` the target is ``a'(z, t, m)``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Guo et al., SplitMeanFlow, eq. 8 (interval splitting consistency), https://arxiv.org/abs/2507.16884. No code
    was released.

    Example:
        >>> import torch
        >>> from onestep_core.flow import time_between
        >>> def net(z, t, s):
        ...     return z
        >>> z, t, s = torch.ones(1, 1), torch.ones(1), torch.zeros(1)
        >>> split_meanflow_regression(net, net, z, t, time_between(t, s, share=0.5), s)
        Regression(prediction=tensor([[1.]]), target=tensor([[0.7500]]))
    """
    target = two_jump_target(like_states(frozen_value(frozen, z, t, m.to(t.dtype)), z), frozen, z, t, m, s)
    return regression(like_states(average_velocity(z, t, s), z), target)
