"""The table of rules: how a tangent goes through one operation.

A rule is a function ``(value, arguments, tangents, **keywords) -> tangent``:

- ``value``: what the operation returned, a tensor or a tuple of tensors;
- ``arguments``: its positional arguments, the values; ``keywords``: its keyword arguments;
- ``tangents``: for every positional argument its tangent, or ``None``; for a list or a tuple of tensors a list;
- the result: the tangent of the value, ``None`` for one that is constant, a tuple if the value is a tuple.

It runs without graph. The keys of :data:`FUNCTIONS` are functions as the network calls them
(``torch.nn.functional.silu``, ``Tensor.__mul__``), the keys of :data:`OPERATIONS` are ATen operations, below autograd.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.overrides import resolve_name

from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives.tangents.cells import Cell
from onestep_core.validators import require_call

TangentRule: TypeAlias = Callable[..., Any]
"""``(value, arguments, tangents, **keywords) -> tangent``; see the module."""


class FirstRows(NamedTuple):
    """A call restricted to the rows that its tangents have."""

    value: Any
    arguments: Sequence[Any]
    axis: int
    """The axis of the value along which rows are left out."""


RowPlan: TypeAlias = Callable[[Any, Sequence[Any], Sequence[Any], Any], FirstRows | None]
"""``(value, arguments, cells, keywords) -> the call's first rows``, or ``None`` where rows are not independent."""


class Rule(NamedTuple):
    """A rule and what is known about it."""

    tangent: TangentRule
    rows: RowPlan | None = None
    accepts: Callable[[Sequence[Any], dict[str, Any]], bool] | None = None
    """Which calls it knows; the others go on to the operations below."""
    views: bool = False
    """Whether the value can share the memory of its argument."""
    complex: bool = False
    """Whether it holds for complex numbers too."""
    call: Callable[..., tuple[Sequence[Any], Any] | None] | None = None
    """Calls an operation in the function's place that also returns what the rule needs: ``(values, **keywords)
    -> (arguments, values)``, of which the network gets the first value; ``None`` where it cannot."""
    alone: bool = False
    """Whether ``call`` knows tangents of the first argument alone."""
    foreign: bool = False
    """Whether a user wrote it: then nothing is known about the memory of its result."""


FUNCTIONS: dict[Any, Rule] = {}
OPERATIONS: dict[Any, Rule] = {}


def function_rule(
    *functions: Any,
    count: int | tuple[int, ...] | None = None,
    rows: RowPlan | None = None,
    views: bool = False,
    complex: bool = False,
    when: Callable[[Sequence[Any]], bool] | None = None,
    call: Any = None,
    alone: bool = False,
) -> Callable[[TangentRule], TangentRule]:
    """Decorator: a rule of functions as the network calls them.

    Args:
        functions: the functions.
        count: how many positional arguments a call has that the rule knows; any, by default. Keywords are those of the
            rule.
        rows: which rows are independent.
        views: whether the value can share the memory of its argument.
        complex: whether it holds for complex numbers too.
        when: which positional arguments the rule knows; any, by default.
        call: see :class:`Rule`; its keywords are those that the rule knows.
        alone: see :class:`Rule`.
    """

    def keep(rule: TangentRule) -> TangentRule:
        parameters = inspect.signature(rule if call is None else call).parameters.values()
        known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        every = any(p.kind is p.VAR_KEYWORD for p in parameters)
        counts = (count,) if isinstance(count, int) else count

        def accepts(arguments: Sequence[Any], keywords: dict[str, Any]) -> bool:
            if counts is not None and len(arguments) not in counts:
                return False
            if when is not None and not when(arguments):
                return False
            return not keywords or (not keywords.get("inplace") and (every or known.issuperset(keywords)))

        for function in functions:
            FUNCTIONS[function] = Rule(rule, rows, accepts, views, complex, call, alone)
        return rule

    return keep


