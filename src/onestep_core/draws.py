"""The same random draws in several evaluations: states of torch's generators."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves  # pyright: ignore[reportUnknownVariableType]


def devices_of(*trees: Any) -> set[torch.device]:
    """The processor and the devices of all tensors in pytrees; a ``meta`` device has no generator."""
    tensors = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
    return {torch.device("cpu")} | {tensor.device for tensor in tensors if tensor.device.type != "meta"}


def generator_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """The states of torch's generators of these devices."""
    return {device: _state(device) for device in devices}


def set_generators(states: Mapping[torch.device, Tensor]) -> None:
    """Put torch's generators into these states."""
    for device, state in states.items():
        match device.type:
            case "cpu":
                torch.set_rng_state(state)
            case "mps":
                torch.mps.set_rng_state(state)
            case _:
                torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def drawing_from(states: Mapping[torch.device, Tensor]) -> Generator[None]:
    """Draw as from these states, and leave the generators as they were before."""
    before = generator_states(states)
    set_generators(states)
    try:
        yield
    finally:
        set_generators(before)


class SameDraws:
    """What is drawn after its construction is drawn again inside of :meth:`again`, as often as it is entered.

    While torch compiles, nothing is repeated: a compiled graph has no state of a generator.

    Args:
        arguments: pytrees of tensors; their devices are those whose generators count.

    Example:
        >>> draws = SameDraws(torch.ones(1))
        >>> first = torch.rand(3)
        >>> with draws.again():
        ...     second = torch.rand(3)
        >>> bool((first == second).all())
        True
    """

    def __init__(self, *arguments: Any) -> None:
        self._states = None if torch.compiler.is_compiling() else generator_states(devices_of(arguments))

    def again(self) -> AbstractContextManager[None]:
        """A context in which the draws are those since the construction."""
        return nullcontext() if self._states is None else drawing_from(self._states)


def _state(device: torch.device) -> Tensor:
    match device.type:
        case "cpu":
            return torch.get_rng_state()
        case "mps":
            return torch.mps.get_rng_state()
        case _:
            return torch.get_device_module(device).get_rng_state(device)
