"""A small vision transformer and the decoder of a masked autoencoder (MAE).

    tokens = patches W + position
    tokens <- tokens + attention(norm(tokens));    tokens <- tokens + mlp(norm(tokens))        in every block
    output = norm(tokens)

``norm`` is layer normalisation. Positions are fixed cosines and sines of row and column, as in MAE. There is no class
token: the mean of the tokens stands for the image. No layer depends on the batch or on the training mode.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929; He et al., Masked
Autoencoders Are Scalable Vision Learners, https://arxiv.org/abs/2111.06377. The released MAE has a class token, which
is not part of the loss.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from onestep_adapters.encoders.heads import draw_weights
from onestep_adapters.encoders.masked import patchify
from onestep_core.errors import ConfigError


class VisionTransformer(nn.Module):
    """``images [n, channels, height, width] -> tokens [n, patch, width]``.

    The blocks are ``blocks.0``, ``blocks.1``, ...: names for features by layer; ``norm`` is the output.

    Args:
        shape: shape of an image, (channels, height, width).
        patch: side of a patch in pixels; it divides height and width.
        width: numbers in a token, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a size does not fit; at a call, for images of another shape.

    Example:
        >>> encoder = VisionTransformer((1, 8, 8), patch=2, width=32, depth=2, heads=2)
        >>> encoder(torch.zeros(3, 1, 8, 8)).shape, encoder.layers
        (torch.Size([3, 16, 32]), ('blocks.0', 'blocks.1'))
    """

    position: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(width=width, depth=depth, heads=heads)
        channels, height, columns = shape
        if patch < 1 or height % patch or columns % patch:
            raise ConfigError(f"patches of {patch} pixels do not divide images of {height} x {columns}")
        self.shape, self.patch, self.channels = tuple(shape), patch, width
        self.rows, self.columns = height // patch, columns // patch
        self.input = nn.Linear(channels * patch * patch, width)
        self.register_buffer("position", positions(self.rows, self.columns, width), persistent=False)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        draw_weights(self, generator)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs are features, from the input to the output."""
        return tuple(f"blocks.{index}" for index in range(len(self.blocks)))

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """The tokens of all patches, or of some.

        Args:
            images: ``[n, channels, height, width]``.
            visible: indices of the patches that the network sees, ``[n, seen]``; all by default.

        Raises:
            ConfigError: for images of another shape.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ConfigError(f"images of shape {tuple(images.shape)}: expected [n, {', '.join(map(str, self.shape))}]")
        tokens = self.input(patchify(images, self.patch)) + self.position
        if visible is not None:
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class MaskedDecoder(nn.Module):
    """The decoder of MAE: from the tokens of visible patches to a prediction of all patches.

    Args:
        encoder: whose tokens it decodes; only its sizes are read.
        width: numbers in a token of the decoder, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a size does not fit.

    Example:
        >>> encoder = VisionTransformer((1, 8, 8), patch=2, width=32, depth=1, heads=2)
        >>> seen = torch.tensor([[0, 5, 6]])
        >>> MaskedDecoder(encoder, width=16, depth=1, heads=2)(encoder(torch.zeros(1, 1, 8, 8), seen), seen).shape
        torch.Size([1, 16, 4])
    """

    position: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(width=width, depth=depth, heads=heads)
        self.input = nn.Linear(encoder.channels, width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.register_buffer("position", positions(encoder.rows, encoder.columns, width), persistent=False)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, encoder.shape[0] * encoder.patch**2)
        draw_weights(self, generator)
        nn.init.normal_(self.hidden, std=0.02, generator=generator)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Predicted patches ``[n, patch, value]`` from ``tokens`` ``[n, seen, channel]`` of the patches ``visible``."""
        seen = self.input(tokens)
        every = self.hidden.to(seen.dtype).expand(len(seen), len(self.position), -1)
        places = visible[:, :, None].expand(-1, -1, seen.shape[2])
        hidden = every.scatter(1, places, seen) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        return self.output(self.norm(hidden))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        projected = self.projections(self.attention_norm(tokens))
        q, k, v = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        tokens = tokens + self.merge(mixed)
        return tokens + self.down(gelu(self.up(self.mlp_norm(tokens))))


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Cosines and sines of row and column, ``[rows * columns, width]``; frequencies from 1 to 1/10,000 per patch.

    Example:
        >>> positions(2, 3, 8).shape
        torch.Size([6, 8])
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [index.reshape(-1, 1) * frequencies for index in (row, column)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)


def _check_sizes(*, width: int, depth: int, heads: int) -> None:
    if min(width, depth, heads) < 1 or width % heads or width % 4:
        raise ConfigError(
            f"width = {width}, depth = {depth}, heads = {heads}: expected at least 1 of each, and a width that is a "
            "multiple of 4 and of the heads"
        )
