"""Where images come from: the members that a folder, IDX files and a Hugging Face data set have in common.

A source is opened without reading its images. The cache reads each of them once.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from onestep_adapters.data.dataset import SplitName
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.tracking import Track
from onestep_core.errors import ConfigError, OneStepError

NATURAL, LARGEST = 32, 64
"""Size of images that differ in size, and the largest size that is kept by default, in pixels."""

_SHOWN = 5


class CorruptImageError(OneStepError):
    """One image cannot be read; the message says why."""


class CorruptFilesError(ConfigError):
    """Some images of a source cannot be read; the message names the first ones, and says how many there are."""


class Decoded(NamedTuple):
    """One image as uint8 ``[channels, size, size]``, the SHA-256 hash of its content, and what the file was.

    ``size`` is the original (width, height), ``kind`` the format of the file.
    """

    pixels: np.ndarray
    digest: bytes
    size: tuple[int, int]
    kind: str


class Source(ABC):
    """Images that can be read one by one.

    Attributes:
        origin: what the user typed, with an absolute path: ``folder:/PATH/photos``.
        stem: first part of the name of the data set.
        fingerprint: hash of what can be seen without reading images, such as names, sizes and times of files.
        class_names: names of the classes, or ``None``.
        title: short description.
    """

    origin: str
    stem: str
    fingerprint: str
    class_names: tuple[str, ...] | None
    title: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, corrupt ones included."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image, for messages."""

    @abstractmethod
    def labels(self) -> np.ndarray | None:
        """Classes of all images, ``[n]``, int64; ``None`` without classes."""

    @abstractmethod
    def parts(self) -> list[SplitName | None]:
        """The split that the source itself puts each image in; ``None`` where it says nothing."""

    @abstractmethod
    def read(self, index: int, options: ImageOptions) -> Decoded:
        """Decode one image; size and channels of the options are numbers.

        Raises:
            CorruptImageError: if it cannot be read.
        """

    @abstractmethod
    def natural(self, options: ImageOptions, track: Track) -> tuple[int, int]:
        """Size and channels of the images for options that leave them open."""


def natural_of(sizes: set[tuple[int, int]], colour: bool) -> tuple[int, int]:
    """Size and channels by default, from all (width, height) and whether some image has colour.

    Example:
        >>> natural_of({(28, 28)}, False), natural_of({(28, 28), (30, 28)}, True), natural_of({(512, 512)}, True)
        ((28, 1), (32, 3), (32, 3))
    """
    first = next(iter(sizes), (0, 1))
    same = len(sizes) == 1 and first[0] == first[1] <= LARGEST
    return (first[0] if same else NATURAL), (3 if colour else 1)


def corrupt(origin: str, found: list[tuple[str, str]], total: int) -> CorruptFilesError:
    """The error for images that cannot be read: pairs of name and reason.

    Example:
        >>> print(corrupt("folder:/photos", [("a.png", "cannot identify image file")], 10))
        1 of 10 images of folder:/photos cannot be read: a.png (cannot identify image file); repair or remove them, or \
leave them out with --skip-corrupt (skip_corrupt=True)
    """
    shown = "; ".join(f"{name} ({reason})" for name, reason in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return CorruptFilesError(
        f"{len(found)} of {total} images of {origin} cannot be read: {shown}{more}; repair or remove them, or leave "
        "them out with --skip-corrupt (skip_corrupt=True)"
    )


def stem_of(text: str) -> str:
    """``text`` as the first part of a data set's name: letters, digits, ``_`` and ``-``.

    Example:
        >>> stem_of("My photos (2024)"), stem_of("~")
        ('My-photos-2024', 'images')
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "images"


def digest_of(*parts: bytes) -> str:
    """A hash of bytes, 32 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:32]
