"""A compact UNet for images of 16 to 64 pixels, in plain torch.

    h = conv(silu(norm(x) * w + b))
    block(x) = skip(x) + conv(silu(norm(h) * (1 + a) + c))         a, c: a linear function of the condition
    attend(x) = x + merge(attention(q, k, v))                      q, k: root-mean-square normalised, then a gain
    output = conv(silu(norm(x) * w + b))

A level halves height and width by a convolution of stride 2; on the way up they are doubled (nearest pixel), and the
feature maps of the way down are concatenated. ``norm`` is group normalisation. The modulation ``(a, c)``, the last
convolution of every block, ``merge`` and the last convolution of the network start at zero, so a new network predicts
zero. The condition is the vector of :mod:`~onestep_adapters.backbones.conditioning`.

``torch.func.jvp`` of ``group_norm`` fails for tensors that are views, and does not compile with weights. Therefore
:func:`group_norm` is written out inside ``torch.func`` transforms, forward-mode AD and ``torch.compile``, as attention
is in :mod:`~onestep_adapters.backbones.dit`. There is no buffer and no dropout.

Source: Ronneberger et al., U-Net, https://arxiv.org/abs/1505.04597; with time and attention: Ho et al., Denoising
Diffusion Probabilistic Models, appendix B, https://arxiv.org/abs/2006.11239; the modulation: Dhariwal and Nichol,
section 3.1, https://arxiv.org/abs/2105.05233.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from onestep_adapters.backbones.conditioning import Conditioning, Labels, at_least
from onestep_adapters.backbones.dit import Attention, fused_or_plain, inside_transform
from onestep_adapters.backbones.mlp import check_shape
from onestep_core.errors import ConfigError
from onestep_core.typing import Sample, Time, typed

_EPSILON = 1e-6
_HEAD = 32
"""Channels of an attention head."""
_GROUPS, _IN_A_GROUP = 32, 4
"""Most groups of a normalisation; fewest channels in a group."""
_SMALL = 8
"""A height and width of at most this many pixels is not halved further, and gets attention."""


class UNet(nn.Module):
    """``(z, *times, label=None) -> [batch, channels, height, width]``.

    Args:
        shape: shape of one sample, (channels, height, width).
        width: number of channels at full size; a multiple of 4.
        depth: number of residual blocks of every level, on the way down and on the way up.
        multipliers: number of channels of every level, divided by ``width``. Each further level halves height and
            width. ``None``: 1, then 2, for as many levels as there are even sizes above 8 pixels (2 levels for 16
            pixels, 3 for 28 and 32, 4 for 64).
        attention_heights: heights, in pixels, of the levels whose blocks are followed by attention. ``None``: every
            level of at most 8 x 8 pixels. The middle, at the smallest size, always has attention.
        times: 0 (a one-step generator), 1 (a velocity) or 2 (an average velocity).
        classes: number of classes, or ``None``; label ``classes`` means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency of a time.
        condition: width of the conditioning vector divided by ``width``.
        attention: the attention function, ``(q, k, v) -> values``.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a shape or a size is not valid.

    Example:
        >>> network = UNet((1, 16, 16), width=8, depth=1, times=2, classes=10)
        >>> z, t, s = torch.randn(3, 1, 16, 16), torch.ones(3), torch.zeros(3)
        >>> network(z, t, s, label=torch.tensor([0, 9, 10])).shape
        torch.Size([3, 1, 16, 16])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        depth: int = 2,
        multipliers: Sequence[int] | None = None,
        attention_heights: Sequence[int] | None = None,
        times: int = 1,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
        condition: int = 4,
        attention: Attention = fused_or_plain,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        if len(self.shape) != 3:
            raise ConfigError(f"shape = {self.shape}: expected (channels, height, width)")
        channels, height, columns = self.shape
        at_least(
            1, width=width, depth=depth, condition=condition, channels=channels, height=height, image_width=columns
        )
        if width % 4:
            raise ConfigError(f"width = {width}: expected a multiple of 4")
        multipliers = default_multipliers(height, columns) if multipliers is None else tuple(multipliers)
        at_least(1, levels=len(multipliers), **{f"multipliers[{i}]": m for i, m in enumerate(multipliers)})
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or columns % halvings:
            raise ConfigError(
                f"multipliers = {multipliers} halve an image of {height} x {columns} {len(multipliers) - 1} times, "
                f"which {halvings} does not divide: give fewer multipliers"
            )
        heights = [height // 2**level for level in range(len(multipliers))]
        if attention_heights is None:
            attended = [max(height, columns) <= _SMALL * 2**level for level in range(len(multipliers))]
        elif unknown := sorted(set(attention_heights) - set(heights)):
            raise ConfigError(f"attention_heights = {unknown}: the levels have the heights {heights}")
        else:
            attended = [side in attention_heights for side in heights]
        self.condition = Conditioning(
            condition * width, times=times, classes=classes, frequencies=frequencies, max_frequency=max_frequency
        )

        def stage(size: int, out: int, level: int) -> _Stage:
            return _Stage(size, out, condition * width, attention if attended[level] else None)

        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        size, kept = width, [width]
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(nn.Conv2d(size, size, 3, stride=2, padding=1))
                kept.append(size)
            for _ in range(depth):
                self.down.append(stage(size, multiplier * width, level))
                size = multiplier * width
                kept.append(size)
        self.middle = nn.ModuleList(_Stage(size, size, condition * width, use) for use in (attention, None))
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(depth + 1):
                self.up.append(stage(size + kept.pop(), multiplier * width, level))
                size = multiplier * width
            if level:
                self.up.append(_Doubled(size))
        self.norm = _Norm(size)
        self.output = nn.Conv2d(size, channels, 3, padding=1)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        self.condition.initialise(generator)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith("condition."):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for name, layer in self.named_modules():
            if name.split(".")[-1] in ("output", "merge", "modulation"):
                nn.init.zeros_(layer.weight)

    @typed
    def forward(self, z: Sample, *times: Time, label: Labels | None = None) -> Sample:
        """The prediction, in the shape of ``z``.

        Args:
            z: states, or noise for a one-step generator, ``[batch, channels, height, width]``.
            times: ``[batch]`` each; as many as the network was constructed with.
            label: classes, ``[batch]``; ``None`` means "no class". A label above ``classes`` raises
                ``IndexError`` on the CPU; on other devices it is not checked.

        Raises:
            ConfigError: if the sample shape or the number of times differs from the construction, or if a label is
                given to a network without ``classes``.
        """
        check_shape(self.shape, z)
        condition = silu(self.condition(z, times, label))
        hidden = self.input(z)
        kept = [hidden]
        for layer in self.down:
            hidden = layer(hidden, condition) if isinstance(layer, _Stage) else layer(hidden)
            kept.append(hidden)
        for stage in self.middle:
            hidden = stage(hidden, condition)
        for layer in self.up:
            if isinstance(layer, _Stage):
                hidden = layer(torch.cat([hidden, kept.pop()], dim=1), condition)
            else:
                hidden = layer(hidden)
        return self.output(silu(self.norm(hidden)))


def default_multipliers(height: int, width: int) -> tuple[int, ...]:
    """The levels for an image: height and width are halved while both are even and one is above 8 pixels.

    Example:
        >>> [default_multipliers(side, side) for side in (8, 16, 28, 64)]
        [(1,), (1, 2), (1, 2, 2), (1, 2, 2, 2)]
    """
    found = [1]
    while max(height, width) > _SMALL and height % 2 == 0 and width % 2 == 0:
        height, width = height // 2, width // 2
        found.append(2)
    return tuple(found)


def group_norm(x: Tensor, groups: int) -> Tensor:
    """``(x - mean) / sqrt(variance + 1e-6)`` over the channels of a group and all pixels, without weights.

    Torch's kernel, or the formula inside ``torch.func`` and ``torch.compile``; see the module.

    Args:
        x: feature maps, ``[batch, channel, height, width]``.
        groups: number of groups; it divides the number of channels.

    Example:
        >>> x = torch.randn(2, 4, 3, 3)
        >>> bool(group_norm(x, 2).unflatten(1, (2, 2)).mean((2, 3, 4)).abs().max() < 1e-5)
        True
    """
    if not (torch.compiler.is_compiling() or inside_transform()):
        return nn.functional.group_norm(x, groups, eps=_EPSILON)
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    return (centred * (centred.square().mean(2, keepdim=True) + _EPSILON).rsqrt()).reshape(x.shape)


def _groups(channels: int) -> int:
    """The largest number of groups, at most 32, of at least 4 channels each."""
    most = min(_GROUPS, channels // _IN_A_GROUP)
    return next((groups for groups in range(most, 1, -1) if channels % groups == 0), 1)


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = _groups(channels)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.groups) * self.weight[:, None, None] + self.bias[:, None, None]


class _Stage(nn.Module):
    """A residual block, and attention after it."""

    def __init__(self, size: int, out: int, condition: int, attention: Attention | None) -> None:
        super().__init__()
        self.norm, self.groups = _Norm(size), _groups(out)
        self.inner = nn.Conv2d(size, out, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * out)
        self.output = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(size, out, 1) if size != out else nn.Identity()
        self.attend = None if attention is None else _Attend(out, attention)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        inner = self.inner(silu(self.norm(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        x = self.skip(x) + self.output(silu(group_norm(inner, self.groups) * (1 + scale) + shift))
        return x if self.attend is None else x + self.attend(x)


class _Attend(nn.Module):
    def __init__(self, size: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = max(1, size // _HEAD) if size % _HEAD == 0 else 1, attention
        self.norm = _Norm(size)
        self.projections = nn.Linear(size, 3 * size)
        self.gains = nn.Parameter(torch.ones(2, size // self.heads))
        self.merge = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.projections(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = _normalised(q) * self.gains[0], _normalised(k) * self.gains[1]
        mixed = self.merge(rearrange(self.attention(q.to(v.dtype), k.to(v.dtype), v), "b h n d -> b n (h d)"))
        return rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2])


def _normalised(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], eps=_EPSILON)


class _Doubled(nn.Module):
    """Height and width doubled, then a convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        doubled = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        return self.conv(doubled.reshape(batch, channels, 2 * height, 2 * width))
