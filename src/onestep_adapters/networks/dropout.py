"""The same dropout mask in two evaluations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.draws import devices_of, drawing_from, generator_states
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
    held = [[*module.parameters(), *module.buffers()] for module in modules]
    remembered: dict[torch.device, Tensor] = {}

    def first(*args: Any, **kwargs: Any) -> Any:
        remembered.clear()
        remembered.update(generator_states(devices_of(held, args, kwargs)))
        return online(*args, **kwargs)

    def second(*args: Any, **kwargs: Any) -> Any:
        if not remembered:
            raise ConfigError("the target was called first: call the online callable before the target")
        with drawing_from(remembered):
            return twin(*args, **kwargs)

    return first, second
