"""Moving averages (EMA) of the weights of a network."""

from collections.abc import Callable

import torch
from torch import nn

from onestep_core.errors import ConfigError


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, *, decay: float) -> None:
    """``average <- decay average + (1 - decay) value`` for every parameter; buffers are copied. In place.

    Args:
        ema: module with the average; same architecture as ``network``.
        network: not changed.
        decay: in [0, 1]; 0 copies the network, 1 keeps the average unchanged.

    Raises:
        ConfigError: if the decay is out of range or the two modules differ in their tensors.

    Example:
        >>> average, network = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.zeros_(average.weight), nn.init.ones_(network.weight)
        >>> update_ema(average, network, decay=0.75)
        >>> average.weight.item()
        0.25
    """
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay = {decay!r}: expected a number in [0, 1]")
    for kind, averages, values in (
        ("parameters", dict(ema.named_parameters()), dict(network.named_parameters())),
        ("buffers", dict(ema.named_buffers()), dict(network.named_buffers())),
    ):
        if averages.keys() != values.keys():
            raise ConfigError(
                f"the EMA and the network differ in their {kind} {sorted(averages.keys() ^ values.keys())}: "
                "make the EMA with copy.deepcopy(network)"
            )
        for name, average in averages.items():
            value = values[name]
            if kind == "buffers" or decay == 0 or not average.is_floating_point():
                average.copy_(value)
            else:
                average.lerp_(value.to(average), 1 - decay)


def constant_decay(decay: float) -> Callable[[int], float]:
    """``i -> decay``, for ``train(..., ema=...)``.

    Raises:
        ConfigError: if the decay is not in [0, 1).

    Example:
        >>> constant_decay(0.999)(0)
        0.999
    """
    _check(decay)
    return lambda step: decay


def warmed_decay(decay: float) -> Callable[[int], float]:
    """``i -> min(decay, (1 + i) / (10 + i))``: a smaller decay at the start, so that the initial weights are forgotten.

    Raises:
        ConfigError: if the decay is not in [0, 1).

    Example:
        >>> schedule = warmed_decay(0.999)
        >>> schedule(0), schedule(100_000)
        (0.1, 0.999)
    """
    _check(decay)
    return lambda step: min(decay, (1 + step) / (10 + step))


def _check(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ConfigError(f"decay = {decay!r}: expected a number in [0, 1), 0.999 for example")
