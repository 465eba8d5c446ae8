"""The identities of an average velocity, each written once, as targets of a regression.

A flow map ``X(z, t, s)`` is where the trajectory through ``z`` at ``t`` is at ``s``. The average velocity is its slope,
``X = z + (s - t) a(z, t, s)``, for either direction of time. With ``z_m = z + (m - t) a(z, t, m)``:

    semigroup    (s - t) a(z, t, s) = (m - t) a(z, t, m) + (s - m) a(z_m, m, s)
    eulerian     a = v(z, t) + (s - t) D_t a      D_t a: derivative of (z, t, s) along (v, 1, 0)
    lagrangian   a = v(X, s) - (s - t) D_s a      D_s a: derivative of (z, t, s) along (0, 0, 1)
    limit        a(z, t, t) = v(z, t)

The targets take tensors, so they also serve in a training loop whose networks are wrapped. No identity alone determines
a flow map: each needs the limit, or a velocity, as well.

MeanFlow's paper and code order times ``(z, r, t)``, target first; here ``(z, t, s)``, source first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow.derivatives import frozen_value, single_pass
from onestep_core.flow.maps.jumps import interpolate
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import AverageVelocity, Derivative
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import require_not_negative


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
    require_not_negative("scale", scale)
    v = without_gradient(v)
    duration = without_gradient(s) - without_gradient(t)
    factor = duration * (without_gradient(scale) if isinstance(scale, Tensor) else scale)
    return v + expand_like(factor, v) * without_gradient(derivative)


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
    v = without_gradient(v)
    return v - expand_like(without_gradient(s) - without_gradient(t), v) * without_gradient(derivative)


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
    first, t, m, s = without_gradient(first), without_gradient(t), without_gradient(m), without_gradient(s)
    whole = s - t
    no_jump = whole == 0
    share = torch.where(no_jump, 1.0, (m - t) / torch.where(no_jump, 1.0, whole))
    return interpolate(without_gradient(second), first, share)


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

    ``sg[((m - t) first + (s - m) second(z_m, m, s)) / (s - t)]`` with ``z_m = z + (m - t) first``. The first jump
    distinguishes the methods: the velocity of the pair (alpha-Flow), the network itself (shortcut models,
    SplitMeanFlow), a teacher.

    Args:
        first: average velocity from ``t`` to ``m``, ``[batch, *shape]``.
        second: ``(z, m, s) -> mean velocity``, evaluated once and without graph.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        m: middle times, ``[batch]``.
        s: target times, ``[batch]``.
        bound: the target is clipped to ``[-bound, bound]``; not clipped where ``None``.
        state_bound: the same for the state ``z_m``.

    Raises:
        ConfigError: if a bound is not positive, or the second jump is not of the shape of its states.

    Example:
        >>> one, half = torch.ones(1, 1), torch.tensor([0.5])
        >>> two_jump_target(one, lambda z, m, s: z, one, torch.ones(1), half, torch.zeros(1))
        tensor([[0.7500]])
    """
    first, times = without_gradient(first), (m.detach().to(t.dtype), s.detach())
    t, m, s = without_gradient(t), without_gradient(m), without_gradient(s)
    middle = _within(without_gradient(z) + expand_like((m - t).to(first.dtype), first) * first, state_bound)
    further = full(like_states(frozen_value(second, middle.to(z.dtype), *times), middle))
    return _within(semigroup_target(first, further, t, m, s), bound)


def eulerian_derivative(
    function: Callable[..., Any],
    z: Tensor,
    v: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    derivative: Derivative = single_pass,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """``function(z, t, s)`` and ``D_t``, its tangent along ``(sg[v], 1, 0)``: with the start of the jump.

    Args:
        function: ``(z, t, s) -> mean velocity``, or any pytree of them.
        z: states at ``t``, ``[batch, *shape]``.
        v: direction of ``z`` in the derivative, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        derivative: method for the tangent, see :mod:`onestep_core.flow.derivatives`.
        moving: a promise that only the first ``moving`` samples have ``s != t``.

    Raises:
        ConfigError: if the answer is not of the shape of the states, or ``moving`` is more than they are.

    Example:
        >>> one = torch.ones(1, 1)
        >>> eulerian_derivative(lambda z, t, s: z * expand_like(t, z), one, one, torch.ones(1), torch.zeros(1))
        (tensor([[1.]]), tensor([[2.]]))
    """
    primals, tangents = (z, t, s), (v.detach().to(z.dtype), torch.ones_like(t), torch.zeros_like(s))
    return _derivative(function, primals, tangents, derivative, moving)


def lagrangian_derivative(
    function: Callable[..., Any],
    z: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    derivative: Derivative = single_pass,
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
    """``moving`` is passed on only where it is given: a derivative of the user's own need not take it.

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
