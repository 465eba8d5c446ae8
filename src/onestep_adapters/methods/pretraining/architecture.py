"""Options of an encoder's architecture."""

from typing import Literal

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import ResidualEncoder, VisionTransformer
from onestep_core.errors import ConfigError
from onestep_core.validators import count, positive_count

_SMALL = 16
"""Images of at most so many pixels a side keep their resolution in the first layer."""


@attrs.frozen
class Architecture:
    """Which encoder, and how large. A number of 0 is chosen by the size of the images."""

    architecture: Literal["residual", "vit"] = "residual"
    """residual: a convolutional network with group normalisation. vit: a vision transformer (MAE needs it)."""
    width: int = attrs.field(default=32, validator=positive_count)
    """Channels of the first stage (residual, a multiple of 8; doubles in every stage); numbers in a token (vit, a
    multiple of 4 and of heads)."""
    depth: int = attrs.field(default=2, validator=positive_count)
    """Number of stages (residual; each but the first halves the resolution); number of blocks (vit)."""
    blocks: int = attrs.field(default=1, validator=positive_count)
    """Residual blocks in a stage (residual only)."""
    stride: int = attrs.field(default=0, validator=count)
    """Stride of the first convolution (residual only). 0: 1 for images up to 16 pixels, 2 for larger ones."""
    heads: int = attrs.field(default=4, validator=positive_count)
    """Attention heads (vit only)."""
    patch: int = attrs.field(default=0, validator=count)
    """Side of a patch in pixels (vit only), a divisor of the image's sides. 0: the largest that leaves 4 patches a
    side, from 17 pixels on 7. ViT and MAE: 16 at 224 pixels."""

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """An encoder for the images of ``data``; initial weights from ``generator``, on the CPU.

        Raises:
            ConfigError: if a size does not fit.
        """
        channels, height, columns = data.shape
        if self.architecture == "residual":
            stride = self.stride or (1 if max(height, columns) <= _SMALL else 2)
            return ResidualEncoder(
                channels, width=self.width, stages=self.depth, blocks=self.blocks, stride=stride, generator=generator
            )
        return VisionTransformer(
            (channels, height, columns),
            patch=self.patch or _patch(height, columns),
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            generator=generator,
        )


def _patch(height: int, columns: int) -> int:
    """The largest patch that divides both sides and leaves enough patches."""
    short, least = min(height, columns), 4 if max(height, columns) <= _SMALL else 7
    sizes = [size for size in range(1, short + 1) if height % size == 0 and columns % size == 0]
    fitting = [size for size in sizes if short // size >= least]
    if not fitting:
        raise ConfigError(f"images of {height} x {columns} are too small for patches: use the residual architecture")
    return max(fitting)
