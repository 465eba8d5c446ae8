"""Derivatives by torch's forward mode: :func:`two_pass`, :func:`with_graph`; values without graph.

Forward mode runs inside of :class:`~onestep_core.flow.derivatives.traps.ForwardMode`, which replaces operations that
have no forward derivative by equal ones. ``torch.cdist``, batch normalisation in training mode and ``grid_sample`` have
none. The pass of the tangent starts from the generators' states of the pass of the value, see :func:`two_pass`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import _broadcast_to_and_flatten, tree_flatten, tree_map, tree_unflatten  # pyright: ignore

from onestep_core.draws import SameDraws
from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives.compiled import parted
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

    def direction(primal: Any, tangent: Any) -> Any:
        return torch.zeros_like(primal) if tangent is None and isinstance(primal, Tensor) else own(tangent)

    with ForwardMode(nested=any(_transformed(leaf) for leaf in tree_flatten(primals)[0])):
        return cast(
            tuple[Any, Any],
            torch.func.jvp(function, tree_map(own, primals), tree_map(direction, primals, tangents)),
        )


def _transformed(leaf: Any) -> bool:
    """Whether a vmap or a forward derivative holds a tensor. Written for torch's compiler, which knows no other way."""
    if not isinstance(leaf, Tensor) or not torch.compiler.is_compiling():
        return False
    batched = bool(torch._C._functorch.is_batchedtensor(leaf))  # pyright: ignore
    return batched or parted(leaf)[1] is not None


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


def checked_tangents(function: object, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tangents in the structure of the primals; ``None`` stands for a tangent of zeros.

    Args:
        function: what is differentiated.
        primals: its arguments.
        tangents: one for each.

    Raises:
        ConfigError: if it is no function, the structures differ, or a tangent is no tensor of floating-point numbers of
            the shape and on the device of its primal.
    """
    if not callable(function):
        raise ConfigError(f"a {type(function).__name__} as function: expected a function of the primals")
    if not (isinstance(primals, tuple) and isinstance(tangents, tuple)):  # pyright: ignore[reportUnnecessaryIsInstance]
        came = f"{type(primals).__name__} and {type(tangents).__name__}"
        raise ConfigError(f"primals and tangents are {came}: expected tuples, derivative(function, (z, t), (v, one))")
    if len(primals) != len(tangents):
        raise ConfigError(f"{len(primals)} arguments and {len(tangents)} tangents: expected one tangent for each")
    if torch.compiler.is_compiling():
        return tangents
    leaves, spec = tree_flatten(primals)
    given = tree_flatten(tangents)[0]
    along = _broadcast_to_and_flatten(tangents, spec)
    if along is None or sum(v is not None for v in along) != sum(v is not None for v in given):
        raise ConfigError(
            f"the tangents are {_form(tangents)}: expected the structure of the primals, {_form(primals)}, with a "
            "tensor, or None for zero, in place of each"
        )
    for primal, tangent in zip(leaves, along, strict=True):
        if tangent is not None:
            _check_pair(primal, tangent)
    return cast(tuple[Any, ...], tree_unflatten(along, spec))


def _check_pair(primal: Any, tangent: Any) -> None:
    if (
        not isinstance(primal, Tensor)
        or not isinstance(tangent, Tensor)
        or tangent.shape != primal.shape
        or tangent.device != primal.device
        or not (_continuous(primal) and _continuous(tangent))
    ):
        raise ConfigError(
            f"a tangent of {_form(tangent)} for a primal of {_form(primal)}: expected a tensor of its shape, on its "
            "device, for floating-point primals; None is the tangent of a constant"
        )


def _continuous(tangent: Tensor) -> bool:
    return tangent.is_floating_point() or tangent.is_complex()


def _form(tree: Any) -> str:
    """What a pytree is made of, in words."""
    if isinstance(tree, Tensor):
        place = "" if tree.device.type == "cpu" else f" on {tree.device}"
        return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}{place}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {_form(part)}" for key, part in cast(dict[str, Any], tree).items()) + "}"
    if isinstance(tree, (tuple, list)):
        return "(" + ", ".join(map(_form, cast(tuple[Any, ...], tree))) + ")"
    return "None" if tree is None else type(tree).__name__


def frozen_value(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """``sg[function(*arguments)]``: what a target is made of, without the graph that it would not use.

    The result, any pytree of tensors, is detached in reverse and forward mode, for any ``function``: the
    network in training, a moving average of it, a teacher.

    Example:
        >>> frozen_value(lambda x: x**2, torch.tensor([3.0], requires_grad=True))
        tensor([9.])
    """
    if not callable(function):
        raise ConfigError(f"a {type(function).__name__} as function: expected a function of the arguments")
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

    Both passes draw from the same states of torch's generators, except while torch compiles: the dropout masks are
    equal where forward mode lays tensors out in memory as the plain call does.

    Args:
        function: function of tensors or of pytrees of them.
        primals: where, a tuple of its arguments.
        tangents: along what, of the same structure; ``None`` stands for zero.
        moving: accepted and not used.

    Returns:
        ``(function(*primals), tangent)``; the tangent is detached, in reverse and forward mode.

    Raises:
        ConfigError: if there is not one tangent for each argument, of its structure, shape and device.
        NotImplementedError: from torch, where an operation has no forward derivative.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> value, tangent = two_pass(lambda x: x**2, (x,), (torch.ones(1),))
        >>> value.requires_grad, tangent
        (True, tensor([6.]))
    """
    tangents = checked_tangents(function, primals, tangents)
    draws = SameDraws(primals)
    value = function(*primals)
    with without_graph(), draws.again():
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
        tangents: direction of the derivative; ``None`` stands for zero.
        moving: accepted and not used.

    Raises:
        ConfigError: if there is not one tangent for each argument, of its structure, shape and device.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> _, tangent = with_graph(lambda x: x**2, (x,), (torch.ones(1),))
        >>> tangent.backward()
        >>> x.grad
        tensor([2.])
    """
    tangents = checked_tangents(function, primals, tangents)
    return jvp(function, primals, tangents)
