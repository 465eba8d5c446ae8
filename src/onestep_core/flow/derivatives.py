"""Directional derivatives: the value with its graph, the tangent without.

MeanFlow and related methods need ``u(z, t, s)`` to train on and ``du/dt`` along the trajectory to build the target.
The target is frozen, so the tangent needs no graph; what differs between the functions here is how it is
found. All take ``(function, primals, tangents)`` as ``torch.func.jvp`` does and return ``(value, tangent)``,
any pytrees of tensors:

=================================  =======================  ========================================================
function                           exact                    cost, besides one forward and backward pass
=================================  =======================  ========================================================
:func:`two_pass`                   yes                      one forward-mode pass without graph
:func:`central_difference`         to second order in step  two forwards without graph; any operation works
:func:`with_graph`                 yes, and differentiable  the graph of the tangent is kept: time and memory
``derivative_along(curve, step)``  to second order in step  as the difference, but on a curve that the caller knows
=================================  =======================  ========================================================

Targets without a derivative use :func:`frozen_value`, which builds no graph either.

``moving=n`` says that only the first ``n`` rows of the tangent will be used (elsewhere its factor, ``s - t``
for one, is zero). It permits savings and requires none. The function is already bound to the conditioning of all rows,
so rows can be left out only where the caller gives the function of those rows (``moving_function`` of
:func:`two_pass`).

Forward mode needs operations that have it. ``scaled_dot_product_attention`` does only inside
``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``; ``torch.cdist``, and batch normalisation in training mode
do not. Each pass draws its own dropout masks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from onestep_core.errors import ConfigError
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import Derivative
from onestep_core.shapes import expand_like
from onestep_core.typing import Time, typed
from onestep_core.validators import require_finite


def _jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """``torch.func.jvp``, with types, which torch's own lacks.

    An expanded tensor (one time for a whole batch) has no storage of its own for a tangent, so it gets one. So does,
    while torch compiles, every other: there forward mode refuses a part of a larger tensor.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.clone() if torch.compiler.is_compiling() else leaf.contiguous()

    return cast(tuple[Any, Any], torch.func.jvp(function, tree_map(own, primals), tree_map(own, tangents)))


def _detached(tree: Any) -> Any:
    def detach(leaf: Any) -> Any:
        return leaf.detach() if isinstance(leaf, Tensor) else leaf

    return tree_map(detach, tree)


def _rows(tree: Any, count: int) -> Any:
    """The first rows of every tensor."""

    def first(leaf: Any) -> Any:
        return leaf[:count] if isinstance(leaf, Tensor) else leaf

    return tree_map(first, tree)


def _with_zeros(first: Any, whole: Any) -> Any:
    """A tensor of the size of ``whole``: ``first``, and zeros."""
    return torch.cat([first, torch.zeros_like(whole[len(first) :])]) if isinstance(whole, Tensor) else first


def _transformed() -> bool:
    """Whether a ``torch.func`` transform is active, in which the inner derivative must stay differentiable."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


def _without_graph() -> AbstractContextManager[Any]:
    """No graph, unless a transform outside needs one to pass through (then the result is detached).

    Activations such as SiLU have no forward derivative of their derivative under ``no_grad``.
    """
    if torch.compiler.is_compiling():
        return torch.no_grad()
    return nullcontext() if _transformed() else _no_grad_uncached()


@contextmanager
def _no_grad_uncached() -> Any:
    """``no_grad`` that leaves nothing in autocast's cache: a cast made here would lose its graph for later users."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _check_pairs(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> None:
    if len(primals) != len(tangents):
        raise ConfigError(f"{len(primals)} arguments and {len(tangents)} tangents: expected one tangent for each")


