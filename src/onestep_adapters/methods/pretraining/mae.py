"""MAE: a vision transformer sees a quarter of the patches, and a small decoder reconstructs the hidden ones."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import (
    Augmentation,
    MaskedDecoder,
    VisionTransformer,
    draw_mask,
    masked_reconstruction,
    patchify,
    unpatchify,
    visible_places,
)
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import Preset
from onestep_adapters.methods.pretraining.architecture import Architecture
from onestep_adapters.methods.pretraining.base import Pretraining, check_images
from onestep_core.errors import ConfigError
from onestep_core.validators import open_share, positive_count

_EPSILON = 1e-6


class Autoencoder(nn.Module):
    """Encoder and decoder: ``(images, mask) -> predicted patches [n, patch, value]``."""

    def __init__(self, encoder: VisionTransformer, decoder: MaskedDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of all patches; the encoder sees those with mask 0."""
        visible = visible_places(mask)
        return self.decoder(self.encoder(images, visible), visible)


@attrs.frozen
class MAE(Pretraining):
    """Options of a masked autoencoder (https://arxiv.org/abs/2111.06377)."""

    augmentation: Augmentation = attrs.field(factory=Augmentation)
    mask_ratio: float = attrs.field(default=0.75, validator=open_share)
    """Share of hidden patches, strictly between 0 and 1. MAE: 0.75."""
    normalize: bool = True
    """Whether each target patch is brought to mean 0 and variance 1. MAE: yes, for better features."""
    decoder_width: int = attrs.field(default=64, validator=positive_count)
    """Numbers in a token of the decoder, a multiple of 4 and of decoder-heads. MAE: 512."""
    decoder_depth: int = attrs.field(default=1, validator=positive_count)
    """Blocks of the decoder. MAE: 8."""
    decoder_heads: int = attrs.field(default=2, validator=positive_count)
    """Attention heads of the decoder. MAE: 16."""

    monitors: ClassVar[tuple[str, ...]] = ("loss", "rank", "spread", "knn")

    @property
    def calls(self) -> int:
        """One, of a quarter of the patches."""
        return 1

    def make_encoder(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """A vision transformer with fresh weights.

        Raises:
            ConfigError: for data that are not images, or another architecture.
        """
        check_images(type(self).__name__, data)
        if self.network.architecture != "vit":
            raise ConfigError(
                f"MAE with the architecture {self.network.architecture!r}: hidden patches are left out, which only a "
                "transformer can do; give --architecture vit"
            )
        return self.network.build(data, generator)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The encoder with its decoder."""
        encoder = self.make_encoder(data, generator)
        sizes = {"width": self.decoder_width, "depth": self.decoder_depth, "heads": self.decoder_heads}
        return Autoencoder(encoder, MaskedDecoder(encoder, **sizes, generator=generator))  # type: ignore[arg-type]

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """The error of the hidden patches."""
        images = self.augmentation(context.data.batch(self.training.batch, generator).data, generator)
        patches = patchify(images, network.encoder.patch)
        mask = draw_mask(len(images), patches.shape[1], ratio=self.mask_ratio, generator=generator)
        with self.autocast(context.device):
            prediction = network(images, mask)
        loss = masked_reconstruction(prediction, patches, mask, normalize=self.normalize).mean()
        return loss, self.watch(context, network)

    def inner(self, network: nn.Module) -> nn.Module:
        """The encoder without the decoder."""
        return network.encoder

    @torch.no_grad()
    def reconstructed(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masked images (hidden patches grey) and reconstructions (visible patches kept), both like ``images``.

        With ``normalize`` the network predicts patches without their mean and variance; those of the real patch are
        used to show them, as in the released code.
        """
        patch, rows = network.encoder.patch, network.encoder.rows
        patches = patchify(images, patch)
        mask = draw_mask(len(images), patches.shape[1], ratio=self.mask_ratio, generator=generator).to(images.device)
        found = network(images, mask)
        if self.normalize:
            deviation = (patches.var(2, keepdim=True) + _EPSILON).sqrt()
            found = found * deviation + patches.mean(2, keepdim=True)
        hidden = mask[:, :, None] == 1
        shown, filled = torch.where(hidden, 0.0, patches), torch.where(hidden, found, patches)
        return unpatchify(shown, patch, rows=rows), unpatchify(filled, patch, rows=rows).clamp(-1, 1)


_IMAGES = MAE(
    Training(steps=2000, batch=128, learning_rate=2e-3, ema=0.99),
    Architecture("vit", width=64, depth=3),
)

PRESETS = (
    Preset(
        "mae",
        "MAE: reconstruct three quarters of the patches from the rest",
        _IMAGES,
        _IMAGES,
        "A transformer that trains in about two minutes on one core for digits. In this time its features at all "
        "locations are not better than those of contrastive methods.",
    ),
)
