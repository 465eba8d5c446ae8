"""Flow maps: the three identities of an average velocity, each once, and the conversions.

A flow map ``X(z, t, s)`` says where the trajectory through ``z`` at ``t`` is at ``s``; the average velocity is
its slope, ``X = z + (s - t) a(z, t, s)``, for either direction of time. With ``X' = `` frozen:

    semigroup    (s - t) a(z, t, s) = (m - t) a(z, t, m) + (s - m) a(z_m, m, s)
    eulerian     a = v(z, t) + (s - t) D_t a      D_t a: derivative of (z, t, s) along (v, 1, 0)
    lagrangian   a = v(X, s) - (s - t) D_s a      D_s a: derivative of (z, t, s) along (0, 0, 1)
    limit        a(z, t, t) = v(z, t)

The targets take tensors, so they also serve inside a foreign loop whose networks are wrapped. None of the
identities alone implies a flow map: each needs the limit, or a velocity, to be anchored.

MeanFlow's paper and code order times ``(z, r, t)``, target first; here ``(z, t, s)``, source first. Networks
with foreign time arguments are adapted by name: :func:`from_duration`, :func:`from_reversed`, :func:`from_log_step`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow.derivatives import frozen_value, two_pass, with_graph
from onestep_core.precision import frozen, full
from onestep_core.protocols import AverageVelocity, ConsistencyFunction, Derivative, FlowMap, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def eulerian_target(v: Sample, derivative: Sample, t: Time, s: Time, *, scale: float | Time = 1.0) -> Sample:
    """``sg[v + scale (s - t) D_t a]``: what MeanFlow regresses the average velocity onto.

    Args:
        v: velocities at ``(z, t)``, ``[batch, *shape]``.
        derivative: ``D_t a``, the tangent of ``a(z, t, s)`` along ``(v, 1, 0)``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        scale: factor of the derivative, a number or ``[batch]``: a warm-up from 0 to 1; 1 is the identity.

    Returns:
        The target, without gradient, ``[batch, *shape]``.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, eq. 6 and 10 (there ``u``, ``(z, r, t)``),
    https://arxiv.org/abs/2505.13447.

    Example:
        >>> one = torch.ones(1, 2)
        >>> eulerian_target(one, one, torch.ones(1), torch.zeros(1))
        tensor([[0., 0.]])
    """
    v = frozen(v)
    duration = frozen(s) - frozen(t)
    factor = duration * (frozen(scale) if isinstance(scale, Tensor) else scale)
    return v + expand_like(factor, v) * frozen(derivative)


@typed
def lagrangian_target(v: Sample, derivative: Sample, t: Time, s: Time) -> Sample:
    """``sg[v(X, s) - (s - t) D_s a]``: the identity at the end of the jump.

    Args:
        v: velocities at the end, ``v(X, s)`` with ``X = z + (s - t) a``, ``[batch, *shape]``.
        derivative: ``D_s a``, the tangent of ``a(z, t, s)`` along ``(0, 0, 1)``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.

    Source: Boffi et al., Flow Map Matching, section 3, https://arxiv.org/abs/2406.07507.

    Example:
        >>> one = torch.ones(1, 2)
        >>> lagrangian_target(one, one, torch.ones(1), torch.zeros(1))
        tensor([[2., 2.]])
    """
    v = frozen(v)
    return v - expand_like(frozen(s) - frozen(t), v) * frozen(derivative)


@typed
def semigroup_target(first: Sample, second: Sample, t: Time, m: Time, s: Time) -> Sample:
    """``sg[((m - t) first + (s - m) second) / (s - t)]``: two jumps as one; ``first`` where ``s = t``.

    Args:
        first: ``a(z, t, m)``, ``[batch, *shape]``.
        second: ``a(z_m, m, s)`` with ``z_m = z + (m - t) first``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``.
        s: target times, ``[batch]``.

    Source: Guo et al., SplitMeanFlow, eq. 8, https://arxiv.org/abs/2507.16884; Frans et al., Shortcut models
    (the midpoint), https://arxiv.org/abs/2410.12557.

    Example:
        >>> one = torch.ones(1, 1)
        >>> semigroup_target(one, 3 * one, torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0]))
        tensor([[2.]])
    """
    first, t, m, s = frozen(first), frozen(t), frozen(m), frozen(s)
    whole = s - t
    still = whole == 0
    share = torch.where(still, 1.0, (m - t) / torch.where(still, 1.0, whole))
    return _between(frozen(second), first, share)


def _between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) start + share end`` for each sample, in the widest of the three types."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), share.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), expand_like(share.to(dtype), start).expand_as(start))


def _within(x: Tensor, bound: float | None) -> Tensor:
    if bound is None:
        return x
    if not bound > 0:
        raise ConfigError(f"bound = {bound}: expected a positive number, the largest absolute value, or None for none")
    return x.clamp(-bound, bound)


@typed
def two_jump_target(
    first: Sample,
    second: AverageVelocity,
    z: Sample,
    t: Time,
    m: Time,
    s: Time,
    *,
    bound: float | None = None,
    state_bound: float | None = None,
) -> Sample:
    """:func:`semigroup_target` of a known first jump and a second one from where it leads.

    ``sg[((m - t) first + (s - m) second(z_m, m, s)) / (s - t)]`` with ``z_m = z + (m - t) first``. What the first
    jump is made of is the method: the velocity of the pair (alpha-Flow), the network itself (shortcut models,
    SplitMeanFlow), a teacher.

    Args:
        first: average velocity from ``t`` to ``m``, ``[batch, *shape]``.
        second: ``(z, m, s) -> mean velocity``, evaluated once and without graph.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``.
        s: target times, ``[batch]``.
        bound: the target is clipped to ``[-bound, bound]``; not clipped where ``None``.
        state_bound: likewise the state ``z_m``.

    Raises:
        ConfigError: if a bound is not positive, or the second jump is not of the shape of its states.

    Example:
        >>> one, half = torch.ones(1, 1), torch.tensor([0.5])
        >>> two_jump_target(one, lambda z, m, s: z, one, torch.ones(1), half, torch.zeros(1))
        tensor([[0.7500]])
    """
    first, t, m, s = frozen(first), frozen(t), frozen(m), frozen(s)
    middle = _within(frozen(z) + expand_like((m - t).to(first.dtype), first) * first, state_bound)
    return _within(semigroup_target(first, like_states(frozen_value(second, middle, m, s), middle), t, m, s), bound)


def eulerian_derivative(
    function: Callable[..., Any],
    z: Tensor,
    v: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    derivative: Derivative = two_pass,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """``function(z, t, s)`` and ``D_t``, its tangent along ``(sg[v], 1, 0)``: with the start of the jump.

    Args:
        function: ``(z, t, s) -> mean velocity``, or any pytree of them.
        z: states at ``t``, ``[batch, *shape]``.
        v: along what ``z`` moves, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        derivative: how the tangent is found, see :mod:`onestep_core.flow.derivatives`.
        moving: a promise that only the first ``moving`` samples have ``s != t``.

    Raises:
        ConfigError: if the answer is not of the shape of the states, or ``moving`` is more than they are.

    Example:
        >>> one = torch.ones(1, 1)
        >>> eulerian_derivative(lambda z, t, s: z * expand_like(t, z), one, one, torch.ones(1), torch.zeros(1))
        (tensor([[1.]]), tensor([[2.]]))
    """
    primals, tangents = (z, t, s), (v.detach(), torch.ones_like(t), torch.zeros_like(s))
    return _derivative(function, primals, tangents, derivative, moving)


def lagrangian_derivative(
    function: Callable[..., Any],
    z: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    derivative: Derivative = two_pass,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """``function(z, t, s)`` and ``D_s``, its tangent along ``(0, 0, 1)``: with the end of the jump.

    Arguments and errors as :func:`eulerian_derivative`.

    Example:
        >>> one = torch.ones(1, 1)
        >>> lagrangian_derivative(lambda z, t, s: z * expand_like(s, z), one, torch.ones(1), torch.zeros(1))
        (tensor([[0.]]), tensor([[1.]]))
    """
    primals, tangents = (z, t, s), (torch.zeros_like(z), torch.zeros_like(t), torch.ones_like(s))
    return _derivative(function, primals, tangents, derivative, moving)


def _derivative(
    function: Callable[..., Any],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    derivative: Derivative,
    moving: int | None,
) -> tuple[Any, Any]:
    """``moving`` is passed on only where it says something: a derivative of the user's own need not take it.

    Raises:
        ConfigError: if the network's answer is not of the shape of its states, or ``moving`` is no number of them.
    """
    if moving is not None and not 0 <= moving <= len(primals[0]):
        raise ConfigError(
            f"moving = {moving} of {len(primals[0])} samples: expected how many of the first ones have s != t"
        )

    def checked(z: Tensor, t: Tensor, s: Tensor) -> Any:
        answer = function(z, t, s)
        for leaf in tree_leaves(answer):
            like_states(leaf, z)
        return answer

    return derivative(checked, primals, tangents, **({} if moving is None else {"moving": moving}))


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
    z = full(z)
    return z + expand_like(full(s) - full(t), z) * full(like_states(average_velocity(z, t, s), z))


@typed
def compose(flow_map: FlowMap, z: Sample, t: Time, m: Time, s: Time) -> Sample:
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
        >>> compose(lambda z, t, s: z * expand_like(s / t, z), torch.ones(1, 1), torch.ones(1), half, half / 2)
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
        m: where on the line, ``[batch]``.
        s: target times, ``[batch]``, other than ``t``.

    Source: Liu et al., Flow Straight and Fast, section 2.1, https://arxiv.org/abs/2209.03003.

    Example:
        >>> one = torch.ones(1, 1)
        >>> chord(one, 3 * one, torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0]))
        Chord(z=tensor([[2.]]), v=tensor([[-2.]]))
    """
    z, end, t, s = full(z), full(end), full(t), full(s)
    return Chord(_between(z, end, (full(m) - t) / (s - t)), (end - z) / expand_like(s - t, z))


