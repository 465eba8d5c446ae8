"""A small residual convolutional encoder for small images.

    h = relu(norm(conv(x)))
    stage:  block, ..., block;    block:  h <- relu(shortcut(h) + norm(conv(relu(norm(conv(h))))))

``conv`` is 3 x 3 without a bias. From the second stage on, the first block of a stage halves height and width and
doubles the channels; its shortcut is a 1 x 1 convolution. ``norm`` is group normalisation.

Group normalisation and not batch normalisation, on purpose. An image's features then do not depend on the other images
of the batch, in training as afterwards: a contrastive loss cannot be solved through the batch's statistics, the moving
average of the weights needs no statistics of its own, and a forgotten ``.eval()`` changes nothing. (With batch
normalisation a forgotten ``.eval()`` hardly changes the accuracy of a probe, so a test of accuracy does not find it.)

Source: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385; Wu and He, Group Normalization,
https://arxiv.org/abs/1803.08494.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from onestep_adapters.encoders.heads import draw_weights
from onestep_core.errors import ConfigError

_GROUPS = 8


class ResidualEncoder(nn.Module):
    """``images [n, channels, height, width] -> map [n, channel, rows, columns]`` of the last stage.

    The stages are ``stages.0``, ``stages.1``, ...: names for features by layer.

    Args:
        channels: number of channels of the images.
        width: channels of the first stage, a multiple of 8; every next stage has twice as many.
        stages: number of stages; each but the first halves height and width.
        blocks: residual blocks in a stage.
        stride: of the first convolution: 1 for images up to about 16 pixels, 2 for larger ones.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a size is out of range; at a call, for images of another number of channels.

    Example:
        >>> encoder = ResidualEncoder(1, width=16, stages=2)
        >>> encoder(torch.zeros(3, 1, 8, 8)).shape, encoder.layers
        (torch.Size([3, 32, 4, 4]), ('stages.0', 'stages.1'))
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        stages: int = 3,
        blocks: int = 1,
        stride: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(channels, stages, blocks, stride) < 1 or width < _GROUPS or width % _GROUPS:
            raise ConfigError(
                f"channels = {channels}, width = {width}, stages = {stages}, blocks = {blocks}, stride = {stride}: "
                f"expected at least 1 of each, and a width that is a multiple of {_GROUPS}"
            )
        self.input = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, width)
        made, ins = [], width
        for stage in range(stages):
            outs = width * 2**stage
            first = _Block(ins, outs, 2 if stage else 1)
            made.append(nn.Sequential(first, *(_Block(outs, outs, 1) for _ in range(blocks - 1))))
            ins = outs
        self.stages = nn.ModuleList(made)
        self.channels = ins
        draw_weights(self, generator)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs are features, from the input to the output."""
        return tuple(f"stages.{index}" for index in range(len(self.stages)))

    def forward(self, images: Tensor) -> Tensor:
        """The map of the last stage.

        Raises:
            ConfigError: for anything but a batch of images of the right number of channels.
        """
        if images.ndim != 4 or images.shape[1] != self.input.in_channels:
            raise ConfigError(
                f"images of shape {tuple(images.shape)}: expected [n, {self.input.in_channels}, height, width]"
            )
        hidden = relu(self.norm(self.input(images)))
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden


class _Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, bias=False)
        self.inner_norm = nn.GroupNorm(_GROUPS, outs)
        self.outer = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.outer_norm = nn.GroupNorm(_GROUPS, outs)
        same = ins == outs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(ins, outs, 1, stride=stride, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = relu(self.inner_norm(self.inner(hidden)))
        return relu(self.shortcut(hidden) + self.outer_norm(self.outer(inner)))
