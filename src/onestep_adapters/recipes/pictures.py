"""Samples of a run as files: a picture and numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.metrics.plots import image_grid, toy_scatter
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.runs import Run


def write_samples(run: Run, stem: Path, *, count: int, seed: int) -> list[Path]:
    """Draw samples and write ``stem.npz`` (arrays ``samples`` and, with classes, ``labels``) and ``stem.png``.

    Raises:
        ConfigError: if ``count`` is not positive.
        MissingExtraError: at the import of this module, without matplotlib.
    """
    samples, labels = run.samples(count, generator=torch.Generator().manual_seed(seed))
    arrays: dict[str, Any] = {"samples": samples.numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    stem.parent.mkdir(parents=True, exist_ok=True)
    numbers, picture = stem.with_suffix(".npz"), stem.with_suffix(".png")
    np.savez_compressed(numbers, **arrays)
    _picture(run, samples, labels).savefig(picture)
    return [picture, numbers]


def _picture(run: Run, samples: Tensor, labels: Tensor | None) -> Any:
    generator = torch.Generator().manual_seed(0)
    if run.data == DIGITS:
        real = run.problem.batch(200, generator)
        return image_grid(
            run.problem.finish(real.data),
            {run.method: samples},
            real_labels=real.labels,
            labels=None if labels is None else {run.method: labels},
            across=8,
        )
    return toy_scatter(run.problem.batch(3000, generator).data, {run.method: samples})
