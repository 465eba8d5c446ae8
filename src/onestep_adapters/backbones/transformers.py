"""Vision transformers of ``transformers`` (ViT, DINOv2, ViTMAE) for images in [-1, 1]: discriminators and features.

    images in [-1, 1] -> grey repeated -> resized -> ((images + 1) / 2 - mean) / std -> model -> tokens

Three conventions of these models are made explicit.

- **Pixels.** They were trained on pixels in [0, 1], from which a mean was subtracted: 0.5 for Google's ViT, ImageNet's
  for DINOv2 and ViTMAE. ``mean`` and ``std`` are those numbers, as an image processor's ``image_mean``.
- **Size.** Positions were trained for one size of images. For another size, a multiple of the patch, they are
  interpolated (bicubic). ``size`` resizes the images instead.
- **Masks.** ``ViTMAEModel`` hides 75 % of the patches and shuffles the others. Here nothing is hidden and the order is
  kept; its configuration is changed to ``mask_ratio = 0`` for that.

As a discriminator: ``Critic(VisionTransformer(model), width=..., layer="")``. As features for drifting:
``encoders.multiscale(VisionTransformer(model), ["model.layernorm"])``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.precision import full

try:
    from transformers import Dinov2Model, Dinov2WithRegistersModel, PreTrainedModel, ViTMAEModel, ViTModel
except ImportError as error:
    raise MissingExtraError("vision transformers need transformers: pip install 'onestep[transformers]'") from error

HALF = ((0.5,), (0.5,))
"""Mean and standard deviation of the pixels for Google's ViT."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the pixels of ImageNet, for DINOv2 and ViTMAE."""

_FAMILIES = {ViTModel: HALF, ViTMAEModel: IMAGENET, Dinov2Model: IMAGENET, Dinov2WithRegistersModel: IMAGENET}


class VisionTransformer(nn.Module):
    """``images [batch, channel, height, width] -> tokens [batch, prefix + patches, width]``, the last hidden states.

    Args:
        model: a ``ViTModel``, ``ViTMAEModel``, ``Dinov2Model`` or ``Dinov2WithRegistersModel``. It is not copied: a
            discriminator trains it; for frozen features use ``requires_grad_(False)`` or ``multiscale``.
        mean: of pixels in [0, 1], one number or one for each channel; ``None``: that of the published models of this
            class (the module's :data:`HALF` or :data:`IMAGENET`).
        std: likewise.
        size: height and width to which the images are resized; ``None``: they keep theirs. Shrinking averages.

    Attributes:
        width: number of channels of a token.
        num_prefix_tokens: number of tokens before the patches: one for the class, and the registers.

    Raises:
        ConfigError: for another model, or numbers out of range. At a call: for images whose size is no multiple of the
            patch, or of another number of channels.

    Example:
        >>> from transformers import ViTConfig
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
        >>> VisionTransformer(model)(torch.zeros(2, 1, 16, 24)).shape
        torch.Size([2, 7, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        family = next((family for family in _FAMILIES if isinstance(model, family)), None)
        if family is None or not isinstance(model, PreTrainedModel):
            names = ", ".join(known.__name__ for known in _FAMILIES)
            raise ConfigError(
                f"a {type(model).__name__} as vision transformer: expected one of {names}; of a model with a head give "
                "the model inside, for example classifier.vit"
            )
        config: Any = model.config
        self.patch, self.channels, self.width = config.patch_size, config.num_channels, config.hidden_size
        self.num_prefix_tokens = 1 + (config.num_register_tokens if family is Dinov2WithRegistersModel else 0)
        self.mean = tuple(_FAMILIES[family][0] if mean is None else mean)
        self.std = tuple(_FAMILIES[family][1] if std is None else std)
        if not {len(self.mean), len(self.std)} <= {1, self.channels} or min(self.std) <= 0:
            raise ConfigError(
                f"mean = {self.mean}, std = {self.std}: expected one number or {self.channels}, and positive deviations"
            )
        if size is not None and (not isinstance(size, int) or size < 1 or size % self.patch):
            raise ConfigError(f"size = {size!r}: expected a multiple of the patch of {self.patch} pixels")
        self.size, self.masked = size, family is ViTMAEModel
        if self.masked:
            config.mask_ratio = 0.0
        self.interpolates = family in (ViTModel, ViTMAEModel)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The tokens of images in [-1, 1].

        Raises:
            ConfigError: for images of another size or number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, self.channels):
            raise ConfigError(
                f"images of shape {tuple(images.shape)}: expected [batch, {self.channels} or 1, height, width]"
            )
        x = images.expand(-1, self.channels, -1, -1)
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            smaller = min(x.shape[2:]) > self.size
            x = interpolate(full(x), (self.size, self.size), mode="bilinear", align_corners=False, antialias=smaller)
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        if x.shape[2] % self.patch or x.shape[3] % self.patch or not rows * columns:
            raise ConfigError(
                f"images of {x.shape[2]} x {x.shape[3]}: expected multiples of the patch of {self.patch} pixels; give "
                "size="
            )
        mean, std = (torch.tensor(numbers, dtype=x.dtype, device=x.device) for numbers in (self.mean, self.std))
        x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        given: dict[str, Any] = {"interpolate_pos_encoding": True} if self.interpolates else {}
        if self.masked:
            # Noise that increases from patch to patch keeps their order.
            given["noise"] = torch.arange(rows * columns, device=x.device).expand(len(x), -1)
        return self.model(x.to(self.model.dtype), **given).last_hidden_state
