"""What the pretraining methods of encoders share: they train an encoder and generate no samples."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import Encoder, Head, locations, pooled
from onestep_adapters.methods.method import Context, Method
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.pretraining.architecture import Architecture
from onestep_adapters.metrics import alignment, effective_rank, knn_accuracy, spread, uniformity
from onestep_core.errors import ConfigError
from onestep_core.validators import count

_WATCHED, _REFERENCES = 500, 2000
"""At most so many held-out and training images are encoded for the monitors."""


class Watched(NamedTuple):
    """Images of the monitors: held-out ones, and training images for nearest neighbours; classes or ``None``."""

    images: Tensor
    labels: Tensor | None
    references: Tensor
    reference_labels: Tensor | None


@attrs.frozen
class Pretraining(Method):
    """Options of a method that trains an encoder. Its run is used by name: ``--encoder RUN``.

    For another architecture than the options name, override :meth:`make_encoder`: any module that maps images to one of
    the forms of :func:`onestep_adapters.encoders.locations` is trained.
    """

    training: Training = Training()
    network: Architecture = attrs.field(factory=Architecture)  # type: ignore[assignment]
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the encoder's forward pass in training. bfloat16: faster on processors that have it; losses stay
    in float32."""
    monitor_every: int = attrs.field(default=100, validator=count)
    """Updates between two measurements of the monitors (rank, spread, nearest neighbours); 0: none."""

    generates: ClassVar[bool] = False
    monitors: ClassVar[tuple[str, ...]] = ("loss", "rank", "knn")

    def make_encoder(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The encoder with fresh weights, on the CPU.

        Raises:
            ConfigError: for data that are not images.
        """
        check_images(type(self).__name__, data)
        return self.network.build(data, generator)

    def prepare(self, context: Context) -> Any:
        """The images of the monitors."""
        return watched(context.data, context.device)

    def encoder_of(self, network: nn.Module, data: Dataset, key: str = "") -> Encoder:
        """The encoder in a trained network, without the heads that only the pretraining needs.

        An encoder without the attribute ``layers`` (names) has one feature, its output.
        """
        module = self.inner(network)
        found = getattr(module, "layers", ())
        named = isinstance(found, tuple) and found and all(isinstance(name, str) for name in found)
        size = (
            None if isinstance(self.network, Architecture) and self.network.architecture == "residual" else _size(data)
        )
        return Encoder(module, found if named else ("",), data.shape[0], size=size if named else _size(data), key=key)

    @abstractmethod
    def inner(self, network: nn.Module) -> nn.Module:
        """The encoder inside of the trained network."""

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """There are no samples.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{type(self).__name__} trains an encoder: it generates no samples")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def due(self, context: Context) -> bool:
        """Whether the monitors are measured in this update."""
        return bool(self.monitor_every) and context.state.step % self.monitor_every == 0

    def watch(self, context: Context, network: nn.Module) -> dict[str, float]:
        """``rank`` and ``spread`` of the pooled features of held-out images and, with classes, ``knn``: the accuracy of
        their five nearest training images in the features of all locations. Empty if not due.
        """
        if not self.due(context):
            return {}
        return monitored(self.inner(network), context.prepared)


def monitored(encoder: nn.Module, images: Watched) -> dict[str, float]:
    """The monitors of an encoder; its mode (training or evaluation) is restored."""
    mode = encoder.training
    encoder.eval()
    mine = encoded(encoder, images.images)
    numbers = {"rank": effective_rank(mine.mean(1)), "spread": spread(mine.mean(1))}
    if images.labels is not None and images.reference_labels is not None:
        theirs = encoded(encoder, images.references)
        numbers["knn"] = knn_accuracy(mine.flatten(1), images.labels, theirs.flatten(1), images.reference_labels)
    encoder.train(mode)
    return numbers


@torch.no_grad()
def encoded(encoder: nn.Module, images: Tensor, *, chunk: int = 250) -> Tensor:
    """The encoder's output at all locations, ``[n, location, channel]``."""
    return torch.cat([locations(encoder(part)).float() for part in images.split(chunk)])


def views_of(first: Tensor, second: Tensor) -> dict[str, float]:
    """Alignment and uniformity of the projections of two views."""
    one, other = first.detach().float(), second.detach().float()
    return {"alignment": alignment(one, other), "uniformity": uniformity(one)}


def watched(data: Dataset, device: torch.device) -> Watched:
    """Evenly spaced images of the validation split, and of the training split as references."""
    train = data.split("train")
    if train is None:
        raise ConfigError(f"{data.name} has no splits: an encoder is trained and watched on images in splits")
    # Very few images may have no validation split: then the training images are watched.
    held_out = data.split("validation") or train

    def some(values: Tensor | None, most: int) -> Tensor | None:
        if values is None:
            return None
        places = torch.arange(min(most, len(values))) * len(values) // min(most, len(values))
        return values[places].to(device)

    return Watched(
        some(held_out.data, _WATCHED),  # type: ignore[arg-type]
        some(held_out.labels, _WATCHED),
        some(train.data, _REFERENCES),  # type: ignore[arg-type]
        some(train.labels, _REFERENCES),
    )


def check_images(method: str, data: Dataset) -> None:
    """Refuse data that are not images.

    Raises:
        ConfigError: with the reason.
    """
    if data.kind != "images" or len(data.shape) != 3:
        raise ConfigError(
            f"{method} on {data.name}, samples of shape {tuple(data.shape)}: encoders need images, [channel, height, "
            "width]; give --data digits, or images of your own"
        )


class Projected(nn.Module):
    """An encoder, the mean over its locations, and a projection head; for MoCo v3 also a prediction head."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, images: Tensor) -> Tensor:
        """The projections ``[n, channel]``, or their predictions."""
        projected = self.projector(pooled(self.encoder(images)))
        return projected if self.predictor is None else self.predictor(projected)


def projected(
    encoder: nn.Module, data: Dataset, *, hidden: int, width: int, predicts: bool, generator: torch.Generator
) -> Projected:
    """The encoder with heads; how many channels it has is found by a call."""
    with torch.no_grad():
        channels = pooled(encoder(torch.zeros(2, *data.shape))).shape[1]
    projector = Head([channels, hidden, width], generator=generator)
    return Projected(encoder, projector, Head([width, hidden, width], generator=generator) if predicts else None)


def _size(data: Dataset) -> int | None:
    return data.shape[1] if data.shape[1] == data.shape[2] else None
