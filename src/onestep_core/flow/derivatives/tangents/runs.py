"""One derivative in progress: which values have tangents, and how one operation moves them."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable, mirrored, same_strides
from onestep_core.flow.derivatives.tangents.rules import Rule, partial


class Run:
    """One derivative in progress.

    Attributes:
        open: whether the network is running.
        moving: whether tangents can have rows left out.
        table: the values with tangents inside of one torch function, by ``id``.
        written: tangents of memory that the network made itself and wrote a value with a tangent into, by storage:
            its views have no common object that could hold a tangent. With the detached tensor it was written through.
        parted: the detached tensors, by ``id``: they share memory with a value, and no tangent.
        watching: whether functions of all tensors are seen, which is necessary after the first such write.
        refusal: what a kernel from outside was refused with; raised again if it was caught on the way.
    """

    def __init__(self, *, moving: bool) -> None:
        self.open = True
        self.moving = moving
        self.table: dict[int, tuple[Any, Cell]] = {}
        self.written: dict[int, tuple[Any, Tensor, int | None]] = {}
        self.parted: dict[int, Any] = {}
        self.watching = False
        self.refusal: UnsupportedDerivative | None = None

    def keep(self, value: Tensor, cell: Cell) -> None:
        """Remember a value's tangent while the torch function under way is running."""
        table = self.table
        key = id(value)

        def gone(_: Any) -> None:
            table.pop(key, None)

        table[key] = (weakref.ref(value, gone), cell)

    def cell(self, value: Any) -> Cell | None:
        """The tangent of a value inside of a torch function."""
        entry = self.table.get(id(value))
        if entry is not None and entry[0]() is value:
            return self.current(value, entry[1])
        return self.written_cell(value) if self.written and isinstance(value, Tensor) else None

    def current(self, value: Tensor, cell: Cell) -> Cell:
        """The cell, brought up to date if the rows it left out were filled up through another view."""
        if cell.axis is not None and cell.aliased and self.written:
            found = self.written_cell(value)
            if found is not None:
                cell.tangent, cell.axis = found.tangent, None
        return cell

    def written_cell(self, value: Tensor) -> Cell | None:
        """The tangent of a tensor whose memory the network wrote a value with a tangent into."""
        if value.layout != torch.strided or not differentiable(value):
            return None
        entry = self.written.get(value.untyped_storage()._cdata)
        if entry is None or entry[2] != self._detached(value):
            return None
        memory = entry[1]
        if memory.dtype != value.dtype and value.dtype.to_real() == memory.dtype.to_real():
            memory = memory.view(value.dtype)
        if memory.dtype != value.dtype:
            raise UnsupportedDerivative(
                f"a view of {memory.dtype} as {value.dtype}", "it shares memory that has a tangent of another dtype"
            )
        return Cell(memory.as_strided(value.shape, value.stride(), value.storage_offset()), aliased=True)

    def write(self, value: Tensor) -> Cell:
        """Give the memory of a tensor without tangent one of zeros, for a value with a tangent to be written into."""
        storage = value.untyped_storage()
        if storage._cdata in self.written:
            raise UnsupportedDerivative(
                "a write into a detached tensor", "memory that it shares already has a tangent: write into a clone"
            )
        count = storage.nbytes() // value.element_size()
        memory = torch.zeros(count, dtype=value.dtype, device=value.device)
        self.written[storage._cdata] = (storage, memory, self._detached(value))
        found = self.written_cell(value)
        if found is None:
            raise UnsupportedDerivative("a write into memory without numbers", "it cannot have a tangent")
        return found

    def part(self, value: Tensor) -> None:
        """Remember a detached tensor: it and its views share no tangent with other tensors of their memory."""
        parted, key = self.parted, id(value)

        def gone(_: Any) -> None:
            parted.pop(key, None)

        parted[key] = weakref.ref(value, gone)

    def _detached(self, value: Tensor) -> int | None:
        """The detached tensor that the value is or views, by ``id``."""
        root = value._base if value._is_view() else value
        entry = self.parted.get(id(root))
        return None if entry is None or entry() is not root else id(root)

    def spread(self, value: Tensor, cell: Cell) -> None:
        """Fill up the rows left out, in place: for all views of the same memory."""
        if cell.axis is None:
            return
        if not cell.aliased:
            cell.tangent, cell.axis, cell.owned = whole(value, cell), None, True
            return
        shift = value.storage_offset() - cell.tangent.storage_offset()
        part = cell.tangent.as_strided((cell.tangent.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
        filled = self.write(value)
        memory = self.written[value.untyped_storage()._cdata][1]
        memory[shift : shift + len(part)] = part
        cell.tangent, cell.axis = filled.tangent, None


def whole(value: Tensor, cell: Cell) -> Tensor:
    """The tangent with all rows: those left out are zero."""
    if cell.axis is None:
        return cell.tangent
    rest = value.shape[cell.axis] - cell.tangent.shape[cell.axis]
    shape = [*cell.tangent.shape]
    shape[cell.axis] = rest
    return torch.cat([cell.tangent, cell.tangent.new_zeros(shape)], cell.axis)


def _filled(value: Any, cell: Any) -> Any:
    if cell is None:
        return None
    if isinstance(cell, Cell):
        return Cell(whole(value, cell), owned=False) if cell.axis is not None else cell
    return [_filled(v, c) for v, c in zip(value, cell, strict=True)]


def _tangents(cells: Any) -> Any:
    return [None if cell is None else cell.tangent if isinstance(cell, Cell) else _tangents(cell) for cell in cells]


def move(
    run: Run, rule: Rule, value: Any, arguments: Sequence[Any], cells: Sequence[Any], keywords: dict[str, Any]
) -> Any:
    """The cell or cells of what an operation returned, by its rule.

    Returns:
        A cell, ``None`` for a constant, a list of them for several values; ``NotImplemented`` if the rule does not
        know this call.
    """
    if rule.views:
        source = cells[0]
        if source is None:
            return None
        cells = [source, *[None] * (len(cells) - 1)]
        mirrored(arguments[0], source)
    axis: int | None = None
    restricted, of = value, arguments
    if partial(cells):
        plan = None if rule.rows is None else rule.rows(value, arguments, cells, keywords)
        if plan is None and rule.views:
            # A view of other rows than the first: it has to see what is written into those later.
            run.spread(arguments[0], cells[0])
            mirrored(arguments[0], cells[0])
        elif plan is None:
            cells = [_filled(v, c) for v, c in zip(arguments, cells, strict=True)]
        else:
            restricted, of, axis = plan
    tangent = rule.tangent(restricted, of, _tangents(cells), **keywords)
    if tangent is NotImplemented or tangent is None:
        return tangent
    if isinstance(value, tuple | list):
        return [
            None if part is None else settled(rule, whole_part, restricted_part, part, cells, axis)
            for whole_part, restricted_part, part in zip(value, restricted, tangent, strict=True)
        ]
    return settled(rule, value, restricted, tangent, cells, axis)


def settled(
    rule: Rule, value: Tensor, restricted: Tensor, tangent: Tensor, cells: Sequence[Any], axis: int | None
) -> Any:
    """The cell of a tangent that a rule answered, after a look at its shape, its numbers and its memory."""
    if not differentiable(value):
        return None
    if tangent.shape != restricted.shape:
        raise UnsupportedDerivative(
            getattr(rule.tangent, "__qualname__", "a rule"),
            f"the rule answered a tangent {list(tangent.shape)} for a value {list(restricted.shape)}",
        )
    if tangent.dtype != value.dtype:
        tangent = tangent.to(value.dtype)
    if rule.views:
        aliased = same_strides(tangent, value)
        if aliased:
            cells[0].aliased = True
        return Cell(tangent, axis, aliased=aliased, part=None if axis is None else restricted)
    owned = not rule.foreign
    for cell in _flat(cells):
        if cell.tangent is tangent:
            if cell.aliased:
                tangent = tangent.clone()
            else:
                cell.owned = owned = False
    return Cell(tangent, axis, owned=owned, part=None if axis is None else restricted)


def _flat(cells: Any) -> list[Cell]:
    found: list[Cell] = []
    for cell in cells:
        if isinstance(cell, Cell):
            found.append(cell)
        elif cell is not None:
            found += _flat(cell)
    return found


class _Threads(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []


_THREADS = _Threads()


def runs() -> list[Run]:
    """The derivatives under way in this thread, the innermost last."""
    return _THREADS.runs


def refused(operation: str, reason: str) -> UnsupportedDerivative:
    """The error to raise, which is raised again at the end if the network catches it."""
    refusal = UnsupportedDerivative(operation, reason)
    for run in runs():
        run.refusal = refusal
    return refusal
