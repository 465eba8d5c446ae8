"""Images as a data set: uint8 in memory or on disk, floating point in [-1, 1] when they are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.data.classes import ClassRows, check_every_class_trains, dequantised
from onestep_adapters.data.dataset import Batch, Kind, Modes, SplitName, evenly_spaced
from onestep_adapters.data.images.splits import hashes_of, split_rows
from onestep_core.errors import ConfigError
from onestep_core.validators import whole_numbers

LEVEL = 2 / 255
"""Distance of two of the 256 grey levels in [-1, 1]."""

_ON_DEVICE = 2**30
"""Bytes of images that are copied to a GPU; larger sets stay on the CPU, and each batch is copied."""


class ImageDataset:
    """Images of uint8 as a data set.

    A pixel ``k`` is ``2 k / 255 - 1``. For training, images are *dequantised*: uniform noise of the width of one grey
    level is added, because discrete values have no density. Generated images are clamped to [-1, 1] and rounded to the
    256 levels.

    Args:
        name: name of the data set.
        images: uint8 ``[n, channels, height, width]``, a tensor or an array; a memory map is read as images are drawn.
        labels: classes ``[n]``, integers from 0, or ``None``.
        class_names: names of the classes; by default their numbers.
        rows: rows of ``images`` of each split; by default from the hash of each image, about 80 % ``train``, 10 %
            ``validation``, 10 % ``test``: see :mod:`onestep_adapters.data.images.splits`.
        flip: mirror half of the training images, left to right.
        title: description for reports; the name by default.
        source: how :func:`~onestep_adapters.data.open_dataset` opens these images again, in the form of JSON; saved in
            the configuration of a run.
        facts: what ``onestep data`` prints about the source, by heading.

    Raises:
        ConfigError: if images or labels have another type or shape; without training images; or if a class has none.

    Example:
        >>> images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        >>> data = ImageDataset("noise", images)
        >>> data.shape, data.counts["train"] > 30, data.batch(2, torch.Generator()).data.shape
        ((3, 8, 8), True, torch.Size([2, 3, 8, 8]))
    """

    kind: Kind = "images"
    modes: Modes | None = None

    def __init__(
        self,
        name: str,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | None = None,
        *,
        class_names: Sequence[str] | None = None,
        rows: Mapping[SplitName, Tensor] | None = None,
        flip: bool = False,
        title: str = "",
        source: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise ConfigError(
                f"{name} has images of shape {tuple(self.images.shape)} and {self.images.dtype}: expected uint8, "
                "[n, channels, height, width]"
            )
        self.name, self.title, self.flip = name, title or name, flip
        self.source: Mapping[str, Any] | None = source
        self.facts = dict(facts or {})
        self.shape = tuple(self.images.shape[1:])
        self.rows: dict[SplitName, Tensor] = dict(rows or split_rows(hashes_of(self.images.numpy())))
        self._labels = _checked_labels(name, labels, len(self.images))
        if len(self.rows["train"]) == 0:
            raise ConfigError(f"{name} has no training image among {len(self.images)}: give more images")
        self.class_names: tuple[str, ...] | None = None
        if self._labels is not None:
            count = int(self._labels.max()) + 1
            self.class_names = tuple(map(str, range(count)) if class_names is None else class_names)
            if count > len(self.class_names):
                raise ConfigError(f"{name} has class {count - 1} and {len(self.class_names)} names of classes")
            check_every_class_trains(name, self._labels[self.rows["train"]], self.class_names)
        self._devices: dict[torch.device, Placed] = {}

    @property
    def classes(self) -> int | None:
        """Number of classes, or ``None``."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def counts(self) -> dict[SplitName, int]:
        """Number of images of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}

    def class_counts(self, name: SplitName) -> list[int]:
        """Number of images of each class in a split; empty without classes."""
        if self._labels is None:
            return []
        return self._labels[self.rows[name]].bincount(minlength=self.classes or 0).tolist()

    def part_labels(self, rows: Tensor) -> Tensor | None:
        """Classes of rows of ``images``; ``None`` without classes."""
        return None if self._labels is None else self._labels[rows]

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Training images with replacement, flipped and dequantised; each ``alike`` in a row have the same class."""
        placed = self._on(generator.device)
        index = placed.rows.drawn(count, generator, alike=alike)
        labels = None if placed.rows.labels is None else placed.rows.labels[index]
        return Batch(self._drawn(placed.images(index), generator), labels)

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` different training images of every class, flipped and dequantised; those of a class are contiguous.

        Raises:
            ConfigError: if a class has fewer than ``each`` images.
        """
        placed = self._on(generator.device)
        return self._drawn(placed.images(placed.rows.of_every_class(each, generator)), generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """The first ``count`` images of the validation split, dequantised; of the training split if that is empty."""
        rows = self.rows["validation"] if len(self.rows["validation"]) else self.rows["train"]
        images = _scaled(self.images[rows[:count]].to(generator.device))
        return dequantised(images, LEVEL, generator)

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes of training images drawn with replacement; ``None`` without classes."""
        return self._on(generator.device).rows.labels_of(count, generator)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training images drawn with replacement, neither flipped nor dequantised."""
        device = torch.device("cpu") if generator is None else generator.device
        placed = self._on(device)
        return _scaled(placed.images(torch.randint(placed.rows.count, (count,), generator=generator, device=device)))

    def split(self, name: SplitName) -> Batch | None:
        """A whole split as it is, on the CPU; ``None`` if it is empty.

        Raises:
            ConfigError: if there is no split of this name.
        """
        return self._part(name, None)

    def part(self, name: SplitName, count: int) -> Batch | None:
        """At most ``count`` images of a split, evenly spaced in the order of their hashes; ``None`` if it is empty.

        Raises:
            ConfigError: if there is no split of this name.
        """
        return self._part(name, count)

    def finish(self, samples: Tensor) -> Tensor:
        """Clamp to [-1, 1], then round to the nearest of the 256 levels."""
        return finished(samples)

    def _part(self, name: SplitName, count: int | None) -> Batch | None:
        if name not in self.rows:
            raise ConfigError(f"no split is called {name!r}: expected 'train', 'validation' or 'test'")
        rows = self.rows[name]
        rows = rows if count is None else rows[evenly_spaced(len(rows), count)]
        if len(rows) == 0:
            return None
        return Batch(_scaled(self.images[rows]), None if self._labels is None else self._labels[rows])

    def _drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        samples = _scaled(images)
        if self.flip:
            mirrored = torch.rand(len(samples), generator=generator, device=samples.device) < 0.5
            samples = torch.where(mirrored[:, None, None, None], samples.flip(3), samples)
        return dequantised(samples, LEVEL, generator)

    def _on(self, device: torch.device) -> "Placed":
        if device not in self._devices:
            rows = self.rows["train"]
            labels = None if self._labels is None else self._labels[rows]
            self._devices[device] = Placed(self.images, rows, labels, device)
        return self._devices[device]


class Placed:
    """Training samples as one device draws them: copied to a GPU if they are small, else copied batch by batch.

    Args:
        images: all samples, on the CPU.
        rows: those of the training split.
        labels: the classes of these, or ``None``.
        device: device of the draws.
    """

    def __init__(self, images: Tensor, rows: Tensor, labels: Tensor | None, device: torch.device) -> None:
        self.rows = ClassRows(len(rows), labels, device)
        self._device, self._images, self._index = device, images, rows
        size = len(rows) * images[0].numel() * images.element_size()
        self._copied = images[rows].to(device) if device.type != "cpu" and size <= _ON_DEVICE else None

    def images(self, index: Tensor) -> Tensor:
        """Samples of the training split, as they are stored, on the device."""
        if self._copied is not None:
            return self._copied[index]
        return self._images[self._index[index.cpu()]].to(self._device)


def finished(samples: Tensor) -> Tensor:
    """Clamp to [-1, 1], then round to the nearest of the 256 levels ``2 k / 255 - 1``.

    Example:
        >>> finished(torch.tensor([-3.0, 0.0, 1.0]))
        tensor([-1.0000,  0.0039,  1.0000])
    """
    return ((samples.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _scaled(images: Tensor) -> Tensor:
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def _checked_labels(name: str, labels: Tensor | np.ndarray | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(labels)
    if found.shape != (count,) or not whole_numbers(found) or int(found.min()) < 0:
        raise ConfigError(
            f"{name} has labels of shape {tuple(found.shape)} and {found.dtype} for {count} images: expected one "
            "integer per image, from 0"
        )
    return found.long()
