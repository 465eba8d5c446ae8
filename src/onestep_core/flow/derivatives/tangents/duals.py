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
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives.tangents.below import Below
from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable, mirrored
from onestep_core.flow.derivatives.tangents.kernels import drops, pop_kind, push_below, without_fused_kernels
from onestep_core.flow.derivatives.tangents.refusals import (
    DETACHES,
    NUMBERS,
    PASSES,
    PLAIN,
    READS,
    RECURRENT,
    REFUSED,
    name_of,
)
from onestep_core.flow.derivatives.tangents.rules import FUNCTIONS, Rule, real
from onestep_core.flow.derivatives.tangents.runs import Run, move, refused, runs, settled

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
        active = runs()
        if active:
            if torch._C._functorch.peek_interpreter_stack() is not None:
                raise refused(
                    name_of(func), "a torch.func transform inside of the function holds a value with a tangent"
                )
            run = active[-1]
            rule = FUNCTIONS.get(func)
            if rule is not None and not run.written:
                result = _quick(run, rule, func, args, kwargs)
                if result is not _OTHER:
                    return result
        result = call(func, args, kwargs or {})
        if active and active[-1].written and not active[-1].watching:
            push_below(Watch())
            active[-1].watching = True
        return result

    # What is asked most often goes past torch's dispatch; the value answers.
    @property
    def shape(self) -> Any:
        """Shape of the value."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """Kind of the numbers."""
        return self.value.dtype

    @property
    def device(self) -> Any:
        """Where the value lies."""
        return self.value.device

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.value.ndim

    @property
    def requires_grad(self) -> bool:
        """Whether autograd follows the value."""
        return self.value.requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.value.requires_grad = flag

    def dim(self) -> int:
        """Number of axes."""
        return self.value.dim()

    def size(self, *axis: Any, **keywords: Any) -> Any:
        """Shape of the value, or its length along one axis."""
        return self.value.size(*axis, **keywords)

    def is_floating_point(self) -> bool:
        """Whether the numbers are real floating-point numbers."""
        return self.value.is_floating_point()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what goes past ``__torch_function__``: its gradient and tangent would be lost."""
        raise refused(
            str(func), "a kernel or a transform from outside of torch's functions reads a value with a tangent"
        )


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
        raise UnsupportedDerivative(name_of(function), reason)
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
    if rule is not None and rule.call is None and (rule.accepts is None or rule.accepts(values, keywords)):
        constant = not keywords or not any(type(x) is Dual for x in keywords.values())
        if constant and _known(cells) and (rule.complex or real(values, cells)):
            return _by_rule(run, rule, function, args, values, cells, keywords)
    return _below(run, function, args, values, keywords)


def _quick(run: Run, rule: Rule, function: Any, args: Sequence[Any], keywords: dict[str, Any] | None) -> Any:
    """A function with a rule, on arguments without lists of tensors; :data:`_OTHER` if there is more to look at."""
    values: list[Any] = []
    cells: list[Any] = []
    tangents: list[Any] = []
    whole, last = True, None
    for x in args:
        kind = type(x)
        if kind is Dual:
            if x.run is not run:
                return _OTHER
            last = x
            cell = x.cell
            values.append(x.value)
            cells.append(cell)
            tangents.append(cell.tangent)
            whole = whole and cell.axis is None
            continue
        if kind not in PLAIN:
            if kind is not tuple and kind is not list:
                return _OTHER
            for part in x:
                if type(part) not in PLAIN:
                    return _OTHER
        values.append(x)
        cells.append(None)
        tangents.append(None)
    if last is None or (rule.views and cells[0] is None):
        return _OTHER
    if rule.alone and (cells[0] is None or any(cell is not None for cell in cells[1:])):
        return _OTHER
    if keywords:
        for x in keywords.values():
            if type(x) not in PLAIN:
                return _OTHER
    else:
        keywords = {}
    if rule.accepts is not None and not rule.accepts(values, keywords):
        return _OTHER
    if not rule.complex and last.value.is_complex():
        return _OTHER
    if rule.call is None:
        value = answer = function(*values, **keywords)
        if value is values[0]:
            return args[0]
    else:
        done = None if torch.is_autocast_enabled(last.value.device.type) else rule.call(values, **keywords)
        if done is None:
            return _OTHER
        values, answer = list(done[0]), done[1]
        value, keywords = answer[0], {}
        cells += [None] * (len(values) - len(cells))
        tangents += [None] * (len(values) - len(tangents))
    graph = torch.is_grad_enabled()
    forward = forward_ad._current_level >= 0
    torch._C._set_grad_enabled(False)
    if forward:
        torch._C._set_fwd_grad_enabled(False)
    try:
        axis, part, of = None, answer, values
        known = type(value) is Tensor and not rule.foreign
        if known and not whole and rule.rows is not None:
            plan = rule.rows(answer, values, cells, keywords)
            if plan is not None:
                part, of, axis = plan
        if not known or (axis is None and not whole):
            found = move(run, rule, answer, values, cells, keywords)
            return _wrapped(run, value, found if rule.call is None else found[0])
        if rule.views:
            tangents[0] = mirrored(values[0], cells[0])
        tangent = rule.tangent(part, of, tangents, **keywords)
        if rule.call is not None:
            tangent, part = tangent[0], part[0]
        same = tangent.dtype == value.dtype and tangent.shape == part.shape and id(tangent) not in map(id, tangents)
        if rule.views or not same:
            return _wrapped(run, value, settled(rule, value, part, tangent, cells, axis))
        return Dual(value, Cell(tangent, axis, part=None if axis is None else part), run)
    finally:
        torch._C._set_grad_enabled(graph)
        if forward:
            torch._C._set_fwd_grad_enabled(True)


def _wrapped(run: Run, value: Any, found: Any) -> Any:
    """What the network gets of an operation: values with their cells."""
    if found is None:
        return value
    if isinstance(value, Tensor):
        return Dual(value, found, run)
    made = [part if cell is None else Dual(part, cell, run) for part, cell in zip(value, found, strict=True)]
    return tuple(made) if isinstance(value, tuple) else made


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


def _detached(run: Run, function: Any, args: Sequence[Any], values: list[Any], cells: list[Any]) -> Any:
    """The value without its tangent."""
    # With gradients on, the result is no view of the value: what is written through it later is told apart.
    with torch.enable_grad():
        value = function(*values)
    if value is values[0]:
        if cells[0] is not None:
            cells[0].put(torch.zeros_like(cells[0].tangent), cells[0].axis)
        return args[0]
    run.part(value)
    return value


def _into(function: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """A function that writes its value into ``out``."""
    target = keywords["out"]
    rest = {name: x for name, x in keywords.items() if name != "out"}
    result = call(function, args, rest)
    pairs = [(target, result)] if isinstance(target, Tensor) else list(zip(target, result, strict=True))
    for into, x in pairs:
        if into.shape != x.shape:
            raise UnsupportedDerivative(name_of(function), f"out has the shape {list(into.shape)}, not {list(x.shape)}")
        call(Tensor.copy_, (into, x), {})
    return target


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
    return _wrapped(run, value, found)


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
                stack.enter_context(without_fused_kernels())
            if function is F.scaled_dot_product_attention and drops(values, named):
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
                raise UnsupportedDerivative(name_of(function), "it returns an iterator, whose tensors are not seen")
    finally:
        # The table and its weak references are a cycle: emptied, no tangent waits for the garbage collector.
        run.table.clear()
        run.table = outer
    return tree_unflatten(results, spec)


def unwatch() -> None:
    """The end of watching functions of all tensors."""
    pop_kind(Watch)
