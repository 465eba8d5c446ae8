"""SimCLR: two views of an image agree, those of all other images of the batch are negatives."""

from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import Augmentation, nt_xent
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import Preset
from onestep_adapters.methods.pretraining.architecture import Architecture
from onestep_adapters.methods.pretraining.base import Pretraining, projected, views_of
from onestep_core.validators import positive, positive_count

VIEWS = Augmentation(crop_area=0.4, shift=1, brightness=0.6, contrast=0.6)
"""The views of small images."""
SMALL = Architecture(width=16, depth=3)
"""The encoder of small images."""


@attrs.frozen
class SimCLR(Pretraining):
    """Options of SimCLR (https://arxiv.org/abs/2002.05709)."""

    augmentation: Augmentation = attrs.field(factory=Augmentation)
    temperature: float = attrs.field(default=0.2, validator=positive)
    """Temperature of the loss, above 0. SimCLR: 0.1 for long trainings, 0.5 in the code's defaults."""
    hidden: int = attrs.field(default=128, validator=positive_count)
    """Hidden units of the projection head. SimCLR: 2048."""
    projection: int = attrs.field(default=64, validator=positive_count)
    """Numbers in a projection. SimCLR: 128."""

    monitors: ClassVar[tuple[str, ...]] = ("loss", "rank", "alignment", "uniformity", "knn")

    @property
    def calls(self) -> int:
        """One for each view."""
        return 2

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The encoder with its projection head."""
        encoder = self.make_encoder(data, generator)
        sizes = {"hidden": self.hidden, "width": self.projection}
        return projected(encoder, data, **sizes, predicts=False, generator=generator)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """NT-Xent of two views of a batch."""
        images = context.data.batch(self.training.batch, generator).data
        views = torch.cat([self.augmentation(images, generator) for _ in range(2)])
        with self.autocast(context.device):
            first, second = network(views).chunk(2)
        loss = nt_xent(first, second, temperature=self.temperature).mean()
        logs = views_of(first, second) if self.due(context) else {}
        return loss, {**logs, **self.watch(context, network)}

    def inner(self, network: nn.Module) -> nn.Module:
        """The encoder without the projection head."""
        return network.encoder


_IMAGES = SimCLR(Training(steps=700, batch=128, learning_rate=2e-3), SMALL, augmentation=VIEWS)

PRESETS = (
    Preset(
        "simclr",
        "SimCLR: two views of an image agree, other images of the batch are negatives",
        _IMAGES,
        _IMAGES,
        "Chosen on the validation split of the digits, within 45 s on one core: of the sizes that fit, 16 channels and "
        "three stages are best on images moved by a pixel (0.911; two stages 0.706, two stages of 32 channels 0.795). "
        "Shifts of two pixels in training made features worse. Images of more than 16 pixels: 24 "
        "channels, and as many updates as four minutes allow on one core (Fashion-MNIST, validation: linear probe "
        "0.860; 16 channels and 800 updates 0.850).",
        larger_images=attrs.evolve(
            _IMAGES,
            training=attrs.evolve(_IMAGES.training, steps=1000),
            network=attrs.evolve(SMALL, width=24),
        ),
    ),
)
