"""Rectified flow and knowledge distillation: direct regression onto the end of a teacher's trajectory.

The target time of the second jump is here the middle time, so the network is never its own target: a solver has
followed a teacher from ``z`` at ``t`` to ``end`` at ``s``, and that pair is the only supervision. *Reflow* learns a
velocity along the straight line between the two, *knowledge distillation* learns the end itself.

**Reflow is flow matching.** Only the pairs are special: each noise is coupled with the data that a teacher made of it,
instead of with any data. On the linear path, with a solver and a frozen teacher ``v``,

    noise -> data = integrate(partial(heun, v), Linear().prior(noise), uniform_grid(100, path=Linear()))
    z, u = Linear()(data, noise, t);   flow_matching_regression(velocity, z, u, t)

is the whole method. It equals :func:`rectified_flow_regression`, which also serves teachers on every path and pieces of
trajectories. Its minimiser is the mean direction of the lines through a point. The lines of an *exact* flow of one
Gaussian onto another, and of any exact flow in one dimension, do not cross: then one step from the noise is exact. In
general reflow makes trajectories straighter, but not straight; repeat it, or distil the result.
"""

from onestep_core.errors import like_states
from onestep_core.flow import chord
from onestep_core.protocols import FlowMap, Velocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def rectified_flow_regression(velocity: Velocity, z: Sample, end: Sample, t: Time, m: Time, s: Time) -> Regression:
    """``velocity(z_m, m)`` against ``sg[(end - z) / (s - t)]``, at ``z_m`` on the straight line from ``z`` to ``end``.

    Args:
        velocity: the network, ``(z, t) -> dz/dt``; initialised from the teacher.
        z: states at ``t``, ``[batch, *shape]``: the noise end, ``path.prior(noise)``, or the start of a piece.
        end: states at ``s`` that the teacher's solver made of them, ``[batch, *shape]``.
        t: source times, ``[batch]``: the noise end, or the start of a piece.
        m: training times, ``[batch]``, anywhere between ``t`` and ``s``.
        s: target times, ``[batch]``, other than ``t``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, section 2,
    https://arxiv.org/abs/2209.03003 (their time runs from noise to data); in pieces: Yan et al., PeRFlow,
    https://arxiv.org/abs/2405.07510.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.flow import Linear, heun, integrate, uniform_grid
        >>> from onestep_core.regression import squared_l2
        >>> teacher = lambda z, t: z
        >>> noise, one = torch.randn(4, 2), torch.ones(4)
        >>> data = integrate(partial(heun, teacher), Linear().prior(noise), uniform_grid(20, path=Linear()))
        >>> pair = rectified_flow_regression(teacher, noise, data, one, torch.rand(4), 0 * one)
        >>> loss = squared_l2(*pair).mean()
    """
    z_m, v = chord(z, end, t, m, s)
    return regression(like_states(velocity(z_m.to(z.dtype), m.to(t.dtype)), z), v)


@typed
def knowledge_distillation_regression(flow_map: FlowMap, z: Sample, end: Sample, t: Time, s: Time) -> Regression:
    """``flow_map(z, t, s)`` against ``sg[end]``: a student's jump onto what the teacher's solver made of ``z``.

    Args:
        flow_map: the network, ``(z, t, s) -> state at s``. A one-step generator is ``lambda z, t, s: generate(z)``;
            an average velocity becomes one by ``flow.flow_map_from_average_velocity``.
        z: states at ``t``, ``[batch, *shape]``: the noise end, for one step.
        end: states at ``s``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Luhman and Luhman, Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed,
    https://arxiv.org/abs/2101.02388; after reflow: Liu et al., section 2.1, https://arxiv.org/abs/2209.03003.

    Example:
        >>> import torch
        >>> from onestep_core.regression import squared_l2
        >>> noise, data, one = torch.ones(2, 3), torch.full((2, 3), 0.5), torch.ones(2)
        >>> squared_l2(*knowledge_distillation_regression(lambda z, t, s: 0.5 * z, noise, data, one, 0 * one))
        tensor([0., 0.])
    """
    return regression(like_states(flow_map(z, t, s), z), end)
