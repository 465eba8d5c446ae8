"""Features of the real images, computed once, in a memory-mapped file: one row of numbers for each image.

The folder of a cache is whole or absent: it is written beside its place under a random name and moved. Two processes
that make the same cache write two folders; the first one stays, the second one is removed. If a process is killed, a
folder ``NAME.RANDOM.partial`` may stay, which nothing uses.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.tracking import Track, untracked
from onestep_core.protocols import Features

_CHUNK = 256
"""Number of images in one evaluation of the encoder."""

_ARRAY, _LAYOUT = "features.npy", "layout.json"


class FeatureRows:
    """The features in a folder that :func:`cached_features` wrote. Rows are read from the disk when they are wanted.

    Args:
        folder: the folder.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.encoders import pixels
        >>> with tempfile.TemporaryDirectory() as home:
        ...     rows = cached_features(Path(home) / "a", pixels, torch.zeros(5, 1, 2, 2))
        ...     rows(torch.tensor([0, 4]))["pixels"].shape
        torch.Size([2, 1, 4])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        layout: dict[str, list[int]] = json.loads((Path(folder) / _LAYOUT).read_text())
        self._shapes = {name: (shape[0], shape[1]) for name, shape in layout.items()}
        self._array = np.load(Path(folder) / _ARRAY, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._array)

    def __call__(self, index: Tensor, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The features of the images ``index``, by name, each ``[len(index), location, channel]``."""
        rows = torch.from_numpy(np.asarray(self._array[index.cpu().numpy()])).to(device)
        parts = rows.split([a * b for a, b in self._shapes.values()], dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


@torch.no_grad()
def gigabytes(features: Features, images: Tensor, count: int) -> float:
    """The size of the features of ``count`` images like the first of ``images``, in gigabytes of 10^9 bytes.

    Example:
        >>> from onestep_adapters.encoders import pixels
        >>> gigabytes(pixels, torch.zeros(1, 1, 10, 10), 1_000_000)
        0.4
    """
    return 4e-9 * count * sum(feature[0].numel() for feature in features(images[:1]).values())


@torch.no_grad()
def cached_features(
    folder: str | os.PathLike[str],
    features: Features,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
    track: Track = untracked,
) -> FeatureRows:
    """The features of ``images``: those in ``folder``, or computed now and kept there in float32.

    Args:
        folder: its name has to identify features and images.
        features: from images to features.
        images: ``[count, *shape]``, at least one.
        device: of the encoder.
        track: shows the progress.
    """
    place = Path(folder)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{secrets.token_hex(8)}.partial")
        try:
            partial.mkdir()
            _write(partial, features, images, device, track)
            _move(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return FeatureRows(place)


def _write(folder: Path, features: Features, images: Tensor, device: torch.device | str, track: Track) -> None:
    array, start = None, 0
    chunks = images.split(_CHUNK)
    for chunk in track(chunks, "features of the real images", len(chunks)):
        found: Mapping[str, Tensor] = features(chunk.to(device))
        if array is None:
            shapes = {name: list(feature.shape[1:]) for name, feature in found.items()}
            (folder / _LAYOUT).write_text(json.dumps(shapes))
            width = sum(a * b for a, b in shapes.values())
            array = np.lib.format.open_memmap(folder / _ARRAY, "w+", np.float32, (len(images), width))
        rows = torch.cat([feature.flatten(1) for feature in found.values()], 1)
        array[start : start + len(chunk)] = rows.float().cpu().numpy()
        start += len(chunk)
    if array is not None:
        array.flush()


def _move(partial: Path, place: Path) -> None:
    try:
        os.replace(partial, place)
    except OSError:
        # Another process was faster: its folder is whole.
        if not place.is_dir():
            raise
