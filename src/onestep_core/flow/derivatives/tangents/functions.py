"""Custom ``torch.autograd.Function``s: seen while a derivative runs, and refused unless their tangent is known.

``Function.apply`` is no torch function: it would hand a Dual to ``forward``, and gradient and tangent would be lost in
silence. All calls, those of an ``op = MyFunction.apply`` bound earlier too, go through one class of torch, whose
``apply`` is replaced while a derivative runs.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import set_eval_frame
from torch.autograd.function import _SingleLevelFunction
from torch.nn.parallel import distributed
from torch.utils._pytree import tree_flatten

from onestep_core.errors import UnsupportedDerivative
from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable
from onestep_core.flow.derivatives.tangents.duals import Dual, plain
from onestep_core.flow.derivatives.tangents.rules import FUNCTIONS
from onestep_core.flow.derivatives.tangents.runs import Run, move, runs, whole

_IDENTITIES = {
    ("torch.distributed.fsdp", "RegisterPostBackwardFunction"),
    ("torch.nn.parallel.distributed", "_DDPSink"),
    ("torch.nn.modules._functions", "BackwardHookFunction"),
}
"""Functions of torch that return their inputs; by the start of their module's name, and their name."""

_LOCK = threading.Lock()
_running = 0
_stance: Any = None
_DATA: Any = Tensor.data
_FIND: Any = distributed._find_tensors


@contextmanager
def seen() -> Generator[None]:
    """Replace ``Function.apply``, the setter of ``Tensor.data`` and a search for tensors, while a derivative runs."""
    global _running, _stance
    # Below a compiled function that torch runs as written (under a dispatch mode) its compiler is still listening.
    listening = set_eval_frame(None)
    with _LOCK:
        _running += 1
        if _running == 1:
            if "torch._dynamo" in sys.modules:
                # Compiled parts of the network run as they were written. The setting is one for all threads.
                _stance = torch.compiler.set_stance("force_eager")
                _stance.__enter__()
            _SingleLevelFunction.apply = classmethod(_apply)
            Tensor.data = property(_DATA.__get__, _set_data)
            distributed._find_tensors = _find_tensors
    try:
        yield
    finally:
        with _LOCK:
            _running -= 1
            if _running == 0:
                if _stance is not None:
                    _stance.__exit__(None, None, None)
                    _stance = None
                del _SingleLevelFunction.apply
                del Tensor.data
                distributed._find_tensors = _FIND
        set_eval_frame(listening)


def _find_tensors(answer: Any) -> Any:
    """The tensors of an answer, where ``DistributedDataParallel`` looks for parameters without use."""
    return [plain(x) for x in _FIND(answer)]


def _set_data(tensor: Tensor, data: Any) -> None:
    """``tensor.data = data``, of which the data are no argument that torch's functions look at."""
    if type(data) is Dual and data.run.open:
        raise UnsupportedDerivative(
            "Tensor.data", "it replaces the memory of a tensor by that of a value with a tangent"
        )
    _DATA.__set__(tensor, plain(data))


def _original(cls: Any, args: Any, keywords: Any) -> Any:
    return super(_SingleLevelFunction, cls).apply(*args, **keywords)


def _apply(cls: Any, *args: Any, **keywords: Any) -> Any:
    active = runs()
    run = active[-1] if active else None
    leaves = tree_flatten((args, keywords))[0]
    duals = [x for x in leaves if type(x) is Dual]
    hidden = run is not None and any(isinstance(x, Tensor) and run.cell(x) is not None for x in leaves)
    if not duals and not hidden:
        return _original(cls, args, keywords)
    if run is None or (not any(x.run is run for x in duals) and not hidden):
        return _original(cls, plain(args), plain(keywords))
    if hidden and cls.__module__ == "torch._library.autograd":
        # The graph of an operation of torch.library; the operation itself comes below.
        return _original(cls, args, keywords)
    rule = FUNCTIONS.get(cls)
    known = any(cls.__name__ == name and cls.__module__.startswith(module) for module, name in _IDENTITIES)
    if hidden or (rule is None and not known) or any(type(x) is Dual for x in keywords.values()):
        raise UnsupportedDerivative(
            f"the autograd.Function {cls.__module__}.{cls.__qualname__}", "its tangent is not known"
        )
    values = [plain(x) for x in args]
    cells = [x.cell if type(x) is Dual and x.run is run else None for x in args]
    value = _original(cls, values, keywords)
    if rule is None:
        return _identity(run, value, args)
    with torch.no_grad():
        found = move(run, rule, value, values, [_filled(v, c) for v, c in zip(values, cells, strict=True)], keywords)
    if found is NotImplemented or found is None:
        return value
    if isinstance(value, Tensor):
        return Dual(value, found, run)
    return tuple(x if cell is None else Dual(x, cell, run) for x, cell in zip(value, found, strict=True))


def _filled(value: Any, cell: Cell | None) -> Cell | None:
    return None if cell is None else Cell(whole(value, cell), owned=False)


def _identity(run: Run, value: Any, args: Any) -> Any:
    """The results of a Function that returns its tensors, with their tangents."""
    single = isinstance(value, Tensor)
    results: Any = [value] if single else list(value)
    tensors = [x for x in args if isinstance(x, Tensor)]
    if len(tensors) != len(results):
        raise UnsupportedDerivative("an identity of torch's parallel wrappers", "it answered other tensors than it got")
    made = [
        Dual(y, x.cell, run) if type(x) is Dual and x.run is run and differentiable(y) else y
        for x, y in zip(tensors, results, strict=True)
    ]
    return made[0] if single else tuple(made)
