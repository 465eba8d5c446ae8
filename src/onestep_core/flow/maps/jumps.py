"""Jumps: from a state at one time to a state at another, by an average velocity or by a flow map.

A flow map ``X(z, t, s)`` is where the trajectory through ``z`` at ``t`` is at ``s``. The average velocity is its slope,
``X = z + (s - t) a(z, t, s)``, for either direction of time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.precision import full
from onestep_core.protocols import AverageVelocity, FlowMap
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def jump(average_velocity: AverageVelocity, z: Sample, t: Time, s: Time) -> Sample:
    """``z + (s - t) a(z, t, s)``: one evaluation.

    Args:
        average_velocity: ``(z, t, s) -> mean velocity``.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.

    Example:
        >>> jump(lambda z, t, s: z, torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[0.]])
    """
    return full(z) + expand_like(full(s) - full(t), z) * full(like_states(average_velocity(z, t, s), z))


@typed
def two_jumps(flow_map: FlowMap, z: Sample, t: Time, m: Time, s: Time) -> Sample:
    """``X(X(z, t, m), m, s)``: two jumps, two evaluations. A flow map makes it in one: ``X(z, t, s)``.

    Args:
        flow_map: ``(z, t, s) -> state at s``.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``, each sample's own. Over one grid for all: :func:`~onestep_core.flow.integrate`.
        s: target times, ``[batch]``.

    Source: Boffi et al., Flow Map Matching, the semigroup condition, https://arxiv.org/abs/2406.07507.

    Example:
        >>> half = torch.tensor([0.5])
        >>> two_jumps(lambda z, t, s: z * expand_like(s / t, z), torch.ones(1, 1), torch.ones(1), half, half / 2)
        tensor([[0.2500]])
    """
    return flow_map(flow_map(z, t, m), m, s)


class Chord(NamedTuple):
    """A point on the straight line between two states, and the constant velocity along it; ``[batch, *shape]``."""

    z: Tensor
    v: Tensor


@typed
def chord(z: Sample, end: Sample, t: Time, m: Time, s: Time) -> Chord:
    """``z + (m - t) v`` and ``v = (end - z) / (s - t)``: the trajectory between two times, straightened.

    ``v`` is the average velocity of any trajectory through both states. With ``z = noise`` at 1 and ``end = data`` at
    0 this is the linear path of the pair.

    Args:
        z: states at ``t``, ``[batch, *shape]``.
        end: states at ``s``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: times of the points on the line, ``[batch]``.
        s: target times, ``[batch]``, other than ``t``.

    Source: Liu et al., Flow Straight and Fast, section 2.1, https://arxiv.org/abs/2209.03003.

    Example:
        >>> one = torch.ones(1, 1)
        >>> chord(one, 3 * one, torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0]))
        Chord(z=tensor([[2.]]), v=tensor([[-2.]]))
    """
    z, end, t, s = full(z), full(end), full(t), full(s)
    return Chord(interpolate(z, end, (full(m) - t) / (s - t)), (end - z) / expand_like(s - t, z))


def interpolate(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) start + share end`` for each sample, in the widest of the three types."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), share.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), expand_like(share.to(dtype), start).expand_as(start))
