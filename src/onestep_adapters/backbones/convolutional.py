"""A residual convolutional network for small images. Every block has a linear map over all pixels.

    h_0 = conv(z) + position
    u = conv(norm(h) * (1 + a) + b),    w = silu(u),    h <- h + conv(silu(w + M w))
    output = conv(norm(h))

- ``conv`` is a 3 x 3 convolution; ``norm`` is root-mean-square normalisation over the channels, without weights.
- ``(a, b)`` is a linear function of ``silu(c)`` that starts at zero. ``c`` is the vector of
  :mod:`~onestep_adapters.backbones.conditioning`; it is ``condition`` times as wide as the convolutions.
- ``M`` is a square matrix over the ``height * width`` pixels, one for every block and channel. It connects all pixels
  without attention. Therefore every operation has a forward-mode derivative and is twice differentiable.

The matrices ``M`` take the same time as one shared matrix, but they hold most of the parameters:
``(height * width)^2`` per channel, which is 4,096 for 8 x 8 and a million for 32 x 32. For larger images
:class:`~onestep_adapters.backbones.DiT` is the better choice. The last convolution starts at zero, so a new network
predicts zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from onestep_adapters.backbones.conditioning import Conditioning, Labels, at_least, checked_shape
from onestep_adapters.backbones.mlp import check_shape
from onestep_core.typing import Sample, Time, typed

_EPSILON = 1e-6


class ConvNet(nn.Module):
    """``(z, *times, label=None) -> [batch, channels, height, width]``.

    Args:
        shape: shape of one sample, (channels, height, width).
        width: number of channels of the hidden layers.
        depth: number of residual blocks.
        times: 0 (a one-step generator), 1 (a velocity) or 2 (an average velocity).
        classes: number of classes, or ``None``; label ``classes`` means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency of a time.
        condition: width of the conditioning vector divided by ``width``; larger diffusion networks often use 4.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a shape or a size is out of range.

    Example:
        >>> network = ConvNet((1, 8, 8), width=16, depth=1, times=2, classes=10)
        >>> z, t, s = torch.randn(3, 1, 8, 8), torch.ones(3), torch.zeros(3)
        >>> network(z, t, s, label=torch.tensor([0, 9, 10])).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 48,
        depth: int = 4,
        times: int = 1,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
        condition: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape, axes=3)
        channels, height, columns = self.shape
        at_least(
            1, width=width, depth=depth, condition=condition, channels=channels, height=height, image_width=columns
        )
        condition_width = condition * width
        self.condition = Conditioning(
            condition_width, times=times, classes=classes, frequencies=frequencies, max_frequency=max_frequency
        )
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.position = nn.Parameter(torch.empty(width, height, columns))
        if times == 0 and classes is None:
            condition_width = 0
        self.blocks = nn.ModuleList(_Block(width, height * columns, condition_width) for _ in range(depth))
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        self.condition.initialise(generator)
        nn.init.normal_(self.position, std=0.02, generator=generator)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        for block in self.blocks:
            nn.init.normal_(block.pixels, std=0.5 * block.pixels.shape[-1] ** -0.5, generator=generator)
        nn.init.zeros_(self.output.weight)

    @typed
    def forward(self, z: Sample, *times: Time, label: Labels | None = None) -> Sample:
        """The prediction, in the shape of ``z``.

        Args:
            z: states, or noise for a one-step generator, ``[batch, channels, height, width]``.
            times: ``[batch]`` each; as many as the network was constructed with.
            label: classes, ``[batch]``; ``None`` means "no class". A label above ``classes`` is an error on the CPU; on
                other devices it is not checked.

        Raises:
            ConfigError: if the sample shape or the number of times differs from the construction, or if a label is
                given to a network without ``classes``.
        """
        check_shape(self.shape, z)
        condition = silu(self.condition(z, times, label))
        hidden = self.input(z) + self.position
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.output(_normalised(hidden))


class _Block(nn.Module):
    def __init__(self, width: int, pixels: int, condition_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition_width, 2 * width) if condition_width else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.pixels = nn.Parameter(torch.empty(width, pixels, pixels))
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        inner = _normalised(hidden)
        if self.modulation is not None:
            scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        inner = silu(self.inner(inner))
        mixed = (inner.flatten(2).transpose(0, 1) @ self.pixels).transpose(0, 1).reshape(inner.shape)
        return hidden + self.outer(silu(inner + mixed))


def _normalised(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