def frozen_value(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """``sg[function(*arguments)]``: what a target is made of, without the graph that it would not use.

    The result, any pytree of tensors, is detached in reverse and forward mode, for any ``function``: the
    network in training, a moving average of it, a teacher.

    Example:
        >>> frozen_value(lambda x: x**2, torch.tensor([3.0], requires_grad=True))
        tensor([9.])
    """
    with _without_graph():
        return _detached(function(*arguments))


def two_pass(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    moving: int | None = None,
    tangent_function: Callable[..., Any] | None = None,
    moving_function: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
    """Value by an ordinary call, tangent by ``torch.func.jvp`` without graph: exact, plain memory.

    Args:
        function: function of tensors or of pytrees of them.
        primals: where, a tuple of its arguments.
        tangents: along what, of the same structure.
        moving: see the module; used with ``moving_function``.
        tangent_function: function of the tangent pass, ``function`` by default. Under
            ``DistributedDataParallel`` give the network itself: forward mode through the wrapper raises
            when the module has buffers, while the ordinary call through the wrapper synchronises gradients.
        moving_function: with ``moving=n``, ``function`` for the first ``n`` rows, with their conditioning alone: the
            tangent pass calls it on those, and the tangent of the others is zero.

    Returns:
        ``(function(*primals), tangent)``; the tangent is detached, in reverse and forward mode.

    Raises:
        ConfigError: if ``moving`` is negative, or there is not one tangent for each argument.
        NotImplementedError: from torch, where an operation has no forward derivative.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> value, tangent = two_pass(lambda x: x**2, (x,), (torch.ones(1),))
        >>> value.requires_grad, tangent
        (True, tensor([6.]))
    """
    if moving is not None and moving < 0:
        raise ConfigError(f"moving = {moving}: expected how many of the first rows move, zero or more")
    _check_pairs(primals, tangents)
    value = function(*primals)
    with _without_graph():
        inputs, along_what = primals if _transformed() else _detached(primals), _detached(tangents)
        if moving is None or moving_function is None:
            _, tangent = _jvp(tangent_function or function, inputs, along_what)
        else:
            _, first = _jvp(moving_function, _rows(inputs, moving), _rows(along_what, moving))
            tangent = tree_map(_with_zeros, first, value)
    return value, _detached(tangent)


def central_difference(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    step: float = 1e-3,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """``(f(p + h dp) - f(p - h dp)) / 2h`` without graph, for networks without forward mode.

    The error is ``O(h^2)`` from truncation and ``O(eps / h)`` from rounding; in float32 a step near 5e-3 times
    the scale of the arguments balances them. Steps reach beyond the ends of the time range by ``h``.

    Args:
        function: function of tensors or of pytrees of them.
        primals: point at which the function is evaluated.
        tangents: direction of the derivative.
        step: ``h``, in units of the tangents, positive.
        moving: accepted and not used; see the module.

    Raises:
        ConfigError: if ``step`` is not positive.

    Example:
        >>> central_difference(lambda x: x**2, (torch.tensor([3.0]),), (torch.ones(1),), step=0.5)
        (tensor([9.]), tensor([6.]))
    """
    require_finite("step", step)
    if step <= 0:
        raise ConfigError(f"step = {step}: expected a positive number, near 5e-3 in float32 and 1e-5 in float64")
    _check_pairs(primals, tangents)
    value = function(*primals)

    def shifted(sign: float) -> Any:
        def move(primal: Any, tangent: Any) -> Any:
            return primal + sign * step * tangent if isinstance(primal, Tensor) else primal

        return function(*tree_map(move, _detached(primals), _detached(tangents)))

    def slope(ahead: Any, behind: Any) -> Any:
        return (ahead - behind) / (2 * step) if isinstance(ahead, Tensor) else ahead

    with _without_graph():
        tangent = tree_map(slope, shifted(1.0), shifted(-1.0))
    return value, _detached(tangent)


def with_graph(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """Value and tangent by one ``torch.func.jvp``, both with graph: for losses that train through the derivative.

    Args:
        function: function of tensors or of pytrees of them.
        primals: point at which the function is evaluated.
        tangents: direction of the derivative.
        moving: accepted and not used; see the module.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> _, tangent = with_graph(lambda x: x**2, (x,), (torch.ones(1),))
        >>> tangent.backward()
        >>> x.grad
        tensor([2.])
    """
    return _jvp(function, primals, tangents)


def derivative_along(
    curve: Callable[[Tensor], tuple[Any, ...]], step: float | Tensor, *, argument: int = 1
) -> Derivative:
    """The derivative by a central difference on a curve through the arguments, in place of their tangent line.

    With ``tau`` the time among the primals and ``tau'`` its tangent,

        tangent = tau' (f(curve(tau + h)) - f(curve(tau - h))) / 2h.

    The states next to ``z`` then lie on the path itself, at the noise level of their time; on a straight line they
    would be off by ``O(h^2)``. Released finite-difference modes are of this kind: both states are made from one pair of
    data and noise. The result is the derivative along *the curve*: where the objective is given another velocity (a
    teacher's, a guided one), the curve of the pair does not follow it, and its derivative is another one.

    Args:
        curve: from times ``[batch]`` to all arguments of the function; at the time of the primals it must give the
            primals.
        step: ``h`` in units of that time, positive: a number or ``[batch]``, see :func:`relative_step`.
        argument: which argument the time ``tau`` is; 1 for the source time of ``(z, t)`` and ``(z, t, s)``.

    Returns:
        A :class:`~onestep_core.protocols.Derivative`: value by an ordinary call, tangent without graph. Of the
        tangents it reads the one of ``tau`` alone.

    Raises:
        ConfigError: if a number given as ``step`` is not positive.

    Source: NVlabs/FastGen, ``SCMModel._estimate_jvp_finite_difference``, which differs in computing in float64.

    Example:
        >>> cubic = derivative_along(lambda t: (t**3, t), step=0.5)
        >>> t = torch.tensor([2.0])
        >>> cubic(lambda z, t: z, (t**3, t), (12.0 * torch.ones(1), torch.ones(1)))
        (tensor([8.]), tensor([12.2500]))
    """
    require_finite("step", step)
    if not isinstance(step, Tensor) and step <= 0:
        raise ConfigError(f"step = {step}: expected a positive number or a tensor [batch] of them")

    def derivative(
        function: Callable[..., Any],
        primals: tuple[Any, ...],
        tangents: tuple[Any, ...],
        /,
        *,
        moving: int | None = None,
    ) -> tuple[Any, Any]:
        value = function(*primals)
        tau, rate = without_gradient(primals[argument]), without_gradient(tangents[argument])
        # The width as it was rounded, not 2h: in float32 that is a third of the digits.
        ahead, behind = tau + step, tau - step
        speed = rate / (ahead - behind)

        def slope(above: Any, below: Any) -> Any:
            return expand_like(speed, above) * (full(above) - full(below)) if isinstance(above, Tensor) else above

        def at(time: Tensor) -> Any:
            """The function on the curve, its arguments in the types of the primals."""
            return function(*(_in_type_of(there, here) for there, here in zip(curve(time), primals, strict=True)))

        with _without_graph():
            tangent = tree_map(slope, at(ahead), at(behind))
        return value, _detached(tangent)

    return derivative


def _in_type_of(there: Any, here: Any) -> Any:
    return there.detach().to(here.dtype) if isinstance(there, Tensor) and isinstance(here, Tensor) else _detached(there)


@typed
def relative_step(t: Time, *, fraction: float = 1e-3, smallest: float = 1e-6) -> Time:
    """``max(fraction |t|, smallest)``: a step for :func:`derivative_along` in proportion to the time.

    Args:
        t: times, ``[batch]``.
        fraction: fraction of the time; 1e-3 as released, for which the rounding of float32 costs three to five digits.
            For a network that computes in bfloat16 take about 0.2: its rounding drowns smaller differences.
        smallest: smallest step, for times near zero.

    Raises:
        ConfigError: if one of the two is not positive.

    Source: NVlabs/FastGen, ``SCMModel._estimate_jvp_finite_difference``.

    Example:
        >>> relative_step(torch.tensor([0.0, 0.5]))
        tensor([1.0000e-06, 5.0000e-04])
    """
    require_finite("fraction", fraction)
    require_finite("smallest", smallest)
    if fraction <= 0 or smallest <= 0:
        raise ConfigError(f"fraction = {fraction} and smallest = {smallest}: expected positive numbers")
    return (fraction * without_gradient(t).abs()).clamp(min=smallest)
