"""Outputs of layers, read as maps: which axis holds the channels, which tokens are patches.

A layer's output may be a tensor, or a tuple or mapping whose first tensor counts. Then the number of axes decides:

    4   a map [batch, channel, height, width]; with ``channels_last`` [batch, height, width, channel]
    3   tokens [batch, token, channel]
    2   one vector [batch, channel]

Of tokens, the last ones are the patches, row by row. Tokens before them are a class token and registers; their number
is ``prefix``. If it is not given, it is the one that the network says (``num_prefix_tokens`` of timm,
``num_register_tokens`` of transformers, plus one), if the other tokens then form a grid. Else it follows from the shape
of the images: the side ``p`` of a patch divides height and width, and the smallest ``p`` is taken whose grid of
``height / p`` rows and ``width / p`` columns leaves zero to sixteen tokens, fewer than the grid has. If there is none,
sides that leave a rest of pixels are tried, with zero or one token left.

Where the layer itself says how many channels it has (a convolution, a normalisation, a linear map), an output with
this number on another axis is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from onestep_core.errors import ConfigError

_MOST_PREFIX = 16


class Read(NamedTuple):
    """A map ``[batch, channel, height, width]``, and the class token ``[batch, 1, channel]`` if there is one."""

    map: Tensor
    token: Tensor | None = None


def first_tensor(output: Any) -> Any:
    """The first tensor in a tuple or mapping; a tensor is returned as it is.

    Example:
        >>> import torch
        >>> first_tensor({"last_hidden_state": torch.ones(2), "pooled": torch.zeros(2)})
        tensor([1., 1.])
    """
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else None
    if parts is None:
        return output
    return next((found for found in map(first_tensor, parts) if isinstance(found, Tensor)), None)


def as_map(
    output: Any,
    name: str,
    layer: nn.Module,
    *,
    batch: int,
    size: tuple[int, int],
    prefix: int | None = None,
    said: int | None = None,
    channels_last: bool = False,
) -> Read:
    """The output of a layer as a map.

    Args:
        output: a tensor, of two to four axes.
        name: of the layer, for messages.
        layer: the layer; its number of channels is compared.
        batch: number of images.
        size: height and width of the images that the network got.
        prefix: number of tokens before the patches; ``None``: see the module.
        said: what the network says about it (:func:`prefix_of`).
        channels_last: maps are ``[batch, height, width, channel]``.

    Raises:
        ConfigError: for another number of axes, a batch axis of another length, channels on another axis, or tokens
            that form no grid.

    Example:
        >>> import torch
        >>> read = as_map(torch.zeros(2, 17, 5), "tokens", nn.Identity(), batch=2, size=(8, 8))
        >>> read.map.shape, read.token.shape
        (torch.Size([2, 5, 4, 4]), torch.Size([2, 1, 5]))
    """
    if not isinstance(output, Tensor) or not 2 <= output.ndim <= 4 or not output.is_floating_point():
        came = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"layer {name!r} returned {came}: expected floating point, [batch, channel, height, width], "
            "[batch, token, channel] or [batch, channel]; choose another layer, or select a tensor with output="
        )
    if output.shape[0] != batch:
        raise ConfigError(
            f"layer {name!r} returned {list(output.shape)} for {batch} images: its first axis is not the batch (for "
            "example windows of an attention); choose the layer around it"
        )
    if output.ndim == 2:
        return Read(output[:, :, None, None])
    axis = 3 if output.ndim == 4 and channels_last else 1 if output.ndim == 4 else 2
    _check_axis(output, axis, name, layer)
    if output.ndim == 4:
        return Read(output.permute(0, 3, 1, 2) if channels_last else output)
    rows, columns = _grid(output.shape[1], prefix, said, size, name)
    before = output.shape[1] - rows * columns
    patches = output[:, before:].transpose(1, 2).unflatten(2, (rows, columns))
    return Read(patches, output[:, :1] if before else None)


def _check_axis(output: Tensor, axis: int, name: str, layer: nn.Module) -> None:
    known = _channels(layer)
    if known is None or output.shape[axis] == known:
        return
    others = [other for other in range(1, output.ndim) if other != axis and output.shape[other] == known]
    if others:
        # A map with channels last is the only other layout that has an option.
        advice = "give channels_last=True" if output.ndim == 4 and others == [3] else "swap the axes with output="
        raise ConfigError(
            f"layer {name!r} has {known} channels and returned {list(output.shape)}: axis {axis} should hold the "
            f"channels and axis {others[0]} does; {advice}"
        )


def _channels(layer: nn.Module) -> int | None:
    """The number of channels that the last map or normalisation in a layer produces."""
    found = None
    for part in layer.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            found = part.out_channels
        elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
            found = part.num_features
        elif isinstance(part, nn.GroupNorm):
            found = part.num_channels
        elif isinstance(part, nn.Linear):
            found = part.out_features
        elif isinstance(part, nn.LayerNorm) and len(part.normalized_shape) == 1:
            found = part.normalized_shape[0]
    return found


def prefix_of(network: nn.Module) -> int | None:
    """The number of tokens before the patches, if the network says it.

    Example:
        >>> prefix_of(nn.Identity()) is None
        True
    """
    config = getattr(network, "config", None)
    found, registers = getattr(network, "num_prefix_tokens", None), getattr(config, "num_register_tokens", None)
    if isinstance(found, int):
        return found
    return registers + 1 if isinstance(registers, int) else None


def _grid(tokens: int, prefix: int | None, said: int | None, size: tuple[int, int], name: str) -> tuple[int, int]:
    height, width = size
    sides = range(1, min(size) + 1)
    exact = [(height // p, width // p) for p in sides if height % p == 0 and width % p == 0]
    floored = [(height // p, width // p) for p in sides]
    wanted = said if prefix is None else prefix
    for rows, columns in (*exact, *floored):
        if tokens - rows * columns == wanted:
            return rows, columns
    for rows, columns in exact if prefix is None else ():
        if 0 <= tokens - rows * columns < min(_MOST_PREFIX + 1, rows * columns):
            return rows, columns
    for rows, columns in floored if prefix is None else ():
        if tokens - rows * columns in (0, 1):
            return rows, columns
    given = f"and prefix = {prefix} tokens before the patches" if prefix is not None else "and an unknown prefix"
    raise ConfigError(
        f"layer {name!r} returned {tokens} tokens for images of {height} x {width}, {given}: they form no grid of "
        "patches; give prefix=, the number of class and register tokens (is a part of the patches masked?)"
    )
