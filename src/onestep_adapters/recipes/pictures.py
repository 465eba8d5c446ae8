"""Pictures of a run's samples. Needs matplotlib, so nothing but the commands that draw imports this module."""

from pathlib import Path

import torch

from onestep_adapters.metrics.plots import image_grid, toy_scatter
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.runs import Run
from onestep_adapters.recipes.samples import Drawn


def draw_samples(run: Run, drawn: Drawn, stem: Path) -> Path:
    """Write ``stem.png``: the samples beside real data.

    Raises:
        MissingExtraError: at the import of this module, without matplotlib.
    """
    generator = torch.Generator().manual_seed(0)
    if run.data == DIGITS:
        real = run.problem.batch(200, generator)
        figure = image_grid(
            run.problem.finish(real.data),
            {run.method: drawn.samples},
            real_labels=real.labels,
            labels=None if drawn.labels is None else {run.method: drawn.labels},
            across=8,
        )
    else:
        figure = toy_scatter(run.problem.batch(3000, generator).data, {run.method: drawn.samples})
    picture = stem.with_name(stem.name + ".png")
    figure.savefig(picture)
    return picture
