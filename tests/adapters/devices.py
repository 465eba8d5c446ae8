"""Find, without a GPU, tensors that are made on the wrong device.

On a GPU a tensor that a factory function makes without ``device=`` is on the CPU, and an operation with a tensor of the
run fails. :class:`ExplicitDevices` finds these calls on the CPU: while it is active it notes every call of a factory
function without an explicit ``device=``.

Only calls from files of this library count. Torch's own code (optimisers, ``nn``, ``torch.func``) makes its tensors on
the device of its arguments, and a user's code is the user's.

No call is excused. A tensor without axes is harmless in arithmetic only: a 0-d CPU tensor mixes with a CUDA tensor in
``+``, in comparisons and in ``torch.where``, but not in ``cat``, ``stack`` or ``index_put``, and as an index it
forces a synchronisation. A Python number does the same without a tensor. Code that is on the CPU on purpose (draws that
are the same on every device, the times of a grid) has ``device="cpu"`` or the device of its own generator, and moves
its result.

Not found: tensors that are made on the CPU with an explicit device and then never moved, random draws from a generator
of another device, and data that arrive on the wrong device. These need a GPU.
"""

import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

import onestep_adapters
import onestep_core

LIBRARY = tuple(str(Path(package.__file__).parent) for package in (onestep_core, onestep_adapters))
ROOT = Path(LIBRARY[0]).parent

FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "eye",
        "from_numpy",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    )
}


class ExplicitDevices(TorchFunctionMode):
    """While it is active, calls of factory functions in this library without an explicit device are noted.

    Attributes:
        found: ``file:line`` of each call, and what was called where.
        calls: number of calls of factory functions with an explicit device, from this library.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.calls = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        """Note the call, then make it."""
        keywords = keywords or {}
        if function in FACTORIES:
            caller = sys._getframe(1)
            file = caller.f_code.co_filename
            # ``from_numpy`` has no ``device=``; a move follows in the same expression.
            if file.startswith(LIBRARY) and function is not torch.from_numpy:
                if keywords.get("device") is None:
                    place = f"{Path(file).relative_to(ROOT)}:{caller.f_lineno}"
                    self.found[place] = f"torch.{function.__name__} in {caller.f_code.co_name}"
                else:
                    self.calls += 1
        return function(*arguments, **keywords)
