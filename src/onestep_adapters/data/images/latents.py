"""The latents of an autoencoder as a data set: generators learn latents, generated latents are decoded to images.

    latent = (mode of encode(image) - shift) * scale           image = decode(latent / scale + shift)

Any module with ``encode`` and ``decode`` will do, such as diffusers' ``AutoencoderKL``: of what ``encode`` returns
the mode of ``latent_dist`` is used, or ``latents``, or the tensor itself; of what ``decode`` returns ``sample``, or
the tensor itself. ``scale`` and ``shift`` are ``scaling_factor`` and ``shift_factor`` of the module's configuration;
without them, the latents of the training images get mean 0 and standard deviation 1.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onestep_adapters.data.dataset import Batch, Kind, Modes, SplitName
from onestep_adapters.data.images.building import built_once
from onestep_adapters.data.images.cache import cache_folder
from onestep_adapters.data.images.dataset import ImageDataset, Placed
from onestep_adapters.data.images.source import digest_of
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError

_TOGETHER = 32
"""Images that are encoded or decoded at once."""

_VALUES = "latents.f32"


class LatentDataset:
    """Latents of images.

    Training batches, ``groups`` and ``held_out`` are latents; ``split`` and ``sample`` are the images, and ``finish``
    decodes generated latents to images, so that both can be compared. Latents are not flipped: they are computed once.

    Args:
        images: the data set of images; it must not flip.
        autoencoder: a module with ``encode`` and ``decode`` for images in [-1, 1] of the same number of channels. It
            is put in evaluation mode and frozen.
        scale: factor of the latents; by default that of the module's configuration, or one over their standard
            deviation.
        shift: what is subtracted before; likewise.
        source: how :func:`~onestep_adapters.data.open_dataset` opens this data set again.
        track: shows the progress while images are encoded.

    Raises:
        ConfigError: if the images flip, or if the module has no ``encode`` and ``decode`` or returns something else.

    Source: Rombach et al., High-resolution image synthesis with latent diffusion models, section 3.1,
    https://arxiv.org/abs/2112.10752; there latents are drawn, here they are the mode.
    """

    kind: Kind = "images"
    modes: Modes | None = None

    def __init__(
        self,
        images: ImageDataset,
        autoencoder: nn.Module,
        *,
        scale: float | None = None,
        shift: float | None = None,
        source: Mapping[str, Any] | None = None,
        track: Track = untracked,
    ) -> None:
        if not all(callable(getattr(autoencoder, name, None)) for name in ("encode", "decode")):
            raise ConfigError(
                f"a {type(autoencoder).__name__} as autoencoder: expected a module with encode and decode"
            )
        if images.flip:
            raise ConfigError(f"{images.name} flips its images: latents are computed once, so open it without flip")
        self.images, self._autoencoder = images, autoencoder.eval().requires_grad_(False)
        weights = _weights(autoencoder)
        self.name = f"{images.name}-latents-{digest_of(weights.encode(), repr((scale, shift)).encode())[:8]}"
        self.title = f"latents of {images.title}"
        self.source: Mapping[str, Any] | None = source
        self.facts = dict(images.facts)
        self._latents = torch.from_numpy(_encoded(images, autoencoder, _contents(images) + weights, track))
        self.shape = tuple(self._latents.shape[1:])
        config = getattr(autoencoder, "config", None)
        self._shift = _first(shift, getattr(config, "shift_factor", None), None if scale is None else 0.0)
        self._scale = _first(scale, getattr(config, "scaling_factor", None))
        if self._scale is None:
            training = self._latents[images.rows["train"]]
            self._shift = float(training.mean()) if self._shift is None else self._shift
            self._scale = 1 / float(training.std().clamp(min=1e-12))
        self._shift = self._shift or 0.0
        self._devices: dict[torch.device, Placed] = {}
        found = self.finish(self._scaled(self._latents[:1])).shape[1:]
        if found != images.images.shape[1:]:
            raise ConfigError(
                f"the autoencoder makes images of shape {tuple(found)} of the latents of {images.name}, which has "
                f"{images.shape}: choose a size that it halves without a rest, such as a multiple of 8"
            )

    @property
    def classes(self) -> int | None:
        """Number of classes of the images, or ``None``."""
        return self.images.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, or ``None``."""
        return self.images.class_names

    @property
    def counts(self) -> dict[SplitName, int]:
        """Number of images of each split."""
        return self.images.counts

    def class_counts(self, name: SplitName) -> list[int]:
        """Number of images of each class in a split; empty without classes."""
        return self.images.class_counts(name)

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Latents of training images, with replacement; each ``alike`` in a row have the same class."""
        placed = self._on(generator.device)
        index = placed.rows.drawn(count, generator, alike=alike)
        return Batch(
            self._scaled(placed.images(index)), None if placed.rows.labels is None else placed.rows.labels[index]
        )

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """Latents of ``each`` different training images of every class; those of a class are contiguous.

        Raises:
            ConfigError: if a class has fewer than ``each`` images.
        """
        placed = self._on(generator.device)
        return self._scaled(placed.images(placed.rows.of_every_class(each, generator)))

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents of the first ``count`` images of the validation split; of the training split if that is empty."""
        rows = self.images.rows["validation"] if self.counts["validation"] else self.images.rows["train"]
        return self._scaled(self._latents[rows[:count]]).to(generator.device)

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes of training images drawn with replacement; ``None`` without classes."""
        return self._on(generator.device).rows.labels_of(count, generator)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training images drawn with replacement."""
        return self.images.sample(count, generator)

    def split(self, name: SplitName) -> Batch | None:
        """The images of a split."""
        return self.images.split(name)

    def part(self, name: SplitName, count: int) -> Batch | None:
        """At most ``count`` images of a split."""
        return self.images.part(name, count)

    @torch.no_grad()
    def finish(self, samples: Tensor) -> Tensor:
        """Decode latents to images in [-1, 1], rounded as the images are."""
        module, like = self._autoencoder, _like(self._autoencoder)
        raw = (samples / self._scale + self._shift).to(like)
        parts = [_tensor(module.decode(part), "sample") for part in raw.split(_TOGETHER)]  # type: ignore[operator]
        return self.images.finish(torch.cat(parts).to(samples))

    def _scaled(self, latents: Tensor) -> Tensor:
        return ((latents - self._shift) * self._scale).to(torch.get_default_dtype())

    def _on(self, device: torch.device) -> Placed:
        if device not in self._devices:
            rows = self.images.rows["train"]
            self._devices[device] = Placed(self._latents, rows, self.images.part_labels(rows), device)
        return self._devices[device]


