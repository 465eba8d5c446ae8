"""Samples of a run as a file of numbers."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Track, untracked


class Drawn(NamedTuple):
    """Samples, the classes that they were conditioned on (or ``None``), and the file that holds both."""

    samples: Tensor
    labels: Tensor | None
    file: Path


def write_samples(run: Run, stem: Path, *, count: int, seed: int, track: Track = untracked) -> Drawn:
    """Draw samples and write ``stem.npz``: arrays ``samples`` and, with classes, ``labels``. ``track`` shows progress.

    Raises:
        ConfigError: if ``count`` is not positive.
    """
    # Noise from the CPU: a seed gives the same samples on every device, up to rounding.
    samples, labels = run.samples(count, generator=torch.Generator().manual_seed(seed), track=track)
    arrays: dict[str, Any] = {"samples": samples.numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    make_folder(stem.parent)
    file, content = stem.with_name(stem.name + ".npz"), io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(file, content.getvalue())
    return Drawn(samples, labels, file)