def operation_rule(
    *operations: Any, rows: RowPlan | None = None, views: bool = False, complex: bool = False
) -> Callable[[TangentRule], TangentRule]:
    """Decorator: a rule of ATen operations."""

    def keep(rule: TangentRule) -> TangentRule:
        for operation in operations:
            OPERATIONS[operation] = Rule(rule, rows, None, views, complex)
        return rule

    return keep


def tangent_rule(operation: Any) -> Callable[[TangentRule], TangentRule]:
    """Decorator that teaches :func:`single_pass` how a tangent goes through an operation of your own.

    The rule is ``(arguments, tangents) -> tangent``: the positional arguments of the operation, their tangents
    (``None`` where there is none), and the tangent of the value, in its shape; for an operation of several outputs a
    tuple, with ``None`` for a constant one. A rule with a keyword ``value`` is also given what the operation returned;
    keyword arguments of the operation are handed on. It runs without graph. The value itself, its graph and its
    backward pass stay as they are.

    Args:
        operation: a subclass of ``torch.autograd.Function``, an operation of ``torch.library`` (``torch.ops.a.b``, or
            what ``torch.library.custom_op`` returned), or a function that torch dispatches (``torch.sin``).

    Raises:
        ConfigError: if the operation is of another kind, which :func:`single_pass` never sees.

    Example:
        >>> class Double(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...     @staticmethod
        ...     def backward(ctx, gradient):
        ...         return 2 * gradient
        >>> @tangent_rule(Double)
        ... def double_tangent(arguments, tangents):
        ...     return 2 * tangents[0]
    """
    key: Any = getattr(operation, "_opoverload", operation)
    if isinstance(key, torch._ops.OpOverloadPacket):
        keys = [getattr(key, name) for name in key.overloads()]
    elif isinstance(key, torch._ops.OpOverload) or _custom(key) or _dispatched(key):
        keys = [key]
    else:
        name = getattr(operation, "__qualname__", type(operation).__name__)
        raise ConfigError(
            f"tangent_rule({name}): expected a subclass of torch.autograd.Function, an operation of torch.library or a "
            "function of torch; single_pass sees no other call, so make the function one by torch.library.custom_op"
        )

    def keep(rule: TangentRule) -> TangentRule:
        require_call("rule", rule, ("arguments", "tangents"))
        with_value = "value" in inspect.signature(rule).parameters

        def full(value: Any, arguments: Any, tangents: Any, **keywords: Any) -> Any:
            given = {"value": value, **keywords} if with_value else keywords
            return rule(tuple(arguments), tuple(tangents), **given)

        full.__qualname__ = f"the rule of {getattr(operation, '__qualname__', operation)}"
        for key in keys:
            table = OPERATIONS if isinstance(key, torch._ops.OpOverload) else FUNCTIONS
            table[key] = Rule(full, foreign=True)
        return rule

    return keep


def _custom(key: Any) -> bool:
    return isinstance(key, type) and issubclass(key, torch.autograd.Function) and key is not torch.autograd.Function


def _dispatched(key: Any) -> bool:
    """Whether torch hands the call of a function to the tensors that it is given."""
    if not callable(key) or isinstance(key, (type, torch.nn.Module)):
        return False
    written = getattr(inspect.unwrap(key), "__code__", None)
    return (
        resolve_name(key) is not None
        or (getattr(key, "__module__", None) or "").startswith("torch._C")
        or (written is not None and "handle_torch_function" in written.co_names)
    )


def like(tangent: Any, value: Tensor) -> Tensor:
    """The tangent in the shape of the value, expanded where an argument without tangent was larger."""
    return tangent if tangent.shape == value.shape else tangent.expand(value.shape)


def partial(cells: Sequence[Any]) -> bool:
    """Whether a tangent among the cells has rows left out."""
    for cell in cells:
        if isinstance(cell, Cell):
            if cell.axis is not None:
                return True
        elif cell is not None and partial(cell):
            return True
    return False


def real(values: Sequence[Any], cells: Sequence[Any]) -> bool:
    """Whether all values with a tangent are real."""
    for value, cell in zip(values, cells, strict=True):
        if cell is not None and isinstance(value, Tensor) and value.is_complex():
            return False
    return True