def flow_map_from_average_velocity(average_velocity: AverageVelocity) -> FlowMap:
    """``X(z, t, s) = z + (s - t) a(z, t, s)``; the identity at ``s = t`` for every network.

    Example:
        >>> flow_map_from_average_velocity(lambda z, t, s: z)(torch.ones(1, 1), torch.ones(1), torch.ones(1))
        tensor([[1.]])
    """

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return jump(average_velocity, z, t, s)

    return flow_map


def average_velocity_from_flow_map(flow_map: FlowMap) -> AverageVelocity:
    """``a = (X(z, t, s) - z) / (s - t)``; not finite at ``s = t``, where the map alone has no slope.

    Example:
        >>> average_velocity_from_flow_map(lambda z, t, s: 0 * z)(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return (full(like_states(flow_map(z, t, s), z)) - full(z)) / expand_like(full(s) - full(t), z)

    return average_velocity


def average_velocity_from_displacement(displacement: FlowMap) -> AverageVelocity:
    """``a = d(z, t, s) / (s - t)`` for a network that says how far and not how fast; not finite at ``s = t``.

    For the displacement, and not for the average velocity, ``v = d_z d . v + d_t d`` up to sign holds.

    Example:
        >>> average_velocity_from_displacement(lambda z, t, s: z)(torch.ones(1, 1), torch.zeros(1), torch.ones(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return full(like_states(displacement(z, t, s), z)) / expand_like(full(s) - full(t), z)

    return average_velocity


def instantaneous(average_velocity: AverageVelocity) -> Velocity:
    """``v(z, t) = a(z, t, t)``, the limit: samples a flow map as an ordinary differential equation.

    Example:
        >>> instantaneous(lambda z, t, s: z * expand_like(s - t, z))(torch.ones(1, 1), torch.ones(1))
        tensor([[0.]])
    """

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return like_states(average_velocity(z, t, t), z)

    return velocity


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


def consistency_from_flow_map(flow_map: FlowMap, *, end: float) -> ConsistencyFunction:
    """``f(z, t) = X(z, t, end)``: where every trajectory ends, ``end`` being the path's data time.

    Example:
        >>> consistency_from_flow_map(lambda z, t, s: z + expand_like(s, z), end=2.0)(torch.ones(1, 1), torch.ones(1))
        tensor([[3.]])
    """

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        return like_states(flow_map(z, t, torch.full_like(t, end)), z)

    return function


def from_duration(network: FlowMap) -> AverageVelocity:
    """A network of ``(z, t, t - s)``, the released MeanFlow's arguments, as one of ``(z, t, s)``.

    Example:
        >>> from_duration(lambda z, t, h: z * expand_like(h, z))(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return network(z, t, t - s)

    return average_velocity


def from_reversed(network: FlowMap) -> AverageVelocity:
    """A network of ``(z, s, t)``, target first as MeanFlow's paper writes ``u(z, r, t)``, as one of ``(z, t, s)``.

    Example:
        >>> from_reversed(lambda z, r, t: z * expand_like(r, z))(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[0.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return network(z, s, t)

    return average_velocity


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
    if finest < 0:
        raise ConfigError(f"finest = {finest}: expected a number of halvings, not negative")

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        duration = (s - t).abs().clamp(min=2.0**-finest)
        return network(z, t, -duration.log2())

    return average_velocity
