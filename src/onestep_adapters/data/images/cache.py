"""Decoded images on disk: uint8 ``[n, channels, size, size]``, memory-mapped, built once for each source and options.

A cache is a folder that is whole or absent: it is built beside its place and moved there at the end. One process
builds it while the others wait. Opening it checks every byte; a cache that fails is built again. Caches are kept in
``ONESTEP_CACHE``, or in the user's cache folder (``~/.cache/onestep`` on Linux), and may be deleted at any time.

The images are in the order of the hashes of their contents. The order, the splits and the fingerprint therefore do not
depend on the names of files.
"""

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from onestep_adapters.data.images.building import built_once
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import CorruptImageError, Decoded, Source, corrupt, digest_of
from onestep_adapters.files import write_whole
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import OneStepError

FORMAT = 2
"""Version of the layout; part of the key."""

_CODES = {None: -1, "train": 0, "validation": 1, "test": 2}
_PIXELS, _HASHES, _LABELS, _PARTS = "images.u8", "hashes.npy", "labels.npy", "parts.npy"
_CHUNK, _LISTED = 256, 20


@attrs.frozen(eq=False)
class Cached:
    """The images of a source, decoded, in the order of the hashes of their contents.

    Attributes:
        folder: of the cache.
        pixels: uint8 ``[n, channels, size, size]``, in the order of the source; a memory map.
        rows: for each image, its row in ``pixels``, ``[n]``.
        hashes: SHA-256 of the contents, uint8 ``[n, 32]``, sorted.
        labels: classes ``[n]``, or ``None``.
        class_names: names of the classes, or ``None``.
        parts: splits that the source asks for: 0 train, 1 validation, 2 test, -1 none; ``[n]``.
        skipped: images that cannot be read: pairs of name and reason.
        sizes: number of images of each original size, ``"WIDTH x HEIGHT"``; the most common ones first, at most 20, and
            the number of images of ``"other sizes"``.
        kinds: number of images of each format, likewise.
    """

    folder: Path
    pixels: np.ndarray
    rows: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    parts: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    sizes: Mapping[str, int]
    kinds: Mapping[str, int]

    @property
    def contents(self) -> str:
        """Hash of the contents and their splits; the same for another order, other names of files, another size."""
        return digest_of(self.hashes.tobytes(), np.ascontiguousarray(self.parts).tobytes())

    @property
    def fingerprint(self) -> str:
        """Hash of the contents, their splits and their classes."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return digest_of(self.contents.encode(), repr(self.class_names).encode(), labels)


def cache_home() -> Path:
    """The folder of all caches: ``ONESTEP_CACHE``, or a folder in the user's cache folder.

    Example:
        >>> isinstance(cache_home(), Path)
        True
    """
    if chosen := os.environ.get("ONESTEP_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "onestep"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onestep"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onestep"


def resolved(source: Source, options: ImageOptions, *, track: Track = untracked) -> ImageOptions:
    """The options with a size and channels. What the images themselves decide is kept beside the caches."""
    if options.size is not None and options.channels is not None:
        return options
    file = cache_folder("images") / f"{source.fingerprint}.natural.json"
    try:
        size, channels, check = json.loads(file.read_bytes())
        whole = check == digest_of(repr((size, channels)).encode())
    except (OSError, ValueError, TypeError):
        size, channels, whole = None, None, False
    if not whole:
        if file.exists():
            warnings.warn(f"{file} is damaged: it is made again", stacklevel=2)
        # All sizes and colours, whichever of the two is asked for.
        size, channels = source.natural(attrs.evolve(options, size=None, channels=None), track)
        write_whole(file, json.dumps([size, channels, digest_of(repr((size, channels)).encode())]))
    return attrs.evolve(options, size=options.size or size, channels=options.channels or channels)


def cached_images(source: Source, options: ImageOptions, *, track: Track = untracked) -> Cached:
    """The decoded images of a source: from the cache, or decoded now.

    Args:
        source: the images.
        options: with a size and channels.
        track: shows the progress.

    Raises:
        ConfigError: if images cannot be read and are not to be skipped, or if none can be read.
        OneStepError: if the cache cannot be written.
    """
    key = digest_of(f"{FORMAT} {source.fingerprint} {json.dumps(options.pixels, sort_keys=True)}".encode())
    folder = cache_folder("images") / key
    found = built_once(
        folder,
        lambda facts: _opened(folder, facts),
        lambda place: _write(source, options, place, track),
        track=track,
        title="decoding images",
    )
    if found.skipped and not options.skip_corrupt:
        raise corrupt(source.origin, list(found.skipped), len(found.pixels) + len(found.skipped))
    return found


def cache_folder(kind: str) -> Path:
    """The folder of one kind of caches, created if it is not there.

    Raises:
        OneStepError: if it cannot be created.
    """
    folder = cache_home() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OneStepError(
            f"{folder} cannot be created ({error.strerror}): set ONESTEP_CACHE to a folder for caches"
        ) from error
    return folder


def _write(source: Source, options: ImageOptions, folder: Path, track: Track) -> dict[str, Any]:
    hashes, kept, skipped = list[bytes](), list[int](), list[tuple[str, str]]()
    sizes, kinds = Counter[str](), Counter[str]()
    with (folder / _PIXELS).open("wb") as stream:
        for index, found in track(_decoded(source, options), "decoding images", len(source)):
            if isinstance(found, Decoded):
                stream.write(found.pixels.tobytes())
                hashes.append(found.digest)
                kept.append(index)
                sizes[f"{found.size[0]} x {found.size[1]}"] += 1
                kinds[found.kind] += 1
            else:
                skipped.append((source.name(index), str(found)))
        stream.flush()
        os.fsync(stream.fileno())
    if not kept:
        raise corrupt(source.origin, skipped, len(source))
    labels, parts = source.labels(), np.array([_CODES[part] for part in source.parts()], dtype=np.int64)
    order = sorted(range(len(kept)), key=lambda i: (hashes[i], kept[i]))
    index = np.array(kept, dtype=np.int64)[order]
    arrays = {_HASHES: np.frombuffer(b"".join(hashes[i] for i in order), dtype=np.uint8).reshape(-1, 32)}
    arrays[_PARTS] = np.stack([np.array(order, dtype=np.int64), parts[index]])
    if labels is not None:
        arrays[_LABELS] = labels[index]
    for name, array in arrays.items():
        np.save(folder / name, array)
    return {
        "shape": [len(kept), options.channels, options.size, options.size],
        "class_names": source.class_names,
        "skipped": skipped,
        "sizes": _most_common(sizes),
        "kinds": dict(kinds.most_common(_LISTED)),
    }


def _decoded(source: Source, options: ImageOptions) -> Iterator[tuple[int, Decoded | CorruptImageError]]:
    """Every image, or why it cannot be read, in order. Pillow decodes in several threads."""

    def read(index: int) -> tuple[int, Decoded | CorruptImageError]:
        try:
            return index, source.read(index, options)
        except CorruptImageError as error:
            return index, error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for chunk in _chunks(len(source)):
            yield from threads.map(read, chunk)


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _CHUNK):
        yield range(start, min(start + _CHUNK, count))


def _opened(folder: Path, facts: dict[str, Any]) -> Cached:
    rows, parts = np.load(folder / _PARTS)
    return Cached(
        folder,
        # Copy on write: torch warns of arrays that cannot be written to.
        np.memmap(folder / _PIXELS, dtype=np.uint8, mode="c", shape=tuple(facts["shape"])),
        rows,
        np.load(folder / _HASHES),
        np.load(folder / _LABELS) if (folder / _LABELS).exists() else None,
        None if facts["class_names"] is None else tuple(facts["class_names"]),
        parts,
        tuple((name, reason) for name, reason in facts["skipped"]),
        facts["sizes"],
        facts["kinds"],
    )


def _most_common(sizes: Counter[str]) -> dict[str, int]:
    found = dict(sizes.most_common(_LISTED))
    rest = sizes.total() - sum(found.values())
    return {**found, "other sizes": rest} if rest else found
