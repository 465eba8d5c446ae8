"""Features of the real images, computed once, in a memory-mapped file: one row of numbers for each image.

The folder of a cache is whole or absent, one process makes it while others wait, and every byte is checked when it is
opened (:func:`~onestep_adapters.data.images.building.built_once`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.data.images.building import built_once
from onestep_adapters.files import require_path
from onestep_adapters.tracking import Track, untracked
from onestep_core.protocols import Features

_CHUNK = 256
"""Number of images in one evaluation of the encoder."""

_VALUES = "features.f32"


class FeatureRows:
    """The features in a folder that :func:`cached_features` wrote. Rows are read from the disk when they are wanted.

    Args:
        folder: the folder.
        count: number of images.
        shapes: location and channel of each feature, by name.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.encoders import pixels
        >>> with tempfile.TemporaryDirectory() as home:
        ...     rows = cached_features(Path(home) / "a", pixels, torch.zeros(5, 1, 2, 2))
        ...     rows(torch.tensor([0, 4]))["pixels"].shape
        torch.Size([2, 1, 4])
    """

    def __init__(self, folder: Path, count: int, shapes: Mapping[str, list[int]]) -> None:
        self._shapes = {name: (shape[0], shape[1]) for name, shape in shapes.items()}
        width = sum(a * b for a, b in self._shapes.values())
        self._array = np.memmap(folder / _VALUES, np.float32, "r", shape=(count, width))

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

    Raises:
        OneStepError: if the folder cannot be written.
    """
    place = require_path("folder", folder)

    def build(partial: Path) -> dict[str, Any]:
        shapes: dict[str, list[int]] = {}
        chunks = images.split(_CHUNK)
        with (partial / _VALUES).open("wb") as stream:
            for chunk in track(chunks, "features of the real images", len(chunks)):
                found: Mapping[str, Tensor] = features(chunk.to(device))
                shapes = {name: list(feature.shape[1:]) for name, feature in found.items()}
                rows = torch.cat([feature.flatten(1) for feature in found.values()], 1)
                stream.write(rows.float().cpu().numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        return {"count": len(images), "shapes": shapes}

    def opened(facts: dict[str, Any]) -> FeatureRows:
        return FeatureRows(place, facts["count"], facts["shapes"])

    title = "features of the real images"
    return built_once(place, opened, build, track=track, title=title, variable="ONESTEP_TEACHERS")
