"""Conversions between average velocities, flow maps, displacements, velocities and consistency functions.

Networks whose time arguments have another meaning or order are adapted by name: :func:`from_duration`,
:func:`from_reversed`, :func:`from_log_step`.
"""

import torch
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.flow.derivatives import with_graph
from onestep_core.flow.maps.jumps import jump
from onestep_core.precision import full
from onestep_core.protocols import AverageVelocity, ConsistencyFunction, Derivative, FlowMap, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import typed
from onestep_core.validators import require_count, require_finite


@typed
def flow_map_from_average_velocity(average_velocity: AverageVelocity) -> FlowMap:
    """``X(z, t, s) = z + (s - t) a(z, t, s)``; the identity at ``s = t`` for every network.

    Example:
        >>> flow_map_from_average_velocity(lambda z, t, s: z)(torch.ones(1, 1), torch.ones(1), torch.ones(1))
        tensor([[1.]])
    """

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return jump(average_velocity, z, t, s)

    return flow_map


@typed
def average_velocity_from_flow_map(flow_map: FlowMap) -> AverageVelocity:
    """``a = (X(z, t, s) - z) / (s - t)``; not finite at ``s = t``, where the map alone has no slope.

    Example:
        >>> average_velocity_from_flow_map(lambda z, t, s: 0 * z)(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return (full(like_states(flow_map(z, t, s), z)) - full(z)) / expand_like(full(s) - full(t), z)

    return average_velocity


@typed
def average_velocity_from_displacement(displacement: FlowMap) -> AverageVelocity:
    """``a = d(z, t, s) / (s - t)`` for a network that returns the displacement; not finite at ``s = t``.

    For the displacement, and not for the average velocity, ``v = d_z d . v + d_t d`` up to sign holds.

    Example:
        >>> average_velocity_from_displacement(lambda z, t, s: z)(torch.ones(1, 1), torch.zeros(1), torch.ones(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return full(like_states(displacement(z, t, s), z)) / expand_like(full(s) - full(t), z)

    return average_velocity


@typed
def instantaneous(average_velocity: AverageVelocity) -> Velocity:
    """``v(z, t) = a(z, t, t)``, the limit: samples a flow map as an ordinary differential equation.

    Example:
        >>> instantaneous(lambda z, t, s: z * expand_like(s - t, z))(torch.ones(1, 1), torch.ones(1))
        tensor([[0.]])
    """

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return like_states(average_velocity(z, t, t), z)

    return velocity


@typed
def velocity_from_flow_map(flow_map: FlowMap, *, derivative: Derivative = with_graph) -> Velocity:
    """``v(z, t) = d/ds X(z, t, s)`` at ``s = t``: the instantaneous velocity of a map of any form.

    With :func:`onestep_core.flow.denoiser_from_velocity` it is the denoiser that a map implies, and a map that has
    learnt to jump can go on learning to denoise.

    Args:
        flow_map: the identity at ``s = t``.
        derivative: keeps its graph by default, so that the velocity trains the map.

    Example:
        >>> growth = lambda z, t, s: z * expand_like((s - t).exp(), z)
        >>> velocity_from_flow_map(growth)(3 * torch.ones(1, 1), torch.ones(1))
        tensor([[3.]])
    """

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        rate = (torch.zeros_like(z), torch.zeros_like(t), torch.ones_like(t))
        return like_states(derivative(flow_map, (z, t, t), rate)[1], z)

    return velocity


@typed
def consistency_from_flow_map(flow_map: FlowMap, *, end: float) -> ConsistencyFunction:
    """``f(z, t) = X(z, t, end)``: where every trajectory ends, ``end`` being the path's data time.

    Raises:
        ConfigError: if ``end`` is not finite.

    Example:
        >>> consistency_from_flow_map(lambda z, t, s: z + expand_like(s, z), end=2.0)(torch.ones(1, 1), torch.ones(1))
        tensor([[3.]])
    """
    require_finite("end", end)

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        return like_states(flow_map(z, t, torch.full_like(t, end)), z)

    return function


@typed
def from_duration(network: FlowMap) -> AverageVelocity:
    """A network of ``(z, t, t - s)``, the released MeanFlow's arguments, as one of ``(z, t, s)``.

    Example:
        >>> from_duration(lambda z, t, h: z * expand_like(h, z))(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return network(z, t, t - s)

    return average_velocity


@typed
def from_reversed(network: FlowMap) -> AverageVelocity:
    """A network of ``(z, s, t)``, target first as MeanFlow's paper writes ``u(z, r, t)``, as one of ``(z, t, s)``.

    Example:
        >>> from_reversed(lambda z, r, t: z * expand_like(r, z))(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[0.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return network(z, s, t)

    return average_velocity


@typed
def from_log_step(network: FlowMap, *, finest: int = 7) -> AverageVelocity:
    """A network of ``(z, t, k)`` with ``|s - t| = 2^-k``, the shortcut models' argument, as one of ``(z, t, s)``.

    Args:
        network: ``(z, t, k) -> mean velocity``; ``k`` is ``[batch]`` and 0 for a jump over the whole range.
        finest: the ``k`` that stands for an instantaneous velocity; shorter jumps get it as well. 7 for the
            128 steps of the released code.

    Raises:
        ConfigError: if ``finest`` is negative.

    Source: Frans et al., One Step Diffusion via Shortcut Models, section 3, https://arxiv.org/abs/2410.12557.

    Example:
        >>> seen = from_log_step(lambda z, t, k: z * expand_like(k, z))
        >>> seen(torch.ones(2, 1), torch.ones(2), torch.tensor([0.75, 1.0])).flatten()
        tensor([2., 7.])
    """
    require_count("finest", finest)

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        duration = (s - t).abs().clamp(min=2.0**-finest)
        return network(z, t, -duration.log2())

    return average_velocity
