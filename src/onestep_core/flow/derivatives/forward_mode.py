"""Derivatives by torch's forward mode: :func:`two_pass`, :func:`with_graph`; values without graph.

Forward mode runs inside of :class:`~onestep_core.flow.derivatives.traps.ForwardMode`, which replaces operations that
have no forward derivative by equal ones. ``torch.cdist``, batch normalisation in training mode and ``grid_sample`` have
none. The pass of the value and that of the tangent draw their own dropout masks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives.nested import along
from onestep_core.flow.derivatives.tangents.runs import runs
from onestep_core.flow.derivatives.traps import ForwardMode


def jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """``torch.func.jvp``, with types, which torch's own lacks.

    An expanded tensor (one time for a whole batch) has no storage of its own for a tangent, so it gets one. So does,
    while torch compiles, every other: there forward mode refuses a part of a larger tensor.

    Inside of a function that :func:`~onestep_core.single_pass` differentiates, value and tangent go on with their own
    tangents.
    """
    return along(_jvp, function, primals, tangents) if runs() else _jvp(function, primals, tangents)


def _jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.clone() if torch.compiler.is_compiling() else leaf.contiguous()

    with ForwardMode():
        return cast(tuple[Any, Any], torch.func.jvp(function, tree_map(own, primals), tree_map(own, tangents)))


def detached(tree: Any) -> Any:
    """All tensors detached."""

    def detach(leaf: Any) -> Any:
        return leaf.detach() if isinstance(leaf, Tensor) else leaf

    return tree_map(detach, tree)


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


def check_pairs(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> None:
    """Refuse tangents that are more or fewer than the arguments."""
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
    with without_graph():
        return detached(function(*arguments))


def two_pass(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """Value by an ordinary call, tangent by ``torch.func.jvp`` without graph: exact, plain memory, twice the time.

    Args:
        function: function of tensors or of pytrees of them.
        primals: where, a tuple of its arguments.
        tangents: along what, of the same structure.
        moving: accepted and not used.

    Returns:
        ``(function(*primals), tangent)``; the tangent is detached, in reverse and forward mode.

    Raises:
        ConfigError: if there is not one tangent for each argument.
        NotImplementedError: from torch, where an operation has no forward derivative.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> value, tangent = two_pass(lambda x: x**2, (x,), (torch.ones(1),))
        >>> value.requires_grad, tangent
        (True, tensor([6.]))
    """
    check_pairs(primals, tangents)
    value = function(*primals)
    with without_graph():
        _, tangent = jvp(function, primals if transformed() else detached(primals), detached(tangents))
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
        moving: accepted and not used.

    Raises:
        ConfigError: if there is not one tangent for each argument.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> _, tangent = with_graph(lambda x: x**2, (x,), (torch.ones(1),))
        >>> tangent.backward()
        >>> x.grad
        tensor([2.])
    """
    check_pairs(primals, tangents)
    return jvp(function, primals, tangents)
