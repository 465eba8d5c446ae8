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


def jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """``torch.func.jvp``, with types, which torch's own lacks.

    An expanded tensor (one time for a whole batch) has no storage of its own for a tangent, so it gets one. So does,
    while torch compiles, every other: there forward mode refuses a part of a larger tensor.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.clone() if torch.compiler.is_compiling() else leaf.contiguous()

    return cast(tuple[Any, Any], torch.func.jvp(function, tree_map(own, primals), tree_map(own, tangents)))


def detached(tree: Any) -> Any:
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


def transformed() -> bool:
    """Whether a ``torch.func`` transform is active, in which the inner derivative must stay differentiable."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


def without_graph() -> AbstractContextManager[Any]:
    """No graph, unless a transform outside needs one to pass through (then the result is detached).

    Activations such as SiLU have no forward derivative of their derivative under ``no_grad``.
    """
    if torch.compiler.is_compiling():
        return torch.no_grad()
    return nullcontext() if transformed() else _no_grad_uncached()


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


def frozen_value(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """``sg[function(*arguments)]``: what a target is made of, without the graph that it would not use.

    The result, any pytree of tensors, is detached in reverse and forward mode, for any ``function``: the
    network in training, a moving average of it, a teacher.

    Example:
        >>> frozen_value(lambda x: x**2, torch.tensor([3.0], requires_grad=True))
        tensor([9.])
    """
    with without_graph():
        return detached(function(*arguments))


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
        ConfigError: if ``moving`` is negative.
        NotImplementedError: from torch, where an operation has no forward derivative.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> value, tangent = two_pass(lambda x: x**2, (x,), (torch.ones(1),))
        >>> value.requires_grad, tangent
        (True, tensor([6.]))
    """
    if moving is not None and moving < 0:
        raise ConfigError(f"moving = {moving}: expected how many of the first rows move, zero or more")
    value = function(*primals)
    with without_graph():
        inputs, along_what = primals if transformed() else detached(primals), detached(tangents)
        if moving is None or moving_function is None:
            _, tangent = jvp(tangent_function or function, inputs, along_what)
        else:
            _, first = jvp(moving_function, _rows(inputs, moving), _rows(along_what, moving))
            tangent = tree_map(_with_zeros, first, value)
    return value, detached(tangent)


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
    return jvp(function, primals, tangents)