def _encoded(images: ImageDataset, autoencoder: nn.Module, key: str, track: Track) -> np.ndarray:
    """Latents of all images, float32 ``[n, *shape]``, memory-mapped; from the cache or computed now."""
    total = len(images.images)

    place = cache_folder("latents") / digest_of(key.encode())

    def build(folder: Path) -> dict[str, Any]:
        shape: tuple[int, ...] = ()
        with (folder / _VALUES).open("wb") as stream:
            for part in track(_latents(images, autoencoder), "encoding images", -(-total // _TOGETHER)):
                shape = part.shape[1:]
                stream.write(part.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        return {"shape": [total, *shape]}

    def opened(facts: dict[str, Any]) -> np.ndarray:
        # Copy on write: torch warns of arrays that cannot be written to.
        return np.memmap(place / _VALUES, dtype=np.float32, mode="c", shape=tuple(facts["shape"]))

    return built_once(place, opened, build, track=track, title="encoding images")


@torch.no_grad()
def _latents(images: ImageDataset, autoencoder: nn.Module) -> Iterator[np.ndarray]:
    like = _like(autoencoder)
    for part in images.images.split(_TOGETHER):
        pixels = (part.float() / 127.5 - 1).to(like)
        found: Any = autoencoder.encode(pixels)  # type: ignore[operator]
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else _tensor(found, "latents")
        if latents.ndim != 4 or len(latents) != len(part):
            raise ConfigError(
                f"the autoencoder makes latents of shape {tuple(latents.shape)} of {len(part)} images: expected "
                "[n, channels, height, width]"
            )
        yield latents.float().cpu().numpy()


def _tensor(found: Any, name: str) -> Tensor:
    found = found if isinstance(found, Tensor) else getattr(found, name, found)
    if not isinstance(found, Tensor):
        raise ConfigError(f"the autoencoder returned a {type(found).__name__}: expected a tensor, or one in .{name}")
    return found


def _like(module: nn.Module) -> Tensor:
    """A tensor on the device and of the type of the module."""
    return next(module.parameters(), torch.zeros(()))


def _first(*values: float | None) -> float | None:
    return next((float(value) for value in values if value is not None), None)


def _contents(images: ImageDataset) -> str:
    """A name for the pixels: that of the data set if it has a hash of them, else the hash itself."""
    if images.source is not None:
        return images.name
    found = hashlib.sha256()
    for part in images.images.split(1024):
        found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def _weights(module: nn.Module) -> str:
    """Hash of the class, the configuration (without the place it was loaded from) and the weights."""
    config = dict(getattr(module, "config", None) or {})
    kept = sorted((name, value) for name, value in config.items() if not name.startswith("_"))
    found = hashlib.sha256(repr((type(module).__qualname__, kept)).encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
