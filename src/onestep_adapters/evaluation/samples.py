"""Samples of a run as a file of numbers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from onestep_adapters.devices import generator_on
from onestep_adapters.runs import Run


class Drawn(NamedTuple):
    """Samples, the classes that they were conditioned on (or ``None``), and the file that holds both."""

    samples: Tensor
    labels: Tensor | None
    file: Path


def write_samples(run: Run, stem: Path, *, count: int, seed: int) -> Drawn:
    """Draw samples and write ``stem.npz``: arrays ``samples`` and, with classes, ``labels``.

    Raises:
        ConfigError: if ``count`` is not positive.
    """
    samples, labels = run.samples(count, generator=generator_on(run.state.generator.device, seed))
    arrays: dict[str, Any] = {"samples": samples.cpu().numpy()}
    if labels is not None:
        arrays["labels"] = labels.cpu().numpy()
    stem.parent.mkdir(parents=True, exist_ok=True)
    file = stem.with_name(stem.name + ".npz")
    np.savez_compressed(file, **arrays)
    return Drawn(samples, labels, file)
