"""Dropout that two evaluations share."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError


def shared_dropout(
    online: Callable[..., Any], target: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair of callables of which the second draws what the first drew: one dropout mask for a consistency pair.

    With masks of their own the two sides of a consistency pair differ even where the network is consistent, and the
    difference does not shrink with the time between them; every published recipe that uses dropout shares it.

    The first callable remembers the state of torch's generators before it evaluates ``online``. The second puts
    that state back, evaluates ``target``, and leaves the generators as it found them: a training step advances them
    by the one evaluation of ``online``. The generators are those of the CPU and of every device on which a
    parameter, a buffer or an argument lies. Other sources of randomness (numpy, python, a generator that a module
    owns) are not repeated.

    Both evaluations must draw in the same order and shape: the same architecture in the same mode, so a moving
    average stays in training mode here. Without dropout nothing happens but the copy of a state. Compile the
    modules, not the pair.

    Args:
        online: a module, or a callable that runs one.
        target: what is evaluated with the same masks; ``online`` itself where ``None`` (iCT, ECT).

    Returns:
        ``(online, target)``, to be called in this order. Conditions are bound afterwards.

    Raises:
        ConfigError: at a call of the second before the first.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.1,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> dropout, z = nn.Dropout(0.5), torch.ones(2, 100)
        >>> online, target = shared_dropout(dropout)
        >>> bool((online(z) == target(z)).all()), bool((online(z) == online(z)).all())
        (True, False)
    """
    twin = online if target is None else target
    modules = [module for module in (online, twin) if isinstance(module, nn.Module)]
    remembered: dict[torch.device, Tensor] = {}

    def first(*args: Any, **kwargs: Any) -> Any:
        devices = _generators(modules, (*args, *kwargs.values()))
        remembered.clear()
        remembered.update(_states(devices))
        return online(*args, **kwargs)

    def second(*args: Any, **kwargs: Any) -> Any:
        if not remembered:
            raise ConfigError("the second callable of a pair came first: call the online one before the target")
        before = _states(remembered)
        _restore(remembered)
        try:
            return twin(*args, **kwargs)
        finally:
            _restore(before)

    return first, second


def _generators(modules: Iterable[nn.Module], arguments: Iterable[Any]) -> set[torch.device]:
    """The devices that may be drawn on; a ``meta`` device has no generator."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += [argument for argument in arguments if isinstance(argument, Tensor)]
    return {torch.device("cpu")} | {tensor.device for tensor in tensors if tensor.device.type != "meta"}


def _states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    def state(device: torch.device) -> Tensor:
        match device.type:
            case "cpu":
                return torch.get_rng_state()
            case "mps":
                return torch.mps.get_rng_state()
            case _:
                return torch.get_device_module(device).get_rng_state(device)

    return {device: state(device) for device in devices}


def _restore(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        match device.type:
            case "cpu":
                torch.set_rng_state(state)
            case "mps":
                torch.mps.set_rng_state(state)
            case _:
                torch.get_device_module(device).set_rng_state(state, device)
