"""Below autograd: every torch function is taken apart into ATen operations, and each moves the tangents by its rule.

Autograd records the operations on the values above this mode, as always; autocast, dropout and composite functions
(multi-head attention, recurrent layers, losses) are seen as what they are made of. An operation without a rule is
differentiated by forward-mode AD of that one operation.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from onestep_core.draws import SameDraws
from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives.tangents.attention import attend
from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable, mirrored
from onestep_core.flow.derivatives.tangents.rules import OPERATIONS
from onestep_core.flow.derivatives.tangents.runs import Run, move, whole

aten: Any = torch.ops.aten
_FLASH: Any = aten._scaled_dot_product_flash_attention_for_cpu.default

_CONSTANT = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_empty", "new_full", "new_empty_strided", "detach", "sign", "sgn", "floor", "ceil", "round",
    "floor_divide",
    "trunc", "bernoulli", "heaviside", "lift_fresh",
}  # fmt: skip
"""Operations whose value does not move with their arguments."""

_DRAWS = {"zero_", "bernoulli_", "normal_", "uniform_", "exponential_", "random_", "geometric_", "cauchy_",
          "log_normal_", "heaviside_", "floor_divide_", "floor_", "ceil_", "round_", "trunc_", "sign_"}  # fmt: skip
"""Operations that write what does not move."""

_TURNS = {"t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "as_strided_"}
"""Operations that change how a tensor is seen, in place."""

_REFUSED = {"set_", "resize_", "resize_as_", "_resize_output_", "set_data", "_assert_async"}


class Below(TorchDispatchMode):
    """The mode that moves tangents below autograd, for one run.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        # As they are above autograd, for the fallback, which needs it.
        self.above = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation on the values, and move the tangents."""
        keywords = kwargs or {}
        cells = [self._cells(argument) for argument in args]
        moved = {name: self._cells(argument) for name, argument in keywords.items()}
        named = any(cell is not None for cell in moved.values())
        if not named and all(cell is None for cell in cells):
            return func(*args, **keywords)
        name = func._schema.name.split("::")[1]
        rule = OPERATIONS.get(func)
        if func._schema.is_mutable and rule is None:
            if name.startswith("_foreach_"):
                return self._each(name, args, keywords)
            return self._in_place(func, name, args, keywords, cells, moved)
        drawn = torch.Tag.nondeterministic_seeded in func.tags and rule is None
        again = SameDraws(args).again if drawn else nullcontext
        value = func(*args, **keywords)
        if type(value) in (bool, int, float):
            # A number or a truth value.
            return value
        if name in _CONSTANT and not (name == "sgn" and value.is_complex()):
            return value
        found: Any = NotImplemented
        if rule is not None and not named and (rule.complex or not _complex(args, cells)):
            found = move(self.run, rule, value, args, cells, keywords)
        if func is _FLASH and isinstance(moved.get("attn_mask"), Cell) and set(moved) <= {"attn_mask", "scale"}:
            found = self._biased_attention(value, args, cells, keywords, moved["attn_mask"])
        if found is NotImplemented:
            with again():
                found = self._fallback(func, args, keywords, cells, moved, value)
        if value is args[0] and isinstance(cells[0], Cell):
            # It wrote in place, and has a rule.
            self.run.spread(value, cells[0])
            cells[0].put(found.tangent)
            return value
        self._remember(value, found)
        return value

    def _biased_attention(self, value: Any, args: Any, cells: Any, keywords: Any, cell: Cell) -> Any:
        """Attention whose mask, a keyword, has a tangent: a bias that depends on the state."""
        tangents = [None if c is None else whole(x, c) for x, c in zip(args[:3], cells[:3], strict=True)]
        mask, causal = keywords["attn_mask"], bool(args[4]) if len(args) > 4 else False
        bias = whole(mask, cell)
        q, k, v = args[:3]
        tangent = attend(q, k, v, value[0], value[1], tangents, mask, causal, keywords.get("scale"), bias)
        return [Cell(tangent), None]

    def _each(self, name: str, args: Any, keywords: Any) -> Any:
        """An operation on lists of tensors, in place: on one after another."""
        packet = getattr(aten, name.removeprefix("_foreach_"))
        with self:
            for k in range(len(args[0])):
                packet(*(x[k] if isinstance(x, list | tuple) else x for x in args), **keywords)

    def _cells(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.run.cell(argument)
        if isinstance(argument, list | tuple):
            found = [self.run.cell(part) if isinstance(part, Tensor) else None for part in argument]
            return found if any(cell is not None for cell in found) else None
        return None

    def _remember(self, value: Any, found: Any) -> None:
        if found is None:
            return
        if isinstance(value, Tensor):
            self.run.keep(value, found)
            return
        for part, cell in zip(value, found, strict=True):
            if cell is not None and isinstance(part, Tensor):
                self.run.keep(part, cell)

    def _fallback(
        self, func: Any, args: Sequence[Any], keywords: Any, cells: Sequence[Any], moved: Any, value: Any
    ) -> Any:
        """Forward-mode AD of one operation."""
        flat, spec = tree_flatten((list(args), keywords))
        along = [self.run.cell(x) if isinstance(x, Tensor) else None for x in flat]
        places = [k for k, cell in enumerate(along) if cell is not None]
        try:
            with _disable_current_modes(), torch._C._ForceDispatchKeyGuard(*self.above), torch.no_grad():
                with forward_ad.dual_level():
                    inputs = [x.detach() if isinstance(x, Tensor) else x for x in flat]
                    for k in places:
                        cell = along[k]
                        assert cell is not None
                        inputs[k] = forward_ad.make_dual(inputs[k], whole(inputs[k], cell).to(inputs[k].dtype))
                    listed, named = tree_unflatten(inputs, spec)
                    results, _ = tree_flatten(func(*listed, **named))
                    tangents = [forward_ad.unpack_dual(x).tangent if differentiable(x) else None for x in results]
                    # A copy: what forward mode made may share memory with the tangents given.
                    tangents = [None if t is None else t.clone() for t in tangents]
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedDerivative(
                str(func), f"torch has no forward derivative of it ({_short(error)})"
            ) from error
        values, _ = tree_flatten(value)
        missing = [t is None for t, v in zip(tangents, values, strict=True) if differentiable(v)]
        if missing and (all(missing) if func.namespace in ("aten", "prims") else any(missing)):
            raise UnsupportedDerivative(str(func), "torch has no forward derivative of it")
        found = [None if t is None else Cell(t) for t in tangents]
        return found[0] if isinstance(value, Tensor) else found

    def _in_place(self, func: Any, name: str, args: Any, keywords: Any, cells: Sequence[Any], moved: Any) -> Any:
        """An operation that writes into its first argument."""
        run = self.run
        target = args[0]
        writes = [k for k, argument in enumerate(func._schema.arguments) if _written(argument)]
        if name in _REFUSED or writes != [0] or not isinstance(target, Tensor):
            raise UnsupportedDerivative(str(func), "it writes into other memory than that of its first argument")
        cell: Any = cells[0]
        if cell is None and name.endswith("_") and name in _DRAWS:
            return func(*args, **keywords)
        if name in _TURNS:
            assert isinstance(cell, Cell)
            mirrored(target, cell)
            run.spread(target, cell)
            seen = cell.tangent.view_as(cell.tangent)
            value = func(*args, **keywords)
            func(seen, *args[1:], **keywords)
            cell.tangent = seen
            return value
        if not differentiable(target):
            return func(*args, **keywords)
        if torch.Tag.nondeterministic_seeded in func.tags and name not in _DRAWS:
            raise UnsupportedDerivative(str(func), "it draws random numbers and writes in place")
        if cell is not None:
            run.spread(target, cell)
        tangent = self._written_tangent(func, name, args, keywords, cells, moved)
        value = func(*args, **keywords)
        if cell is None:
            if tangent is None:
                return value
            cell = run.write(target)
            run.keep(target, cell)
        if tangent is None:
            cell.put(torch.zeros_like(cell.tangent))
        else:
            cell.put(tangent.to(target.dtype))
        return value

    def _written_tangent(
        self, func: Any, name: str, args: Any, keywords: Any, cells: Sequence[Any], moved: Any
    ) -> Tensor | None:
        """The tangent of what will be written: that of the same operation which returns it."""
        target = args[0]
        if name in _DRAWS:
            return None
        if name == "copy_":
            source = cells[1]
            return None if source is None else whole(args[1], source).to(target.device).expand(target.shape)
        if name == "fill_" and cells[1:] == [None]:
            return None
        functional = _functional(func, name)
        before = target.detach().clone()
        if cells[0] is not None:
            run_cell = Cell(cells[0].tangent, owned=False, aliased=True)
            self.run.keep(before, run_cell)
            cells = [run_cell, *cells[1:]]
        rule = OPERATIONS.get(functional)
        arguments = (before, *args[1:])
        value = functional(*arguments, **keywords)
        found: Any = NotImplemented
        constant = all(cell is None for cell in moved.values())
        if rule is not None and constant and (rule.complex or not _complex(arguments, cells)):
            given = [_full(v, c) for v, c in zip(arguments, cells, strict=True)]
            found = move(self.run, rule, value, arguments, given, keywords)
        if found is NotImplemented:
            found = self._fallback(functional, arguments, keywords, cells, moved, value)
        return None if found is None else found.tangent


def _full(value: Any, cell: Any) -> Any:
    if isinstance(cell, Cell) and cell.axis is not None:
        return Cell(whole(value, cell), owned=False)
    return cell


def _written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _functional(func: Any, name: str) -> Any:
    """The operation that returns what this one writes: of its name without the underscore, with equal arguments."""
    packet = getattr(getattr(torch.ops, func.namespace), name.removesuffix("_"), None)
    if packet is not None and name.endswith("_"):
        expected = [str(argument.type) for argument in func._schema.arguments]
        for overload in packet.overloads():
            found = getattr(packet, overload)
            if [str(argument.type) for argument in found._schema.arguments] == expected:
                return found
    raise UnsupportedDerivative(str(func), "it writes in place, and torch has no form of it that does not")


def _complex(arguments: Sequence[Any], cells: Sequence[Any]) -> bool:
    return any(
        cell is not None and isinstance(argument, Tensor) and argument.is_complex()
        for argument, cell in zip(arguments, cells, strict=True)
    )


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
