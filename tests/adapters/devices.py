"""Find, without a GPU, tensors that are made on the wrong device.

On a GPU a tensor that a factory function makes without ``device=`` is on the CPU, and the first operation with a tensor
of the run fails. :class:`ExplicitDevices` finds these calls on the CPU: while it is active, a factory function without
an explicit ``device=`` is an error, wherever the caller is a file of this library.

Calls from other files are left alone: torch's own code (optimisers, initialisers inside ``nn``, ``torch.func``) makes
its tensors on the device of its arguments, and files of the tests are not the library.

Tensors with no axis are harmless only in arithmetic: a 0-d CPU tensor mixes with a CUDA tensor in ``+``, ``*``,
``torch.where`` and comparisons, but neither in ``cat`` and ``stack`` nor as an index tensor. So they are errors here
too; a Python number does the same without a tensor.

Some code lives on the CPU on purpose, so that a seed gives the same numbers on every device, and moves its result to
the run's device afterwards. It uses a generator of its own, and ``device=`` would say nothing new. :data:`ON_THE_CPU`
lists these functions, each with the place where the result is moved.
"""

import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

import onestep_adapters
import onestep_core

LIBRARY = tuple(str(Path(package.__file__).parent) for package in (onestep_core, onestep_adapters))

FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange",
        "as_tensor",
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
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    )
}

ON_THE_CPU: dict[tuple[str, str], str] = {}
"""``(file, function)`` of code on the CPU, and where its result is moved."""


class ExplicitDevices(TorchFunctionMode):
    """While it is active, factory functions in this library need an explicit device.

    Attributes:
        found: ``file:line function`` of each call without one.
        excused: the entries of :data:`ON_THE_CPU` that were met.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.excused: set[tuple[str, str]] = set()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        """Note the call, then make it."""
        keywords = keywords or {}
        if function in FACTORIES and keywords.get("device") is None:
            self._note(function)
        return function(*arguments, **keywords)

    def _note(self, function) -> None:
        caller = sys._getframe(2)
        file = caller.f_code.co_filename
        if not file.startswith(LIBRARY):
            return
        place = (str(Path(file).relative_to(Path(LIBRARY[0]).parent)), caller.f_code.co_name)
        if place in ON_THE_CPU:
            self.excused.add(place)
        else:
            self.found[f"{place[0]}:{caller.f_lineno}"] = f"torch.{function.__name__} in {place[1]}"
