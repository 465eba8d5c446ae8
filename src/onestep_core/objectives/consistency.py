"""Consistency: two states of one trajectory have the same end.

A consistency function ``f(z, t)`` is where the trajectory through ``z`` at ``t`` ends, so for any two of its states

    f(z, t) = f(z_m, m),    f(z, end) = z.

The left side is regressed onto the right side, frozen, with ``m`` between ``t`` and the data end. The published methods
differ only in their arguments:

===========================  =====================================================================================
consistency distillation     ``z_m`` by a solver step of a teacher: ``heun(velocity, z, t, m)``, guided or not
consistency training         ``z_m = path(data, noise, m).z``, the same pair as ``z``: a step without a teacher
improved training (iCT)      training with ``target = online``, ``pseudo_huber``, weight ``inverse_duration``, and times
                             by ``discretized_log_normal`` on a grid of ``doubling_points``
easy tuning (ECT)            training from a pretrained denoiser, ``m = ect_times(t)``, ``end=0.0``, distance ``l2``
truncated (TCM)              training for ``t >= transition``, ``target = truncated(online, first stage)``
===========================  =====================================================================================

Neither identity is enough alone: a constant satisfies the first, and only a function that is the identity at the data
end for every network (:func:`~onestep_core.flow.preconditioning.consistency`) excludes it. With ``z_m`` from the pair
instead of the flow the exact function is *not* a minimiser: the target is then random given ``z``, and its mean differs
from ``f(z, t)`` by ``O((t - m)^2)``. At ``m = end`` the minimiser is the posterior mean: this is denoising.
"""

import torch

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value
from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction
from onestep_core.regression import Regression, regression
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import require_finite


@typed
def consistency_regression(
    online: ConsistencyFunction,
    target: ConsistencyFunction,
    z: Sample,
    z_m: Sample,
    t: Time,
    m: Time,
    *,
    end: float | None = None,
) -> Regression:
    """``online(z, t)`` against ``sg target(z_m, m)``; against ``z_m`` itself where ``m`` has reached ``end``.

    ``online`` is evaluated first, then ``target`` without graph: it costs no activations, and a wrapper for data
    parallelism may be both. One dropout mask for the two is the adapters' ``shared_dropout``.

    Args:
        online: the network, ``(z, t) -> end of the trajectory``.
        target: the network itself (iCT, ECT), its moving average, or a composition of several.
        z: states on a path at ``t``, ``[batch, *shape]``.
        z_m: states on the same trajectories at ``m``, ``[batch, *shape]``.
        t: times, ``[batch]``, on the noise side of ``end``.
        m: times nearer to the data, ``[batch]``; the path's time may run in either direction.
        end: the path's data time. Where ``m`` lies there or beyond, the target is ``z_m`` and what ``target`` says
            is not used, be it finite or not. Without it, the boundary condition of ``target`` has to do this.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Song et al., Consistency Models, eq. 7 (distillation) and eq. 10 (training), algorithms 2 and 3,
    https://arxiv.org/abs/2303.01469; Song and Dhariwal, Improved Techniques for Training Consistency Models,
    https://arxiv.org/abs/2310.14189; Geng et al., Consistency Models Made Easy, https://arxiv.org/abs/2406.14548;
    Lee et al., Truncated Consistency Models, https://arxiv.org/abs/2410.14895. The released ECT code sets a target
    that is not a number to zero before it puts the data in; here it stays visible. Its loss is ``l2`` or
    ``pseudo_huber`` times ``inverse_duration``; that of the released CM code ``mse`` or ``l1`` times a weight at ``t``.

    Example:
        Consistency training with the network as its own target:

        >>> from onestep_core.flow import VarianceExploding, consistency
        >>> from onestep_core.regression import inverse_duration, pseudo_huber
        >>> network, path = torch.nn.Linear(3, 2), VarianceExploding()
        >>> def raw(z, sigma):
        ...     return network(torch.cat([z, sigma.log()[:, None]], dim=1))
        >>> f = consistency(raw)
        >>> data, noise, t, m = torch.zeros(2, 2), torch.randn(2, 2), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.5])
        >>> pair = consistency_regression(f, f, path(data, noise, t).z, path(data, noise, m).z, t, m)
        >>> loss = (pseudo_huber(*pair, c=0.001) * inverse_duration(t, m)).mean()
    """
    require_finite("end", 0.0 if end is None else end)
    prediction = like_states(online(z, t), z)
    goal = full(like_states(frozen_value(target, z_m.to(z.dtype), m.to(t.dtype)), z))
    t, m = full(t), full(m)
    if end is not None:
        arrived = (m - end).sign() * (t - end).sign() <= 0
        goal = torch.where(expand_like(arrived, goal), full(z_m), goal)
    return regression(prediction, goal)
