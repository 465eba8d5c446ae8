"""What the network holds while it is differentiated: a value and its tangent, as one tensor.

Two layers. The functions that networks call most have a rule of their own (:data:`~rules.FUNCTIONS`): the function runs
on the values, the rule on the tangents. All others run :mod:`below autograd <below>`, taken apart into operations.

A :class:`Dual` has no memory of its own, so nothing can read the value past ``__torch_function__``: a foreign kernel
that tries raises :class:`~onestep_core.errors.UnsupportedDerivative`. After the derivative a Dual that was kept (in a
module's cache, or for a checkpoint that runs the network again in the backward pass) acts as its value.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives.tangents.below import Below
from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable
from onestep_core.flow.derivatives.tangents.refusals import DETACHES, NUMBERS, PASSES, READS, RECURRENT, REFUSED
from onestep_core.flow.derivatives.tangents.rules import FUNCTIONS, Rule
from onestep_core.flow.derivatives.tangents.runs import Run, move, runs

_OTHER = object()


class Dual(Tensor):
    """A value and its tangent."""

    value: Tensor
    cell: Cell
    run: Run

    @staticmethod
    def __new__(cls: Any, value: Tensor, cell: Cell, run: Run) -> "Dual":
        """A tensor that looks like the value, without memory."""
        dual = Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        # What reads memory without asking raises, too.
        torch._C._set_throw_on_mutable_data_ptr(dual)
        dual.value, dual.cell, dual.run = value, cell, run
        return dual

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function on the values, and move the tangents."""
        result = call(func, args, kwargs or {})
        active = runs()
        if active and active[-1].written and not active[-1].watching:
            watch()
            active[-1].watching = True
        return result

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what goes past ``__torch_function__``: its gradient and tangent would be lost."""
        refusal = UnsupportedDerivative(
            str(func), "a kernel or a transform from outside of torch's functions reads a value with a tangent"
        )
        for run in runs():
            run.refusal = refusal
        raise refusal


class Watch(TorchFunctionMode):
    """Sees functions of tensors that are no Dual, once the network has written a tangent into one of them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As :meth:`Dual.__torch_function__`."""
        return call(func, args, kwargs or {})


def plain(tree: Any) -> Any:
    """The values in place of Duals, in any pytree."""

    def value(leaf: Any) -> Any:
        if type(leaf) is not Dual:
            return leaf
        if leaf.run.open and leaf.run not in runs():
            raise UnsupportedDerivative("a second thread", "it has no part in the derivative that another thread takes")
        return leaf.value

    return value(tree) if isinstance(tree, Tensor) else tree_map(value, tree)


def call(function: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """One torch function, on values and tangents."""
    active = runs()
    if function in NUMBERS:
        return function(plain(args[0]).detach(), *args[1:], **keywords)
    if function in READS or not active:
        if len(args) == 1 and not keywords:
            return function(plain(args[0]))
        return function(*plain(tuple(args)), **plain(keywords))
    run = active[-1]
    reason = REFUSED.get(function)
    if reason is not None:
        raise UnsupportedDerivative(_name(function), reason)
    if keywords.get("out") is not None:
        return _into(function, args, keywords)
    values, cells = _split(run, args)
    rule = FUNCTIONS.get(function)
    if function in DETACHES:
        return _detached(run, function, args, values, cells)
    if function in PASSES:
        value = function(*values, **keywords)
        return args[0] if value is values[0] else value
    if function is Tensor.__iter__:
        return iter(call(Tensor.unbind, args, {}))
    if rule is not None and (rule.accepts is None or rule.accepts(values, keywords)):
        constant = not keywords or not any(type(x) is Dual for x in keywords.values())
        if constant and _known(cells) and (rule.complex or _real(values, cells)):
            return _by_rule(run, rule, function, args, values, cells, keywords)
    return _below(run, function, args, values, keywords)


def _split(run: Run, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Values and cells of positional arguments; of a list or a tuple, lists."""
    values: list[Any] = []
    cells: list[Any] = []
    for x in args:
        kind = type(x)
        if kind is Dual:
            values.append(x.value)
            if x.run is run:
                cells.append(run.current(x.value, x.cell) if run.written else x.cell)
            else:
                plain(x)
                cells.append(None)
        elif kind is tuple or kind is list:
            inner, found = _split(run, x)
            values.append(kind(inner))
            cells.append(found if any(cell is not None for cell in found) else None)
        elif run.written and isinstance(x, Tensor):
            values.append(x)
            cells.append(run.written_cell(x))
        elif isinstance(x, dict | tuple | list):
            # Another container: its tangents are found below.
            inner = plain(x)
            values.append(inner)
            cells.append(_OTHER if any(type(leaf) is Dual for leaf in tree_flatten(x)[0]) else None)
        else:
            values.append(x)
            cells.append(None)
    return values, cells


