"""SoFlow: the solution of the flow's equation, learnt from three times and without a derivative.

The solution ``f(z, t, s)`` through ``z`` at ``t`` is constant along its own trajectory: with a first step of Euler's
method along the pair's velocity,

    f(z, t, s)  against  sg[f'(z + (m - t) v, m, s)]

for ``m`` between ``t`` and ``s``, close to ``t``. Two further conditions make ``f`` the solution: ``f(z, t, t) = z``,
which the parameterisation has to guarantee (``flow_map_from_average_velocity``), and flow matching of the slope at
``s = t``.

In average velocities it is alpha-Flow with ``alpha = (m - t) / (s - t)``, multiplied by ``s - t``, and has its bias.
"""

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value
from onestep_core.precision import full
from onestep_core.protocols import FlowMap
from onestep_core.regression import Regression, regression
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def solution_flow_regression(
    solution: FlowMap, frozen: FlowMap, z: Sample, v: Sample, t: Time, m: Time, s: Time
) -> Regression:
    """``f(z, t, s)`` against ``sg[f'(z + (m - t) v, m, s)]``: the solution-consistency part of the batch.

    The other part is flow matching of the average velocity behind ``solution``,
    ``flow_matching_regression(instantaneous(average_velocity), z, v, t)``.

    Args:
        solution: the network's map, ``(z, t, s) -> state at s``, the identity at ``s = t``.
        frozen: the same, of the network itself or a moving average. Gets no gradient.
        z: states on a path at ``t``, ``[batch, *shape]``.
        v: velocities there, ``[batch, *shape]``: of the pairs, or guided.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``: ``time_between(t, s, share=r)`` with ``r`` falling during training.
        s: target times, ``[batch]``.

    Returns:
        Prediction and target, states at ``s``, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Luo et al., SoFlow: Solution Flow Models for One-Step Generative Modeling,
    https://arxiv.org/abs/2512.15657. The released code lets ``r`` fall from 0.1 to 0.002 by an
    :func:`onestep_core.flow.exponential_ramp`, keeps ``t - m`` and ``t - s`` above 1e-4, and gives three quarters of
    the batch to flow matching. Its weight of this part grows as ``t - m`` falls; no source for its formula was found,
    so none is given here. Divided by ``(t - m)^2`` the distance is independent of ``r`` to first order; divided by
    ``(t - m) (t - s)`` its gradient is, and tends to MeanFlow's as ``r`` falls.

    Example:
        >>> import torch
        >>> from onestep_core.flow import time_between, flow_map_from_average_velocity
        >>> def net(z, t, s):
        ...     return z
        >>> f, one, t, s = flow_map_from_average_velocity(net), torch.ones(1, 1), torch.ones(1), torch.zeros(1)
        >>> solution_flow_regression(f, f, one, one, t, time_between(t, s, share=0.5), s)
        Regression(prediction=tensor([[0.]]), target=tensor([[0.2500]]))
    """
    m = m.to(t.dtype)  # The state lies at the time that the map is told.
    middle = full(z) + expand_like(full(m) - full(t), z) * full(v)
    target = frozen_value(frozen, middle.to(z.dtype), m, s)
    return regression(like_states(solution(z, t, s), z), like_states(target, z))
