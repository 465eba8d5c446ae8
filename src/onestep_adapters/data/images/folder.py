"""A folder of image files. Classes come from sub-folders, from a CSV file, or there are none.

All files with the extension of an image are read, in nested folders too; hidden files and folders are ignored. If every
image is in a sub-folder, and there are at least two, the sub-folders are the classes. If the sub-folders are called
``train``, ``test`` and perhaps ``validation``, they are the splits instead, and the folders below are the classes.
"""

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from onestep_adapters.data.dataset import SplitName
from onestep_adapters.data.images.decoding import colour_of, decoded, header
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import (
    CorruptImageError,
    Decoded,
    Source,
    digest_of,
    natural_of,
    stem_of,
)
from onestep_adapters.files import require_path
from onestep_adapters.tracking import Track
from onestep_core.errors import ConfigError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""Files that are read as images, in upper or lower case."""

_SPLITS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_SHOWN = 5


class _File(NamedTuple):
    """A file: path relative to the folder with ``/``, bytes, time of the last change in nanoseconds."""

    path: str
    size: int
    time: int


class FolderSource(Source):
    """Image files of a folder.

    Args:
        folder: the folder.
        options: classes and labels are used here, the others when an image is read.

    Raises:
        ConfigError: if it is no folder or has no image; if the CSV file does not fit.
    """

    def __init__(self, folder: str | os.PathLike[str], options: ImageOptions) -> None:
        self.folder = require_path("folder", folder).expanduser().resolve()
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else "does not exist"
            raise ConfigError(f"{self.folder} {found}: expected a folder of images, folder:PATH")
        colour_of(options.background)
        self._files, others = _listed(self.folder)
        if not self._files:
            raise ConfigError(
                f"{self.folder} has no image: expected files {', '.join(EXTENSIONS)}; it has "
                f"{others} other file{'s' * (others != 1)}"
            )
        self.origin, self.stem = f"folder:{self.folder}", stem_of(self.folder.name)
        self.title = f"images of the folder {self.folder.name}"
        paths = [PurePosixPath(file.path) for file in self._files]
        self._parts = _parts(paths)
        kinds, table = None, b""
        if options.labels:
            table = _read_table(Path(options.labels).expanduser())
            kinds = (
                _classes_of_table(table, options.labels, [file.path for file in self._files])
                if options.classes
                else None
            )
        elif options.classes:
            kinds = _classes_of_folders(paths, depth=0 if self._parts[0] is None else 1)
        self.class_names = None if kinds is None else tuple(sorted(set(kinds)))
        self._labels = None
        if kinds is not None and self.class_names is not None:
            number = {kind: k for k, kind in enumerate(self.class_names)}
            self._labels = np.array([number[kind] for kind in kinds], dtype=np.int64)
        listing = "\n".join(f"{file.path}\t{file.size}\t{file.time}" for file in self._files)
        self.fingerprint = digest_of(b"folder", listing.encode("utf-8", "surrogateescape"), table)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def name(self, index: int) -> str:
        """Path of a file, relative to the folder."""
        return self._files[index].path

    def labels(self) -> np.ndarray | None:
        """Classes of all files."""
        return self._labels

    def parts(self) -> list[SplitName | None]:
        """Splits of the files, if the folder has sub-folders of these names."""
        return self._parts

    def read(self, index: int, options: ImageOptions) -> Decoded:
        """Decode one file.

        Raises:
            CorruptImageError: if it is damaged, or no image.
            ConfigError: if it cannot be opened: another time it can, so it is not left out as a damaged one.
        """
        with self._open(self.name(index)) as stream:
            return decoded(stream.read(), options)

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        try:
            with (self.folder / path).open("rb") as stream:
                yield stream
        except OSError as error:
            raise ConfigError(
                f"{self.folder / path} cannot be opened ({error.strerror or error}): make it readable, or move it away"
            ) from error

    def natural(self, options: ImageOptions, track: Track) -> tuple[int, int]:
        """Size and channels from the headers of all files, as far as they are needed."""
        sizes, colour = set[tuple[int, int]](), False
        for file in track(self._files, "sizes of images", len(self._files)):
            if (colour or options.channels) and (len(sizes) > 1 or options.size):
                continue
            try:
                with self._open(file.path) as stream:
                    size, coloured = header(stream)
            except CorruptImageError:
                continue
            sizes.add(size)
            colour = colour or coloured
        return natural_of(sizes, colour)


def _listed(folder: Path) -> tuple[list[_File], int]:
    """All image files, sorted by path, and the number of other files that are not hidden."""
    files, others, waiting = list[_File](), 0, [(str(folder), "")]
    while waiting:
        place, prefix = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.name.lower().endswith(EXTENSIONS):
                    files.append(_stated(entry, f"{prefix}{entry.name}"))
                else:
                    others += 1
    return sorted(files), others


def _stated(entry: "os.DirEntry[str]", path: str) -> _File:
    try:
        found = entry.stat()
    except OSError:
        # A link to nothing: it is reported when it is read.
        return _File(path, 0, 0)
    return _File(path, found.st_size, found.st_mtime_ns)


def _parts(paths: list[PurePosixPath]) -> list[SplitName | None]:
    tops = {path.parts[0].lower() if len(path.parts) > 1 else "" for path in paths}
    if {_SPLITS.get(top) for top in tops} >= {"train", "test"} and tops <= _SPLITS.keys():
        return [_SPLITS[path.parts[0].lower()] for path in paths]
    return [None] * len(paths)


def _classes_of_folders(paths: list[PurePosixPath], *, depth: int) -> list[str] | None:
    """The name of the folder at a depth, if all images are in one and there are at least two."""
    if any(len(path.parts) < depth + 2 for path in paths):
        return None
    kinds = [path.parts[depth] for path in paths]
    return kinds if len(set(kinds)) > 1 else None


def _read_table(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"labels: {file} cannot be read ({error.strerror}): expected a CSV file") from error


def _classes_of_table(table: bytes, name: str, paths: list[str]) -> list[str]:
    """The class of every file by a CSV table.

    Raises:
        ConfigError: for a table without the columns, with two classes of a file, or that does not fit the folder.
    """
    try:
        rows = csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline=""))
        if not {"file", "class"} <= set(rows.fieldnames or ()):
            raise ConfigError(
                f"{name} has the columns {', '.join(rows.fieldnames or ()) or 'none'}: expected file and class in its "
                "first line"
            )
        kinds = dict[str, str]()
        for row in rows:
            path, kind = (row["file"] or "").replace("\\", "/").removeprefix("./"), (row["class"] or "").strip()
            if not kind or kinds.setdefault(path, kind) != kind:
                raise ConfigError(f"{name} gives {path!r} {'two classes' if kind else 'no class'}: expected one")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{name} is no CSV file in UTF-8 ({error})") from error
    known = set(paths)
    for told, missing in (
        ("are in the table and not in the folder", [path for path in kinds if path not in known]),
        ("are in the folder and not in the table", [path for path in paths if path not in kinds]),
    ):
        if missing:
            shown = ", ".join(islice(missing, _SHOWN)) + (", ..." if len(missing) > _SHOWN else "")
            raise ConfigError(f"{len(missing)} files of {name} {told}: {shown}; give every image one line, file,class")
    return [kinds[path] for path in paths]