def _known(cells: Sequence[Any]) -> bool:
    return all(cell is not _OTHER for cell in cells)


def _real(values: Sequence[Any], cells: Sequence[Any]) -> bool:
    for value, cell in zip(values, cells, strict=True):
        if cell is not None and isinstance(value, Tensor) and value.is_complex():
            return False
    return True


def _detached(run: Run, function: Any, args: Sequence[Any], values: list[Any], cells: list[Any]) -> Any:
    """The value without its tangent. Where memory is told apart by its storage alone, a copy."""
    value = function(*values)
    if value is values[0]:
        if cells[0] is not None:
            cells[0].put(torch.zeros_like(cells[0].tangent), cells[0].axis)
        return args[0]
    return value.clone() if run.written and run.written_cell(value) is not None else value


def _into(function: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """A function that writes its value into ``out``."""
    target = keywords["out"]
    rest = {name: x for name, x in keywords.items() if name != "out"}
    result = call(function, args, rest)
    pairs = [(target, result)] if isinstance(target, Tensor) else list(zip(target, result, strict=True))
    for into, x in pairs:
        if into.shape != x.shape:
            raise UnsupportedDerivative(_name(function), f"out has the shape {list(into.shape)}, not {list(x.shape)}")
        call(Tensor.copy_, (into, x), {})
    return target


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or str(function)


def _by_rule(
    run: Run,
    rule: Rule,
    function: Any,
    args: Sequence[Any],
    values: list[Any],
    cells: list[Any],
    keywords: dict[str, Any],
) -> Any:
    value = function(*values, **keywords)
    if value is values[0]:
        return args[0]
    if all(cell is None for cell in cells):
        return value
    graph, forward = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
    torch._C._set_grad_enabled(False)
    torch._C._set_fwd_grad_enabled(False)
    try:
        found = move(run, rule, value, values, cells, keywords)
    finally:
        torch._C._set_grad_enabled(graph)
        torch._C._set_fwd_grad_enabled(forward)
    if found is None:
        return value
    if isinstance(value, Tensor):
        return Dual(value, found, run)
    made = [part if cell is None else Dual(part, cell, run) for part, cell in zip(value, found, strict=True)]
    return tuple(made) if isinstance(value, tuple) else made


def _below(run: Run, function: Any, args: Sequence[Any], values: list[Any], keywords: dict[str, Any]) -> Any:
    """A function by the operations that it is made of."""
    given: dict[int, Any] = {}
    outer, run.table = run.table, {}
    try:
        leaves, _ = tree_flatten((list(args), keywords))
        for leaf in leaves:
            if type(leaf) is Dual:
                if leaf.run is run:
                    given[id(leaf.value)] = leaf
                    run.keep(leaf.value, leaf.cell)
            elif isinstance(leaf, Tensor):
                given[id(leaf)] = leaf
        named = plain(keywords)
        with ExitStack() as stack:
            if function in RECURRENT:
                stack.enter_context(_without_fused_kernels())
            if function is F.scaled_dot_product_attention and _drops(values, named):
                # The fused kernels of a GPU keep their dropout mask to themselves.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(Below(run))
            value = function(*values, **named)
        results, spec = tree_flatten(value)
        for k, x in enumerate(results):
            if isinstance(x, Tensor):
                if id(x) in given:
                    results[k] = given[id(x)]
                    continue
                cell = run.cell(x)
                if cell is not None and differentiable(x):
                    results[k] = Dual(x, cell, run)
            elif hasattr(x, "__next__"):
                raise UnsupportedDerivative(_name(function), "it returns an iterator, whose tensors are not seen")
    finally:
        # The table and its weak references are a cycle: emptied, no tangent waits for the garbage collector.
        run.table.clear()
        run.table = outer
    return tree_unflatten(results, spec)


def _drops(arguments: Sequence[Any], keywords: dict[str, Any]) -> bool:
    return (arguments[4] if len(arguments) > 4 else keywords.get("dropout_p", 0.0)) > 0


@contextmanager
def _without_fused_kernels() -> Generator[None]:
    """Recurrent layers step by step: those of oneDNN and cuDNN have no forward derivative."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


def watch() -> None:
    """See all functions from here on, below the modes that are active."""
    above: list[Any] = []
    while torch._C._len_torch_function_stack():
        above.append(torch._C._pop_torch_function_stack())
    torch._C._push_on_torch_function_stack(Watch())
    for mode in reversed(above):
        torch._C._push_on_torch_function_stack(mode)


def unwatch() -> None:
    """The end of :func:`watch`."""
    above: list[Any] = []
    while torch._C._len_torch_function_stack():
        mode = torch._C._pop_torch_function_stack()
        if isinstance(mode, Watch):
            break
        above.append(mode)
    for mode in reversed(above):
        torch._C._push_on_torch_function_stack(mode)
