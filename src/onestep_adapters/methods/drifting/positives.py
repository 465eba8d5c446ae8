"""Real samples of an update and their features: drawn and encoded, or read from the cache of features."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from onestep_adapters.data import Batch, Dataset
from onestep_adapters.encoders import Encoder, Multiscale, pixels
from onestep_adapters.methods.drifting.feature_cache import FeatureRows, cached_features, gigabytes
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError
from onestep_core.protocols import Features

_LOOKED_AT = 256
"""Number of images whose pixels identify a training split."""


class Real(NamedTuple):
    """Positives of every class, contiguous, and unconditional samples for every class, likewise, or ``None``."""

    positives: Tensor
    extra: Tensor | None


class Encoded(NamedTuple):
    """Positives, and the features of positives and unconditional samples by name."""

    positives: Tensor
    features: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] | None


@torch.no_grad()
def encoded(real: Real, encode: Features) -> Encoded:
    """The features of real samples, computed now."""
    return Encoded(real.positives, encode(real.positives), None if real.extra is None else encode(real.extra))


class CachedPositives:
    """Draws real images of the training split with their features from a cache; images are not dequantised.

    Args:
        train: the training split, on any device.
        rows: the features of its images, in the same order.
        with_pixels: whether the pixels are features too.
    """

    def __init__(self, train: Batch, rows: FeatureRows, *, with_pixels: bool = False) -> None:
        self._images, self._rows, self._pixels = train.data, rows, with_pixels
        labels = torch.zeros(len(train.data), dtype=torch.int64) if train.labels is None else train.labels.cpu()
        self._members = labels.argsort(stable=True).split(labels.bincount().tolist())

    def draw(self, each: int, unconditional: int, generator: torch.Generator) -> Encoded:
        """``each`` different images of every class, and ``unconditional`` ones of all classes with replacement.

        Raises:
            ConfigError: if a class has fewer than ``each`` images.
        """
        smallest = min(map(len, self._members))
        if each > smallest:
            raise ConfigError(
                f"cannot draw {each} positives of every class: the smallest class has {smallest}; draw fewer "
                "(--positives)"
            )
        device = generator.device
        picks = [
            members[torch.randperm(len(members), generator=generator, device=device)[:each].cpu()]
            for members in self._members
        ]
        index, extra = torch.cat(picks), None
        if unconditional:
            drawn = torch.randint(len(self._images), (unconditional,), generator=generator, device=device)
            extra = self._features(drawn, device)
        images = self._images[index.to(self._images.device)].to(device)
        return Encoded(images, self._features(index, device), extra)

    def _features(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        images = self._images[index.to(self._images.device)].to(device)
        return {**self._rows(index, device), **(pixels(images) if self._pixels else {})}


def cached_positives(
    folder: Path | None,
    encoder: Encoder,
    features: Multiscale,
    data: Dataset,
    *,
    limit: float,
    device: torch.device | str = "cpu",
    track: Track = untracked,
    with_pixels: bool = False,
) -> CachedPositives | None:
    """The cache of the features of the training split, made now if it is not there.

    ``None`` without a place for them, see :func:`cache_place`.

    Args:
        folder: folder of all caches of the encoder, or ``None``.
        encoder: the encoder.
        features: its features.
        data: the data set.
        limit: in gigabytes of 10^9 bytes.
        device: of the encoder.
        track: shows the progress.
        with_pixels: whether the pixels are features too; they are not in the cache.
    """
    found = cache_place(folder, encoder, features, data, limit=limit, device=device)
    if found is None:
        return None
    train, place = found
    rows = cached_features(place, features, train.data, device=device, track=track)
    return CachedPositives(train, rows, with_pixels=with_pixels)


def cache_place(
    folder: Path | None,
    encoder: Encoder,
    features: Multiscale,
    data: Dataset,
    *,
    limit: float,
    device: torch.device | str = "cpu",
) -> tuple[Batch, Path] | None:
    """The training split, and the folder for its features, which may not exist yet; arguments as above.

    ``None``, so that the real images of every update are encoded, if there is no folder or the encoder has no key; if
    the data have no fixed training split, or mirror its images at random; or if the features of all its images,
    together with the images as float32, take more than ``limit`` gigabytes.
    """
    if folder is None or not encoder.key or limit <= 0 or getattr(data, "flip", False):
        return None
    blank = torch.zeros(1, *data.shape, device=device)

    def fits(count: int) -> bool:
        return gigabytes(features, blank, count) + 4e-9 * count * blank.numel() <= limit

    # A data set on the disk knows how many images it has; ``split`` would read all of them into memory.
    counts = getattr(data, "counts", None)
    if isinstance(counts, Mapping) and not fits(counts["train"]):
        return None
    train = data.split("train")
    if train is None or not fits(len(train.data)):
        return None
    return train, folder / _name(encoder, features, data, train)


def _name(encoder: Encoder, features: Multiscale, data: Dataset, train: Batch) -> str:
    """Identifies the features (encoder, layers, normalisation, size) and the images (name, number, some pixels)."""
    count = len(train.data)
    some = train.data[:: max(1, count // _LOOKED_AT)].contiguous().cpu()
    pixels = hashlib.sha256(some.numpy().tobytes()).hexdigest()
    read = attrs.asdict(features, recurse=False)
    kept = {name: str(value) for name, value in read.items() if name not in ("module", "call", "output", "chunk")}
    described = json.dumps([encoder.key, kept, data.name, count, list(data.shape), pixels], sort_keys=True)
    return f"{data.name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
