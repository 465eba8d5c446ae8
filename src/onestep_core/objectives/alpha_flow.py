"""alpha-Flow: one family of objectives, from flow matching along whole jumps to MeanFlow.

The first share ``alpha`` of a jump uses the pair's velocity, the rest the frozen network's:

    a(z, t, s)  against  sg[alpha v + (1 - alpha) a'(z_m, m, s)]      m = t + alpha (s - t),  z_m = z + (m - t) v

At ``alpha = 1`` this is flow matching of ``a(., ., s)`` onto ``v`` for every ``s``. As ``alpha -> 0`` the gradient of
its squared loss, divided by ``alpha``, tends to MeanFlow's; no derivative is needed before that limit. The exact
average velocity is *not* its fixed point: ``z_m`` leaves the trajectory by ``alpha (s - t) (v - E[v | z])``, so ``a'``
is averaged over a neighbourhood, and the fixed point is off by ``O(alpha)``.

Training with ``alpha`` annealed from 1 to 0 (:func:`onestep_core.flow.alpha_schedule`) learns an easy average first.
"""

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow import time_between, two_jump_target
from onestep_core.protocols import AverageVelocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def alpha_flow_regression(
    average_velocity: AverageVelocity,
    frozen: AverageVelocity,
    z: Sample,
    v: Sample,
    t: Time,
    s: Time,
    *,
    alpha: float,
    bound: float | None = None,
) -> Regression:
    """``a(z, t, s)`` against ``sg[alpha v + (1 - alpha) a'(z + alpha (s - t) v, t + alpha (s - t), s)]``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``.
        frozen: the network of the target: the network itself, or a moving average of it. Gets no gradient.
        z: states on a path at ``t``, ``[batch, *shape]``.
        v: velocities there, ``[batch, *shape]``: of the pairs, or guided.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``; where ``s = t`` the target is ``v``.
        alpha: share of the jump along ``v``, in (0, 1].
        bound: the target is clipped to ``[-bound, bound]``; 4 in the released code, not clipped where ``None``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if ``alpha`` is not in (0, 1]; at 0 use ``meanflow_regression``. If ``bound`` is not positive, or a
            network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Zhang et al., AlphaFlow: Understanding and Improving MeanFlow Models, https://arxiv.org/abs/2510.20771. The
    released code weights the distance, averaged over a sample, by ``alpha * adaptive(power=1.0, epsilon=0.001)`` here
    and by ``adaptive`` alone on the pairs with ``s = t``, which come first in the batch; it never clips those, nor
    MeanFlow's target once ``alpha`` is 0. Without an adaptive weight the factor ``1 / alpha`` gives MeanFlow's size of
    step; under one of power 1, whose loss falls as ``alpha^2``, the factor ``alpha`` does.

    Example:
        >>> import torch
        >>> from onestep_core.regression import adaptive, mse
        >>> def net(z, t, s):
        ...     return z
        >>> one, t, s, alpha = torch.ones(1, 2), torch.ones(1), torch.zeros(1), 0.5
        >>> pair = alpha_flow_regression(net, net, one, one, t, s, alpha=alpha)
        >>> pair.target
        tensor([[0.7500, 0.7500]])
        >>> raw = mse(*pair)
        >>> loss = (raw * alpha * adaptive(raw, power=1.0, epsilon=0.001)).mean()
    """
    if not 0 < alpha <= 1:
        raise ConfigError(
            f"alpha = {alpha}: expected 0 < alpha <= 1; "
            "the limit alpha -> 0 is MeanFlow: call meanflow_regression there"
        )
    target = two_jump_target(v, frozen, z, t, time_between(t, s, share=alpha), s, bound=bound)
    return regression(like_states(average_velocity(z, t, s), z), target)
