"""Moving averages (EMA) of the weights of a network."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, *, decay: float) -> None:
    """``average <- decay average + (1 - decay) value`` for every parameter; buffers are copied. In place.

    The average is kept in at least float32: in half precision a small change would be rounded away, and the average of
    a network in bfloat16 would not move at all. Complex parameters are averaged; integer ones are copied.

    Args:
        ema: module with the average; same architecture as ``network``. Its parameters in half precision become float32.
            Of both modules, wrappers (``DistributedDataParallel``, ``torch.compile``) are looked through.
        network: not changed.
        decay: in [0, 1]; 0 copies the network, 1 keeps the average unchanged.

    Raises:
        ConfigError: if the decay is out of range, the two modules differ in their tensors, or they share a parameter
            that takes a gradient.

    Example:
        >>> average, network = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.zeros_(average.weight), nn.init.ones_(network.weight)
        >>> update_ema(average, network, decay=0.75)
        >>> average.weight.item()
        0.25
    """
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay = {decay!r}: expected a number in [0, 1]")
    for name, module in (("the EMA", ema), ("the network", network)):
        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{name} is a {type(module).__name__}: expected an nn.Module")
    ema, network = unwrapped(ema), unwrapped(network)
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
            value, numeric = values[name], average.is_floating_point() or average.is_complex()
            if average is value:
                _check_frozen(name, value)
                continue
            if value.shape != average.shape:
                raise ConfigError(
                    f"{name} has shape {tuple(average.shape)} in the EMA and {tuple(value.shape)} in the network: make "
                    "the EMA with copy.deepcopy(network)"
                )
            if kind == "buffers" or not numeric:
                average.copy_(value)
                continue
            average.data = in_full_precision(average.data)
            average.lerp_(value.to(average), 1 - decay)


def in_full_precision(x: Tensor) -> Tensor:
    """``x`` in at least float32 or complex64; integers as they are.

    Example:
        >>> in_full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if x.is_floating_point():
        return x.to(torch.promote_types(x.dtype, torch.float32)) if x.element_size() < 4 else x
    return x.to(torch.complex64) if x.dtype == torch.complex32 else x


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(inner)) is inner
        True
    """
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy of the network for its average: parameters in at least float32, evaluation mode, without gradient.

    Parameters that take no gradient are not copied: the two modules share them.

    Example:
        >>> averaged_copy(nn.Linear(2, 2).bfloat16()).weight.dtype
        torch.float32
    """
    network = unwrapped(network)
    shared = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
    ema = copy.deepcopy(network, dict(shared)).requires_grad_(False).eval()
    for tensor in (*ema.parameters(), *ema.buffers()):
        if id(tensor) not in shared:
            tensor.data = in_full_precision(tensor.data)
    return ema


def _check_frozen(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ConfigError(
            f"the parameter {name} takes a gradient now, and it took none when the average was made, which shares it: "
            "call requires_grad_(True) before new_state"
        )


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
