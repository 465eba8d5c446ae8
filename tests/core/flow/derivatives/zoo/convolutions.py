"""Convolutions, pooling and resampling, alone and in a residual network."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.flow.derivatives.case import Case, add, drawn, fragment, jump, layer, listed, two_backwards

LAYERS: dict[str, Any] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), 2, 4, 7),
    "conv1d stride": (lambda: nn.Conv1d(4, 6, 3, stride=2), 2, 4, 7),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), 2, 4, 6, 6),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 1, bias=False), 2, 4, 5, 6),
    "conv2d stride": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1)), 2, 4, 6, 7),
    "conv2d dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), 2, 4, 6, 6),
    "conv2d valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), 2, 4, 6, 6),
    "conv2d same of an even kernel": (lambda: nn.Conv2d(4, 4, 4, padding="same"), 2, 4, 6, 6),
    "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), 2, 4, 6, 6),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), 2, 4, 6, 6),
    "conv2d circular": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), 2, 4, 5, 5),
    "conv2d reflect": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 2, 4, 5, 5),
    "conv2d replicate": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"), 2, 4, 5, 5),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), 2, 2, 4, 4, 3),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), 2, 4, 5),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), 2, 4, 4, 4),
    "transposed conv2d grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, dilation=2),
        2,
        4,
        4,
        4,
    ),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), 1, 2, 3, 3, 3),
    "average pooling 1d": (lambda: nn.AvgPool1d(2, padding=1), 2, 4, 6),
    "average pooling 2d": (lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), 2, 4, 6, 6),
    "average pooling 3d": (lambda: nn.AvgPool3d(2), 2, 2, 4, 4, 4),
    "max pooling 1d": (lambda: nn.MaxPool1d(2), 2, 4, 6),
    "max pooling 2d": (lambda: nn.MaxPool2d(3, stride=2, padding=1), 2, 4, 6, 6),
    "max pooling 2d dilated": (lambda: nn.MaxPool2d(2, dilation=2, ceil_mode=True), 2, 4, 7, 7),
    "max pooling 3d": (lambda: nn.MaxPool3d(2), 2, 2, 4, 4, 4),
    "adaptive average pooling": (lambda: nn.AdaptiveAvgPool2d((3, 2)), 2, 4, 7, 5),
    "adaptive average pooling to one": (lambda: nn.AdaptiveAvgPool2d(1), 2, 4, 7, 5),
    "adaptive average pooling 1d": (lambda: nn.AdaptiveAvgPool1d(3), 2, 4, 7),
    "adaptive max pooling": (lambda: nn.AdaptiveMaxPool2d((3, 2)), 2, 4, 7, 5),
    "power pooling": (lambda: nn.LPPool2d(2, 2), 2, 4, 6, 6),
    "nearest upsampling": (lambda: nn.Upsample(scale_factor=2), 2, 3, 4, 4),
    "nearest exact upsampling": (lambda: nn.Upsample(size=(5, 7), mode="nearest-exact"), 2, 3, 4, 4),
    "linear upsampling": (lambda: nn.Upsample(scale_factor=2, mode="linear"), 2, 3, 4),
    "bilinear upsampling": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 2, 3, 4, 4),
    "bilinear upsampling with corners": (
        lambda: nn.Upsample(size=(7, 5), mode="bilinear", align_corners=True),
        2,
        3,
        4,
        4,
    ),
    "bicubic upsampling": (lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"), 2, 3, 4, 4),
    "trilinear upsampling": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), 1, 2, 3, 3, 3),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 2, 8, 3, 3),
    "pixel unshuffle": (lambda: nn.PixelUnshuffle(2), 2, 2, 4, 6),
    "channel shuffle": (lambda: nn.ChannelShuffle(2), 2, 4, 3, 3),
    "unfold": (lambda: nn.Unfold(3, padding=1, stride=2), 2, 3, 6, 6),
    "fold": (lambda: nn.Fold((5, 5), 2), 2, 12, 16),
    "padding by zeros": (lambda: nn.ZeroPad2d((1, 2, 0, 1)), 2, 3, 4, 4),
    "padding by reflection": (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), 2, 3, 4, 4),
    "padding by reflection 1d": (lambda: nn.ReflectionPad1d(2), 2, 3, 4),
    "padding by replication": (lambda: nn.ReplicationPad2d((1, 2, 0, 1)), 2, 3, 4, 4),
    "padding around": (lambda: nn.CircularPad2d((1, 2, 0, 1)), 2, 3, 4, 4),
    "padding by a constant": (lambda: nn.ConstantPad1d((-1, 2), 0.7), 2, 3, 4),
}
for _name, (_make, *_shape) in LAYERS.items():
    add("convolutions", _name, layer(_make, *_shape))


@listed("convolutions")
def conv2d_of_channels_last(generator: torch.Generator) -> Case:
    module = drawn(nn.Conv2d(4, 6, 3, padding=1), generator)
    return jump(
        lambda z: module(z.to(memory_format=torch.channels_last)), generator, 2, 4, 5, 5, module=module, times=0
    )


@listed("convolutions")
def conv2d_of_one_sample_without_batch(generator: torch.Generator) -> Case:
    module = drawn(nn.Conv2d(4, 6, 3, padding=1), generator)
    return jump(lambda z: torch.stack([module(row) for row in z]), generator, 2, 4, 5, 5, module=module, times=0)


def antialiased(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True) + F.interpolate(
        x, size=(3, 3), mode="bicubic", antialias=True
    )


def sampled(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid.tanh(), align_corners=False)


def unpooled(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values.sin(), indices, 2)


add("convolutions", "antialiased interpolation", fragment(antialiased, (1, 2, 6, 6)))
add("convolutions", "max unpooling", fragment(unpooled, (1, 2, 4, 4)))
add("convolutions", "grid sample", fragment(sampled, (2, 2, 4, 4), (2, 3, 3, 2)), oracle=two_backwards, refusable=True)
add("convolutions", "weight with a tangent", fragment(partial(F.conv2d, padding=1), (2, 3, 5, 5), (4, 3, 3, 3), (4,)))
add(
    "convolutions",
    "weight with a tangent alone",
    fragment(lambda w: F.conv2d(torch.ones(2, 3, 5, 5, dtype=w.dtype), w, stride=2), (4, 3, 3, 3)),
)
add(
    "convolutions",
    "transposed weight with a tangent",
    fragment(lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), (2, 3, 3, 3), (3, 4, 2, 2), (4,)),
)
add(
    "convolutions",
    "a kernel for each sample",
    fragment(
        lambda x, w: F.conv2d(x.reshape(1, 6, 5, 5), w.reshape(6, 1, 3, 3), groups=6).reshape(2, 3, 3, 3),
        (2, 3, 5, 5),
        (2, 3, 3, 3),
    ),
)


class Residual(nn.Module):
    """A residual block that is modulated by the times and downsamples by its stride."""

    def __init__(self, channels: int, out: int, **keywords: Any) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.first = nn.Conv2d(channels, out, 3, padding=1, **keywords)
        self.modulation = nn.Linear(2, 2 * out)
        self.second = nn.Conv2d(out, out, 3, padding=1, padding_mode="reflect")
        self.skip = nn.Conv2d(channels, out, 1, **keywords)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        scale, shift = self.modulation(times)[:, :, None, None].chunk(2, 1)
        hidden = self.first(F.silu(self.norm(x))) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(hidden, inplace=True))


@listed("convolutions")
def residual_network(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleList([Residual(2, 4), Residual(4, 4, stride=2), Residual(4, 4), Residual(4, 2)]), generator)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = torch.stack([t, t - s], 1)
        for block in module:
            z = block(z, times)
        return F.interpolate(z, scale_factor=2, mode="bilinear")

    return jump(function, generator, 3, 2, 6, 6, module=module)
