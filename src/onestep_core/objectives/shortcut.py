"""Shortcut models: one jump is two of half the length.

    a(z, t, s)  against  sg[(a'(z, t, m) + a'(z_m, m, s)) / 2]      m = (t + s) / 2,  z_m = z + (m - t) a'(z, t, m)

the semigroup identity at the midpoint. The network is trained only at step sizes ``1, 1/2, 1/4, ...``, the shortest of
which is flow matching; each larger step is learnt from two of the next smaller size.
"""

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value, time_between, two_jump_target
from onestep_core.protocols import AverageVelocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def shortcut_regression(
    average_velocity: AverageVelocity,
    frozen: AverageVelocity,
    z: Sample,
    t: Time,
    s: Time,
    *,
    bound: float | None = None,
) -> Regression:
    """``a(z, t, s)`` against the mean of the frozen network's two half jumps: the bootstrap part of the batch.

    The other part is ``flow_matching_regression(instantaneous(average_velocity), z, v, t)``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``; one that takes the step size as ``k`` with
            ``|s - t| = 2^-k`` is adapted by :func:`onestep_core.flow.from_log_step`.
        frozen: the network of the two jumps, guided or not: a moving average of the network in the released code.
            Gets no gradient.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``; released: :func:`onestep_core.flow.dyadic_times` of
            :func:`onestep_core.flow.log_steps`.
        bound: the target and the state between the two jumps are clipped to ``[-bound, bound]``; 4 in the released
            code, for latents; not clipped where ``None``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if ``bound`` is not positive, or a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Frans et al., One Step Diffusion via Shortcut Models, section 3 and algorithm 1,
    https://arxiv.org/abs/2410.12557. The paper's time has noise at 0: use ``reverse(Linear(noise_floor=1e-5))``. The
    released code drops labels in the flow-matching part alone, and takes the mean over the whole batch.

    Example:
        >>> import torch
        >>> def net(z, t, s):
        ...     return z
        >>> shortcut_regression(net, net, torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        Regression(prediction=tensor([[1.]]), target=tensor([[0.7500]]))
    """
    m = time_between(t, s, share=0.5)
    first = like_states(frozen_value(frozen, z, t, m.to(t.dtype)), z)
    target = two_jump_target(first, frozen, z, t, m, s, bound=bound, state_bound=bound)
    return regression(like_states(average_velocity(z, t, s), z), target)
