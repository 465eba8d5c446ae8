"""An encoder as a value: a network, the layers whose features are used, and what its input has to look like."""

import attrs
from torch import nn


@attrs.frozen(eq=False)
class Encoder:
    """A network whose features a method uses.

    Attributes:
        module: the network. Its input is images ``[batch, channels, height, width]``, normalised as said below.
        layers: names of the submodules whose outputs are the features by default, as in ``module.named_modules()``.
        channels: number of channels of its images.
        size: height and width of its images in pixels; ``None`` for a network that takes every size.
        mean: mean of every channel, subtracted from images in [-1, 1]; one number for all channels is allowed.
        std: the images are divided by it after that; likewise.
        key: identifies architecture and weights, for a cache of its features; empty: features are not cached.
        least: smallest height and width of its images in pixels; smaller images are enlarged. Only without ``size``.
    """

    module: nn.Module
    layers: tuple[str, ...]
    channels: int
    size: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    key: str = ""
    least: int = 1
