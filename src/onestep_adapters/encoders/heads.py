"""Heads that only the pretraining needs, pooling of an encoder's output, and drawing of initial weights.

A contrastive loss is taken on the output of a *projection head*, a small MLP on the pooled features. Afterwards the
head is thrown away: the features before it are better for every other purpose (Chen et al., section 4.2). MoCo v3 adds
a *prediction head* on the queries alone.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError


class Head(nn.Sequential):
    """``linear - ReLU - linear ...``: ``[n, sizes[0]] -> [n, sizes[-1]]``, the projection or the prediction head.

    There is no batch normalisation, so rows do not depend on one another. (MoCo's code has to shuffle the batch because
    its encoder's statistics would reveal which key belongs to which query; SimCLR's takes statistics over all devices.)

    Args:
        sizes: widths of the layers, at least two.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: for fewer than two sizes, or a size below 1.

    Example:
        >>> Head([64, 32, 16])(torch.zeros(3, 64)).shape
        torch.Size([3, 16])
    """

    def __init__(self, sizes: Sequence[int], *, generator: torch.Generator | None = None) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ConfigError(f"sizes = {list(sizes)}: expected at least two widths, each at least 1")
        layers: list[nn.Module] = []
        for ins, outs in pairwise(sizes):
            layers += [nn.Linear(ins, outs), nn.ReLU()]
        super().__init__(*layers[:-1])
        draw_weights(self, generator)


def locations(output: Any) -> Tensor:
    """The output of a network as vectors of locations, ``[n, location, channel]``.

    Args:
        output: a map ``[n, channel, height, width]``, tokens ``[n, token, channel]``, one vector for each image
            ``[n, channel]``, or an object of the transformers library with ``last_hidden_state``, one of these.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> locations(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 12, 5])
    """
    found = getattr(output, "last_hidden_state", output)
    found = found[0] if isinstance(found, tuple) and found else found
    if isinstance(found, Tensor) and found.ndim == 4:
        return found.flatten(2).transpose(1, 2)
    if isinstance(found, Tensor) and found.ndim in (2, 3):
        return found[:, None] if found.ndim == 2 else found
    shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
    raise ConfigError(
        f"an encoder's output of {shown}: expected [n, channel, height, width], [n, token, channel], [n, channel], or "
        "an object with last_hidden_state"
    )


def pooled(output: Any) -> Tensor:
    """The mean over the locations of a network's output, ``[n, channel]``; arguments as :func:`locations`.

    Example:
        >>> pooled(torch.ones(2, 5, 3, 4)).shape
        torch.Size([2, 5])
    """
    return locations(output).mean(1)


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw all linear (Xavier, uniform) and convolutional (He, normal) weights from ``generator``; biases are zero.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> draw_weights(layer, torch.Generator().manual_seed(0))
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
