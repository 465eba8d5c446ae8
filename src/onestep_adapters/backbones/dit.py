"""A small diffusion transformer in plain torch.

    x = patches(z) W + position
    x = x + g1 * attention(norm(x) * (1 + a1) + b1)        q, k: root-mean-square normalised, then a gain
    x = x + g2 * swiglu(norm(x) * (1 + a2) + b2)           swiglu(h) = (silu(h U) * h V) W
    output = unpatch((norm(x) * (1 + a) + b) W_out)

Every ``a``, ``b``, ``g`` is a linear function of ``silu(c)`` that starts at zero (adaLN-zero); ``c`` is the vector of
:mod:`~onestep_adapters.backbones.conditioning`. ``W_out`` also starts at zero. ``norm`` is root-mean-square
normalisation without weights, because ``torch.func.jvp`` of an affine LayerNorm does not compile. There is no buffer,
so forward-mode differentiation also works inside a data-parallel wrapper.

Attention. The fast kernels of ``scaled_dot_product_attention`` have no forward-mode derivative, and one-step
objectives need one. The table compares three ways: milliseconds for forward and backward pass, two CPU cores, 64
channels per head.

======  =====  =================  =========================
tokens  fused  written out        fused, only its MATH form
======  =====  =================  =========================
16      116    140                200
64      75     304                221
256     91     372                181
1024    272    864                911
======  =====  =================  =========================

Therefore :func:`fused_or_plain` calls :func:`plain_attention` inside ``torch.func`` transforms, forward-mode AD and
``torch.compile``, and the fused kernel everywhere else. (While ``torch.compile`` traces, it is not known whether a
derivative will be taken.) To compile a network for plain training or sampling, construct it with
``attention=torch.nn.functional.scaled_dot_product_attention``.

Source: Peebles and Xie, Scalable Diffusion Models with Transformers, section 3, https://arxiv.org/abs/2212.09748.
QK normalisation: https://arxiv.org/abs/2302.05442; SwiGLU: https://arxiv.org/abs/2002.05202.
"""

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from onestep_adapters.backbones.conditioning import (
    Conditioning,
    Labels,
    at_least,
    checked_shape,
    draw_linear,
    sinusoids,
    zero_linear,
)
from onestep_adapters.backbones.mlp import check_shape
from onestep_core.errors import ConfigError
from onestep_core.typing import Sample, Time, typed

_EPSILON = 1e-6

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v) -> values``, each ``[batch, head, token, channel]``."""


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(channel)) v``, as matrix products; differentiable any number of times in every mode.

    Args:
        q: queries, ``[batch, head, token, channel]``.
        k: keys, ``[batch, head, token, channel]``.
        v: values, ``[batch, head, token, channel]``.

    Example:
        >>> x = torch.ones(1, 1, 3, 2)
        >>> bool(torch.allclose(plain_attention(x, x, x), x))
        True
    """
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return logits.softmax(-1).to(v.dtype) @ v


def fused_or_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The fused kernel, or :func:`plain_attention` inside ``torch.func`` or ``torch.compile``; see the module.

    Example:
        >>> x = torch.randn(1, 2, 3, 4)
        >>> bool(torch.allclose(fused_or_plain(x, x, x), plain_attention(x, x, x), atol=1e-6))
        True
    """
    if torch.compiler.is_compiling() or inside_transform():
        return plain_attention(q, k, v)
    return scaled_dot_product_attention(q, k, v)


def inside_transform() -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD is active. Torch has no public function for this.

    Example:
        >>> inside_transform()
        False
    """
    functorch = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore
    return functorch is not None or getattr(forward_ad, "_current_level", -1) >= 0


class DiT(nn.Module):
    """``(z, *times, label=None) -> [batch, channels, height, width]``.

    Args:
        shape: shape of one sample, (channels, height, width).
        patch: side of a patch in pixels; it has to divide height and width.
        width: number of channels of a token; a multiple of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        ratio: hidden width of the feed-forward part divided by ``width``. The hidden width is then multiplied by 2/3,
            because SwiGLU has a third matrix.
        times: 0 (a one-step generator), 1 (a velocity) or 2 (an average velocity).
        classes: number of classes, or ``None``; label ``classes`` means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency of a time.
        attention: the attention function, ``(q, k, v) -> values``.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Position embeddings are trained; they start as cosines and sines of row and column.

    Raises:
        ConfigError: if a shape, the patch or a size is not valid.

    Example:
        >>> network = DiT((1, 8, 8), patch=2, width=32, depth=1, heads=2, times=1, classes=10)
        >>> network(torch.randn(3, 1, 8, 8), torch.ones(3), label=torch.tensor([0, 9, 10])).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        ratio: float = 4.0,
        times: int = 1,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
        attention: Attention = fused_or_plain,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape, axes=3)
        at_least(1, depth=depth, heads=heads, patch=patch, channels=shape[0], height=shape[1], image_width=shape[2])
        at_least(4, width=width)
        if shape[1] % patch or shape[2] % patch:
            raise ConfigError(
                f"patch = {patch} does not divide an image of {shape[1]} x {shape[2]}: choose a common divisor"
            )
        if width % heads or width % 4:
            raise ConfigError(f"width = {width}: expected a multiple of 4 and of heads = {heads}")
        if not ratio > 0:
            raise ConfigError(f"ratio = {ratio!r}: expected a positive number, usually 4")
        self.patch, self.rows, self.columns = patch, shape[1] // patch, shape[2] // patch
        self.condition = Conditioning(
            width, times=times, classes=classes, frequencies=frequencies, max_frequency=max_frequency
        )
        values = shape[0] * patch * patch
        hidden = 8 * math.ceil(width * ratio * 2 / 3 / 8)
        self.input = nn.Linear(values, width)
        self.position = nn.Parameter(_positions(self.rows, self.columns, width))
        self.blocks = nn.ModuleList(_Block(width, heads, hidden, attention) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, values)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        self.condition.initialise(generator)
        for layer in (self.input, *(layer for block in self.blocks for layer in block.modules())):
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.output):
            if isinstance(layer, nn.Linear):
                zero_linear(layer)

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
        side = {"p": self.patch, "q": self.patch, "h": self.rows, "w": self.columns}
        tokens = self.input(rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", **side)) + self.position
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=2)
        return rearrange(
            self.output(_normalised(tokens) * (1 + scale) + shift), "b (h w) (c p q) -> b c (h p) (w q)", **side
        )


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.modulation = nn.Linear(width, 6 * width)
        self.projections = nn.Linear(width, 3 * width)
        self.gains = nn.Parameter(torch.ones(2, width // heads))
        self.merge = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        a1, b1, g1, a2, b2, g2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        tokens = tokens + g1 * self._attend(_normalised(tokens) * (1 + a1) + b1)
        gate, value = self.up(_normalised(tokens) * (1 + a2) + b2).chunk(2, dim=2)
        return tokens + g2 * self.down(silu(gate) * value)

    def _attend(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(self.projections(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = _normalised(q) * self.gains[0], _normalised(k) * self.gains[1]
        mixed = self.attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.merge(rearrange(mixed, "b h n d -> b n (h d)"))


def _normalised(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], eps=_EPSILON)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """Cosines and sines of row and column, ``[rows * columns, width]``; frequencies from pi / 100 to pi."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")

    def table(index: Tensor) -> Tensor:
        return sinusoids(index.flatten() * (math.pi / 100), count=width // 4, max_frequency=100.0)

    return torch.cat([table(row), table(column)], dim=1)
