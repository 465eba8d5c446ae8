"""A generator of images from a vector of noise and a class, for methods that never noise an image (drifting).

    h_0 = linear(noise) + start[label]                   a map of the smallest size
    c = conditioning(times, label) + linear(noise)
    at every size, ``depth`` times:  h <- h + conv(silu(conv(silu(norm(h) * (1 + a) + b))))
    between two sizes:               h <- conv(enlarge(h))
    image = conv(silu(norm(h)))      or, ``bounded``, 1.05 tanh of it

Sizes are halved, rounded up, while the shorter side is above seven: 28, 14, 7, or 32, 16, 8, 4. At full size a map has
``width`` channels, at smaller sizes twice and at most four times as many. ``(a, b)`` is a linear function of
``silu(c)`` that starts at zero (FiLM); ``norm`` is root-mean-square normalisation over the channels, without weights;
``enlarge`` repeats pixels. The bound lets pixels reach -1 and 1; without it a drift in features that do not depend on
brightness can leave this range. ``c`` is computed by :mod:`~onestep_adapters.backbones.conditioning`.

``start`` is a map for each class; without it (``class_start=False``) a class acts through ``(a, b)`` alone, which start
at zero, and short trainings mix the classes. Unlike the other networks a new one does not answer zero: samples that are
all equal have no drift that separates them.

Source of FiLM: Perez et al., https://arxiv.org/abs/1709.07871.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from onestep_adapters.backbones.conditioning import Conditioning, Labels, at_least, checked_shape, draw_linear
from onestep_core.errors import ConfigError
from onestep_core.typing import Sample, Time, typed

_EPSILON = 1e-6
_SMALLEST = 7
_BOUND = 1.05
_START = 0.5


class Decoder(nn.Module):
    """``(noise, *times, label=None) -> [batch, channels, height, width]``.

    Args:
        shape: shape of one image, (channels, height, width).
        noise: length of the vector of noise.
        width: number of channels at full size.
        depth: number of residual blocks at every size.
        full_depth: number of residual blocks at full size, where they take most of the time; ``None``: ``depth``.
        class_start: whether the first map depends on the class; without classes it has no effect.
        bounded: whether pixels stay in [-1.05, 1.05].
        times: 0, or 1 or 2 numbers in [0, 1] that a method gives beside the noise, such as a guidance scale.
        classes: number of classes, or ``None``; label ``classes`` means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency of a time.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a shape or a size is out of range.

    Example:
        >>> network = Decoder((1, 28, 28), noise=16, width=8, depth=1, classes=10)
        >>> network(torch.randn(3, 16), label=torch.tensor([0, 9, 10])).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        noise: int = 64,
        width: int = 32,
        depth: int = 2,
        full_depth: int | None = None,
        class_start: bool = True,
        bounded: bool = False,
        times: int = 0,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.noise, self.bounded = checked_shape(shape, axes=3), noise, bounded
        channels, height, columns = self.shape
        at_least(1, noise=noise, width=width, depth=depth, channels=channels, height=height, image_width=columns)
        at_least(0, full_depth=depth if full_depth is None else full_depth)
        self.sizes = _sizes(height, columns)
        widths = [width * min(2**level, 4) for level in reversed(range(len(self.sizes)))]
        self.condition = Conditioning(
            4 * width, times=times, classes=classes, frequencies=frequencies, max_frequency=max_frequency
        )
        self.style = nn.Linear(noise, 4 * width)
        rows, across = self.sizes[0]
        self.input = nn.Linear(noise, widths[0] * rows * across)
        # The last row is that of "no class".
        starts = classes is not None and class_start
        self.start = nn.Embedding(classes + 1, widths[0] * rows * across) if starts else None  # type: ignore[operator]
        self.enlarged = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        depths = [depth] * (len(widths) - 1) + [depth if full_depth is None else full_depth]
        self.levels = nn.ModuleList(
            nn.ModuleList(_Block(channels, 4 * width) for _ in range(count))
            for channels, count in zip(widths, depths, strict=True)
        )
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
            elif isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.condition.initialise(generator)
        for layer in self.modules():
            if isinstance(layer, _Block):
                nn.init.zeros_(layer.modulation.weight)
        if self.start is not None:
            nn.init.normal_(self.start.weight, std=_START, generator=generator)

    @typed
    def forward(self, noise: Float[Tensor, "batch noise"], *times: Time, label: Labels | None = None) -> Sample:
        """Images, ``[batch, channels, height, width]``.

        Args:
            noise: standard normal, ``[batch, noise]``.
            times: ``[batch]`` each; as many as the network was constructed with.
            label: classes, ``[batch]``; ``None`` means "no class".

        Raises:
            ConfigError: if the noise has another length, or times or a label do not fit the construction.
        """
        if noise.shape[1] != self.noise:
            raise ConfigError(f"noise of shape {tuple(noise.shape)}: expected [batch, {self.noise}]")
        condition = silu(self.condition(noise, times, label) + self.style(noise))
        hidden = self.input(noise)
        if self.start is not None:
            last = self.start.num_embeddings - 1
            hidden = hidden + (self.start.weight[last] if label is None else self.start(label))
        hidden = hidden.unflatten(1, (-1, *self.sizes[0]))
        for level, blocks in enumerate(self.levels):
            if level:
                hidden = self.enlarged[level - 1](interpolate(hidden, self.sizes[level], mode="nearest"))
            for block in blocks:  # type: ignore[attr-defined]
                hidden = block(hidden, condition)
        image = self.output(silu(_normalised(hidden)))
        return _BOUND * image.tanh() if self.bounded else image


class _Block(nn.Module):
    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 2 * width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        inner = silu(_normalised(hidden) * (1 + scale) + shift)
        return hidden + self.outer(silu(self.inner(inner)))


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Heights and widths from the smallest to full size."""
    sizes = [(height, width)]
    while min(sizes[0]) > _SMALLEST:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes


def _normalised(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
