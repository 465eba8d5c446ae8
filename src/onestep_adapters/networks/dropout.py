"""The same dropout mask in two evaluations."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError


def shared_dropout(
    online: Callable[..., Any], target: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two callables that use the same dropout masks: the online side and the target side of a consistency pair.

    With two different masks the two sides differ even for a consistent network, and the difference does not get smaller
    as the two times get closer. All published methods that use dropout therefore use the same mask.

    The first callable stores the state of torch's generators and evaluates ``online``. The second callable restores the
    stored state, evaluates ``target``, and then sets the generators back to the state before its call. So a training
    step advances the generators only by the evaluation of ``online``. This covers the generator of the CPU and of every
    device that holds a parameter, a buffer or an argument. Other sources of randomness (numpy, python, a generator
    inside a module) are not repeated.

    Both evaluations have to draw in the same order and with the same shapes: use the same architecture in the same
    mode. A moving average (EMA) of the weights therefore has to be in training mode here. Without dropout the only
    effect is a copy of the generator state. Compile the modules, not the two callables.

    Args:
        online: a module, or a callable that calls one.
        target: the module that is evaluated with the same masks; ``None`` for ``online`` itself (iCT, ECT).

    Returns:
        ``(online, target)``; call them in this order. Bind conditions after this function.

    Raises:
        ConfigError: if the second callable is called before the first.

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
            raise ConfigError("the target was called first: call the online callable before the target")
        before = _states(remembered)
        _restore(remembered)
        try:
            return twin(*args, **kwargs)
        finally:
            _restore(before)

    return first, second


def _generators(modules: Iterable[nn.Module], arguments: Iterable[Any]) -> set[torch.device]:
    """The devices whose generators may be used; a ``meta`` device has no generator."""
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
