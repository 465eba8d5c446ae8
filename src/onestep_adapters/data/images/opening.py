"""Images by the words of the command line: ``folder:PATH``, ``idx:PATH``, ``hub:NAME``, and Fashion-MNIST."""

import json
from pathlib import Path
from typing import Any

import attrs
import torch

from onestep_adapters.data.images.cache import Cached, cached_images, resolved
from onestep_adapters.data.images.dataset import ImageDataset
from onestep_adapters.data.images.fashion_mnist import NAME, check_contents, fashion_mnist_source
from onestep_adapters.data.images.idx import IdxSource
from onestep_adapters.data.images.options import ImageOptions, given
from onestep_adapters.data.images.source import Source, digest_of
from onestep_adapters.data.images.splits import split_rows
from onestep_adapters.names import choose
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError


def _folder(place: str, options: ImageOptions) -> Source:
    # Pillow is an optional dependency.
    from onestep_adapters.data.images.folder import FolderSource

    return FolderSource(place, options)


def _hub(place: str, options: ImageOptions) -> Source:
    # The library datasets is an optional dependency.
    from onestep_adapters.data.images.hub import HubSource

    return HubSource(place, options)


SOURCES = {"folder": _folder, "idx": IdxSource, "hub": _hub}
"""A function that opens a source, by the word before the colon."""


def place_of(path: str) -> str | None:
    """The word and the path for a folder or file that exists, by what is in it; ``None`` if there is none.

    Example:
        >>> place_of("/nowhere") is None
        True
    """
    place = Path(path).expanduser()
    if not place.exists():
        return None
    names = [file.name for file in place.iterdir()] if place.is_dir() else [place.name]
    if any("-ubyte" in name for name in names):
        return f"idx:{path}"
    return f"hub:{path}" if {"dataset_dict.json", "state.json"} & set(names) else f"folder:{path}"


def is_place(name: str) -> bool:
    """Whether a name is a word for a source, a colon and a place.

    Example:
        >>> is_place("folder:photos"), is_place("digits")
        (True, False)
    """
    return ":" in name


def open_images(name: str, options: ImageOptions, *, track: Track = untracked) -> ImageDataset:
    """Images by ``folder:PATH``, ``idx:PATH`` or ``hub:NAME``.

    The data set is called ``STEM-SIZExSIZExCHANNELS-HASH``, with a hash of contents, classes and options. A copy of the
    images in another place has the same name.

    Raises:
        ConfigError: for another word, a place without images, images that cannot be read, or options that do not fit.
        MissingExtraError: if the library that the source needs is not installed.
    """
    word, _, place = name.partition(":")
    make = SOURCES[choose(word, SOURCES, "source of images")]
    if not place:
        raise ConfigError(f"data {name!r} has no place: expected {word}:{'NAME' if word == 'hub' else 'PATH'}")
    source = make(place, options)
    chosen, cached = _read(source, options, track)
    kept = json.dumps({**chosen.pixels, "flip": chosen.flip}, sort_keys=True)
    digest = digest_of(cached.fingerprint.encode(), kept.encode())[:8]
    return _dataset(f"{source.stem}-{_shape(chosen)}-{digest}", source, chosen, cached, {"name": source.origin})


def open_fashion_mnist(options: ImageOptions, *, track: Track = untracked) -> ImageDataset:
    """Fashion-MNIST, with 28 x 28 grey pixels by default; with other options its name has them.

    Raises:
        ConfigError: if the images are not on this machine (the message has the commands), or are others.
    """
    source = fashion_mnist_source(options)
    chosen, cached = _read(source, options, track)
    check_contents(cached.contents, source.origin)
    usual = attrs.evolve(chosen, skip_corrupt=False) == ImageOptions(size=28, channels=1)
    name = NAME
    if not usual:
        kept = json.dumps({**chosen.pixels, "flip": chosen.flip}, sort_keys=True)
        name = f"{NAME}-{_shape(chosen)}-{digest_of(kept.encode())[:8]}"
    return _dataset(name, source, chosen, cached, {"name": NAME})


def _read(source: Source, options: ImageOptions, track: Track) -> tuple[ImageOptions, Cached]:
    chosen = resolved(source, options, track=track)
    return chosen, cached_images(source, chosen, track=track)


def _shape(options: ImageOptions) -> str:
    return f"{options.size}x{options.size}x{options.channels}"


def _dataset(name: str, source: Source, options: ImageOptions, cached: Cached, place: dict[str, Any]) -> ImageDataset:
    rows, order = split_rows(cached.hashes, cached.parts), torch.from_numpy(cached.rows)
    labels = None
    if cached.labels is not None:
        # The arrays of the data set are in the order of the pixels, those of the cache in the order of the hashes.
        labels = cached.labels.copy()
        labels[cached.rows] = cached.labels
    return ImageDataset(
        name,
        cached.pixels,
        labels,
        class_names=cached.class_names,
        rows={split: order[found] for split, found in rows.items()},
        flip=options.flip,
        title=f"{source.title}, {options.size} x {options.size}, {'grey' if options.channels == 1 else 'colour'}",
        source={**place, **given(options), **_absolute(options)},
        facts={
            "origin": source.origin,
            "cache": str(cached.folder),
            "skipped": cached.skipped,
            "sizes": cached.sizes,
            "kinds": cached.kinds,
        },
    )


def _absolute(options: ImageOptions) -> dict[str, str]:
    """The file of labels, so that a run finds it from another folder."""
    return {"labels": str(Path(options.labels).expanduser().resolve())} if options.labels else {}
