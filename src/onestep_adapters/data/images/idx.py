"""IDX files, plain or compressed by gzip: the format of MNIST, Fashion-MNIST, KMNIST and EMNIST.

    bytes 0, 1: zero    byte 2: type (8: unsigned bytes)    byte 3: axes    then each size, 32-bit big-endian

A folder is searched for ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte`` with their labels, with or without
``.gz``; a prefix such as ``emnist-letters-`` and a dot for the hyphen are allowed.

Source of the format: http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from onestep_adapters.data.dataset import SplitName
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import Decoded, Source, digest_of, natural_of, stem_of
from onestep_adapters.files import require_path
from onestep_adapters.tracking import Track
from onestep_core.errors import ConfigError

_IMAGES = re.compile(r"(?P<prefix>.*?)(?P<part>train|t10k|test)-images[.-]idx(?P<axes>\d)-ubyte(?P<gz>\.gz)?")
_UNSIGNED_BYTES = 8


def read_idx(file: str | os.PathLike[str]) -> np.ndarray:
    """The array of unsigned bytes in an IDX file.

    Raises:
        ConfigError: if the file cannot be read, is no IDX file, is cut off, or holds other numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "x")
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big") + bytes([7, 8, 9]))
        ...     read_idx(file)
        array([7, 8, 9], dtype=uint8)
    """
    try:
        content = require_path("file", file).read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}): expected an IDX file, plain or compressed by gzip"
        ) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES or not content[3]:
        raise ConfigError(
            f"{file} starts with the bytes {content[:4].hex(' ')}: expected 00 00 08 and the number of axes, an IDX "
            "file of unsigned bytes"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ConfigError(f"{file} is cut off in its header: download it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ConfigError(
            f"{file} has {len(content) - start} bytes of data: its header says {' x '.join(map(str, shape))}; download "
            "it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


class IdxSource(Source):
    """Images of IDX files.

    Args:
        place: a folder with the files of MNIST's names, or one file of images. Labels are found beside it by their
            name.
        options: see :class:`~onestep_adapters.data.images.options.ImageOptions`.
        stem: first part of the name; that of the folder or file by default.
        class_names: names of the classes; by default their numbers.

    Raises:
        ConfigError: if there is no such file, or several sets; when images are read, if a file is damaged.
    """

    def __init__(
        self, place: str | os.PathLike[str], options: ImageOptions, *, stem: str = "", class_names: tuple[str, ...] = ()
    ) -> None:
        path = require_path("place", place).expanduser().resolve()
        if options.labels:
            raise ConfigError(
                f"labels = {options.labels!r} with IDX files: their labels are in an IDX file beside them"
            )
        self._files = _files(path)
        self._classes = options.classes and all(_labels_beside(file) is not None for file in self._files.values())
        self.origin, self.stem = f"idx:{path}", stem or stem_of(path.name.split(".")[0].removesuffix("-idx3-ubyte"))
        self.title = f"IDX images of {path.name}"
        used = [(part, file, _labels_beside(file) if self._classes else None) for part, file in self._files.items()]
        facts = [
            f"{part} {found.name} {found.stat().st_size} {found.stat().st_mtime_ns}"
            for part, *files in used
            for found in files
            if found is not None
        ]
        self.fingerprint = digest_of(b"idx", "\n".join(facts).encode())
        self._class_names = class_names
        self._loaded: tuple[np.ndarray, np.ndarray | None, list[SplitName | None]] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """The names given, or the numbers of the classes as text."""
        if self._classes and self._class_names:
            return self._class_names
        labels = self.labels()
        return None if labels is None else tuple(map(str, range(int(labels.max()) + 1)))

    def __len__(self) -> int:
        """Number of images in all files."""
        return len(self._all()[0])

    def name(self, index: int) -> str:
        """The place of an image."""
        return f"image {index}"

    def labels(self) -> np.ndarray | None:
        """Labels of all images."""
        return self._all()[1]

    def parts(self) -> list[SplitName | None]:
        """``test`` for the images of the test file, if there is one."""
        return self._all()[2]

    def read(self, index: int, options: ImageOptions) -> Decoded:
        """One image, resized if the options ask for another size."""
        pixels = self._all()[0][index]
        digest, size = hashlib.sha256(pixels.tobytes()).digest(), (pixels.shape[1], pixels.shape[0])
        if pixels.shape == (options.size, options.size) and options.channels == 1:
            return Decoded(pixels[None], digest, size, "IDX")
        # Pillow is an optional dependency: images of their own size do not need it.
        from onestep_adapters.data.images.decoding import from_array

        return Decoded(from_array(pixels, options), digest, size, "IDX")

    def natural(self, options: ImageOptions, track: Track) -> tuple[int, int]:
        """Size and channels of the arrays."""
        images = self._all()[0]
        return natural_of({(images.shape[2], images.shape[1])}, images.ndim == 4)

    def _all(self) -> tuple[np.ndarray, np.ndarray | None, list[SplitName | None]]:
        if self._loaded is None:
            images = {part: _images(file) for part, file in self._files.items()}
            if len({found.shape[1:] for found in images.values()}) > 1:
                raise ConfigError(f"the files of {self.origin} have images of different sizes: give one file of images")
            labels = None
            if self._classes:
                found = {part: read_idx(_labels_beside(file) or file) for part, file in self._files.items()}
                for part, values in found.items():
                    if values.shape != images[part].shape[:1]:
                        raise ConfigError(
                            f"{_labels_beside(self._files[part])} has labels of shape {values.shape} for "
                            f"{len(images[part])} images: expected one label for each image"
                        )
                labels = np.concatenate(list(found.values())).astype(np.int64)
            parts: list[SplitName | None] = [
                "test" if part == "test" else "train" if len(images) > 1 else None
                for part, found in images.items()
                for _ in range(len(found))
            ]
            self._loaded = np.concatenate(list(images.values())), labels, parts
        return self._loaded


def _images(file: Path) -> np.ndarray:
    found = read_idx(file)
    if found.ndim == 4 and found.shape[3] == 1:
        found = found[..., 0]
    if len(found) == 0 or not (found.ndim == 3 or (found.ndim == 4 and found.shape[3] == 3)):
        raise ConfigError(
            f"{file} has an array of {found.shape}: expected images [n, height, width], or with 3 channels"
        )
    return found


def _files(path: Path) -> dict[str, Path]:
    """The files of images, ``train`` before ``test``; one file alone is ``train``."""
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist: expected a folder with IDX files, or one of them")
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        if match := _IMAGES.fullmatch(file.name):
            part = "train" if match["part"] == "train" else "test"
            # Of a file and its compressed form, the first is used.
            found.setdefault(match["prefix"], {}).setdefault(part, file)
    if len(found) != 1:
        names = ", ".join(sorted(file.name for parts in found.values() for file in parts.values()))
        told = f"has several sets ({names}): give one file, idx:FILE" if found else "has no file of images"
        raise ConfigError(f"{path} {told}; expected train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    parts = next(iter(found.values()))
    return (
        {part: parts[part] for part in ("train", "test") if part in parts}
        if "train" in parts
        else {"train": parts["test"]}
    )


def _labels_beside(file: Path) -> Path | None:
    """The file of labels that belongs to a file of images, if it is there."""
    match = _IMAGES.fullmatch(file.name)
    if match is None:
        return None
    stem = f"{match['prefix']}{match['part']}-labels"
    names = [f"{stem}{mark}idx1-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    return next((file.with_name(name) for name in names if file.with_name(name).is_file()), None)
