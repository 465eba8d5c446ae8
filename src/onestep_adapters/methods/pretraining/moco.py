"""MoCo: keys come from a slowly moving copy of the encoder; negatives from a queue (v1, v2) or the batch (v3)."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import Augmentation, KeyQueue, info_nce, symmetric_info_nce
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import Preset
from onestep_adapters.methods.pretraining.base import Pretraining, Projected, projected, views_of
from onestep_adapters.methods.pretraining.simclr import SMALL, VIEWS
from onestep_adapters.training import Companion, not_trained, update_ema
from onestep_core.validators import count, positive, positive_count, share

MOMENTUM = "momentum_encoder"
"""Name of the companion that encodes the keys."""
QUEUE = "queue"
"""Name of the companion that holds the negatives."""


@attrs.frozen
class MoCo(Pretraining):
    """Options of MoCo v2 (https://arxiv.org/abs/2003.04297) and v3 (https://arxiv.org/abs/2104.02057)."""

    augmentation: Augmentation = attrs.field(factory=Augmentation)
    queue_size: int = attrs.field(default=2048, validator=count)
    """Keys in the queue of negatives (v2: 65,536). 0: no queue; the batch's keys are the negatives, the loss has both
    views' terms, and a prediction head is on the queries (v3)."""
    momentum: float = attrs.field(default=0.99, validator=share)
    """Decay of the momentum encoder that makes the keys, 0 to 1. v2: 0.999; v3: 0.99, rising to 1."""
    temperature: float = attrs.field(default=0.2, validator=positive)
    """Temperature of the loss, above 0. v1: 0.07, v2 and v3: 0.2."""
    hidden: int = attrs.field(default=128, validator=positive_count)
    """Hidden units of the heads. v2: 2048, v3: 4096."""
    projection: int = attrs.field(default=64, validator=positive_count)
    """Numbers in a query or a key. v2: 128, v3: 256."""

    monitors: ClassVar[tuple[str, ...]] = ("loss", "rank", "alignment", "uniformity", "knn")

    @property
    def calls(self) -> int:
        """Queries and keys; of both views without a queue."""
        return 2 if self.queue_size else 4

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The encoder of the queries with its heads."""
        encoder = self.make_encoder(data, generator)
        sizes = {"hidden": self.hidden, "width": self.projection}
        return projected(encoder, data, **sizes, predicts=not self.queue_size, generator=generator)

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """The momentum encoder, equal to the encoder at the start, and the queue."""
        found = {MOMENTUM: not_trained(copy.deepcopy(Projected(network.encoder, network.projector)))}
        if self.queue_size:
            found[QUEUE] = not_trained(KeyQueue(self.queue_size, self.projection, generator=generator))
        return found

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """InfoNCE of the queries; first the momentum encoder follows the encoder."""
        images = context.data.batch(self.training.batch, generator).data
        first, second = (self.augmentation(images, generator) for _ in range(2))
        keys_of: nn.Module = context.companion(MOMENTUM)
        update_ema(keys_of, Projected(network.encoder, network.projector), decay=self.momentum)
        both = not self.queue_size
        with self.autocast(context.device):
            queries = network(torch.cat([first, second]) if both else first)
            with torch.no_grad():
                keys = keys_of(torch.cat([second, first]) if both else second)
        if both:
            parts = zip(queries.chunk(2), keys.chunk(2), strict=True)
            loss = sum(symmetric_info_nce(q, k, temperature=self.temperature) for q, k in parts).mean()
        else:
            queue: KeyQueue = context.companion(QUEUE)
            loss = info_nce(queries, keys, queue.negatives(), temperature=self.temperature).mean()
            queue.push(keys.float())
        count = len(images)
        logs = views_of(queries[:count], keys[:count]) if self.due(context) else {}
        return loss, {**logs, **self.watch(context, network)}

    def inner(self, network: nn.Module) -> nn.Module:
        """The encoder without the heads."""
        return network.encoder


_IMAGES = MoCo(Training(steps=1200, batch=128, learning_rate=2e-3), SMALL, augmentation=VIEWS, queue_size=256)

PRESETS = (
    Preset(
        "moco",
        "MoCo: queries find their keys of a momentum encoder among a queue of negatives",
        _IMAGES,
        _IMAGES,
        "As simclr, chosen on the validation split of the digits. The queue is a quarter of these 1,097 images: a "
        "longer one holds older keys of the same image as negatives. A momentum of 0.95 with a queue of 512 keys fails "
        "(linear probe 0.874); the loss of v3 in the same time is worse (2-shot 0.778; 0.804 with as much time). "
        "Images of more than 16 pixels: more updates and a longer queue.",
        larger_images=attrs.evolve(
            _IMAGES,
            training=attrs.evolve(_IMAGES.training, steps=1600),
            network=attrs.evolve(SMALL, width=24),
            queue_size=4096,
            temperature=0.1,
        ),
    ),
)
