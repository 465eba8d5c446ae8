"""``single_pass``: value and derivative in one run of the network.

The network runs once, on :class:`~onestep_core.flow.derivatives.tangents.duals.Dual` tensors. Every torch function runs
on the values as usual: graph, autocast, dropout, hooks, fused attention and data-parallel wrappers are untouched.
Beside it, without graph, the tangent moves by a rule that shares the work of the value. So there is one draw of every
random number, a tangent dies with its last reader, and no operation needs a forward derivative of its own kernel.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from onestep_core.errors import ConfigError, UnsupportedDerivative
from onestep_core.flow.derivatives.forward_mode import checked_tangents, detached, jvp, transformed
from onestep_core.flow.derivatives.tangents.cells import Cell
from onestep_core.flow.derivatives.tangents.duals import Dual, plain, unwatch
from onestep_core.flow.derivatives.tangents.functions import seen
from onestep_core.flow.derivatives.tangents.runs import Run, runs, whole

_OURS = re.compile(r"\bDual\b|\bBelow object\b|Cannot access data pointer of Tensor")


def single_pass(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """Value with its graph and tangent without, in one run of the function: exact, for any network.

    Args:
        function: function of tensors or of pytrees of them.
        primals: where, a tuple of its arguments.
        tangents: along what, of the same structure; ``None`` stands for zero.
        moving: the tangent is carried for the first ``moving`` rows alone (the first axis of every primal); the
            tangents given for the other rows count as zero, and zero is returned for them. Conditions of all rows may
            stay in the function. An operation that mixes rows goes on with all of them.

    Returns:
        ``(function(*primals), tangent)``. The tangent has no graph; that of an output which does not depend on the
        primals is zero. ``detach`` inside of the function drops a tangent and ``no_grad`` keeps it, as in
        ``torch.func.jvp``; so does reading a number (``item``).

    Inside of ``torch.func`` transforms and ``torch.compile`` it is ``torch.func.jvp``, whose tangent is detached.

    Raises:
        ConfigError: if ``moving`` is negative or above the number of rows, or if tangents do not fit their primals.
        UnsupportedDerivative: at an operation whose tangent is not known, such as a custom ``torch.autograd.Function``;
            the message names it. See :func:`tangent_rule`.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> value, tangent = single_pass(lambda x: x**2, (x,), (torch.ones(1),))
        >>> value.requires_grad, tangent
        (True, tensor([6.]))
    """
    tangents = checked_tangents(function, primals, tangents)
    if moving is not None and (isinstance(moving, bool) or not isinstance(moving, int) or moving < 0):  # pyright: ignore
        raise ConfigError(
            f"moving = {moving!r}: expected how many of the first rows move, a whole number of at least 0"
        )
    if torch.compiler.is_compiling() or transformed():
        value, tangent = jvp(function, primals, tangents)
        return value, detached(tangent)
    if torch.is_inference_mode_enabled():
        # Inference mode has no forward derivatives, which the operations without a rule need.
        with torch.inference_mode(False), torch.no_grad():
            return single_pass(function, primals, tangents, moving=moving)
    if moving == 0:
        value = function(*primals)
        return value, tree_map(_zero, value)
    if runs():
        # Inside of another derivative: that one follows the value, the tangent found here is a constant to it.
        return function(*primals), _run(function, plain(primals), plain(tangents), moving)[1]
    return _run(function, primals, tangents, moving)


def _run(
    function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], moving: int | None
) -> tuple[Any, Any]:
    leaves, spec = tree_flatten(primals)
    along = tree_flatten(tangents)[0]
    batch = max((len(x) for x, v in zip(leaves, along, strict=True) if _moves(x, v)), default=0)
    if moving is not None and moving > batch:
        raise ConfigError(f"moving = {moving}: expected at most the number of rows, {batch}")
    run = Run(moving=moving is not None)
    duals = [_dual(run, x, v, moving) for x, v in zip(leaves, along, strict=True)]
    active = runs()
    active.append(run)
    try:
        with seen():
            results, shape = tree_flatten(function(*tree_unflatten(duals, spec)))
        if run.refusal is not None:
            raise run.refusal
    except Exception as error:
        if run.refusal is not None and error is not run.refusal:
            raise run.refusal from error
        if not isinstance(error, UnsupportedDerivative) and _about_duals(error):
            raise UnsupportedDerivative(
                "an operation of the network", f"it refuses the tensors of a derivative: {error}"
            ) from error
        raise
    finally:
        if run.watching:
            unwatch()
        active.remove(run)
        run.open = False
    pairs = [_parted(run, x) for x in results]
    if moving is not None:
        pairs = [(x, _first(v, moving, batch)) for x, v in pairs]
    return tree_unflatten([x for x, _ in pairs], shape), tree_unflatten([v for _, v in pairs], shape)


def _about_duals(error: Exception) -> bool:
    """Whether an error is about the tensors or the modes of a derivative, which a plain call does not have."""
    return type(error).__module__.startswith("torch._dynamo") or _OURS.search(str(error)) is not None


def _dual(run: Run, primal: Any, tangent: Any, moving: int | None) -> Any:
    if not isinstance(primal, Tensor) or tangent is None:
        return primal
    # Another tensor than the primal, which the function may hold as a constant; an expanded one gets memory of its own.
    value = primal.contiguous() if 0 in primal.stride() and primal.numel() > 1 else primal
    value = value.clone() if value.is_inference() else value
    value = value.view_as(value) if value is primal else value
    tangent = tangent.detach().to(primal.dtype)
    partial = moving is not None and primal.dim() > 0 and moving < len(primal)
    return Dual(value, Cell(tangent[:moving] if partial else tangent, 0 if partial else None, owned=False), run)


def _parted(run: Run, answer: Any) -> tuple[Any, Any]:
    """Value and tangent of one output."""
    if type(answer) is Dual and answer.run is run:
        return answer.value, whole(answer.value, run.current(answer.value, answer.cell)).expand(answer.value.shape)
    answer = plain(answer)
    if isinstance(answer, Tensor) and run.written:
        cell = run.written_cell(answer)
        if cell is not None:
            return answer, cell.tangent
    return answer, _zero(answer)


def _moves(primal: Any, tangent: Any) -> bool:
    return isinstance(primal, Tensor) and tangent is not None and primal.dim() > 0


def _first(tangent: Any, moving: int, batch: int) -> Any:
    """The tangent with zeros in the rows that do not move: where rows were mixed they may be other numbers."""
    if not isinstance(tangent, Tensor) or tangent.dim() == 0 or len(tangent) != batch or moving == batch:
        return tangent
    rest = tangent[moving:]
    return torch.cat([tangent[:moving], torch.zeros_like(rest)])


def _zero(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return torch.zeros_like(answer, requires_grad=False)
    return 0.0 if isinstance(answer, (int, float)) else answer
