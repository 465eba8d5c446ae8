"""Pictures of encoders: nearest neighbours of held-out images; for MAE masked, reconstructed and original images.

Needs matplotlib, an extra.
"""

from pathlib import Path

import torch
from torch import Tensor

from onestep_adapters.encoders import locations
from onestep_adapters.evaluation.figures import Figure, image_grid, write_figure
from onestep_adapters.methods.pretraining.base import Pretraining, encoded
from onestep_adapters.methods.pretraining.mae import MAE
from onestep_adapters.metrics import nearest_neighbours
from onestep_adapters.runs import Run
from onestep_core.errors import ConfigError

_ROWS, _NEIGHBOURS, _REFERENCES = 10, 5, 5000


def neighbours_figure(run: Run, *, count: int = _ROWS) -> Figure:
    """Held-out images, each with its nearest training images: in pixels, and in the features of all locations.

    Raises:
        ConfigError: if the run trains no encoder, or its data have no splits.
    """
    if not isinstance(run.options, Pretraining):
        raise ConfigError(f"a run of {run.name} trains no encoder")
    train = run.data.split("train")
    if train is None:
        raise ConfigError(f"{run.data.name} has no splits")
    held_out = run.data.split("validation") or train
    places = torch.arange(min(_REFERENCES, len(train.data))) * len(train.data) // min(_REFERENCES, len(train.data))
    references, queries = train.data[places].to(run.device), held_out.data[:count].to(run.device)
    encoder = run.options.inner(run.state.ema)
    blocks = {
        "pixels": _block(queries, references, locations(queries.flatten(1)), locations(references.flatten(1))),
        run.name: _block(queries, references, encoded(encoder, queries), encoded(encoder, references)),
    }
    return image_grid(
        blocks["pixels"],
        {run.name: blocks[run.name]},
        across=1 + _NEIGHBOURS,
        rows=len(queries),
        real_name="pixels",
        captions=dict.fromkeys(blocks, "first column: held-out image; then its nearest training images"),
    )


def reconstructions_figure(run: Run, *, count: int = 40, seed: int = 0) -> Figure:
    """Held-out images: masked, reconstructed (visible patches kept), original.

    Raises:
        ConfigError: if the run is not one of MAE.
    """
    if not isinstance(run.options, MAE):
        raise ConfigError(f"a run of {run.name} reconstructs nothing: expected a run of mae")
    held_out = run.data.split("validation")
    if held_out is None:
        raise ConfigError(f"{run.data.name} has no validation split")
    images = held_out.data[:count].to(run.device)
    generator = torch.Generator(device=run.device).manual_seed(seed)
    masked, filled = run.options.reconstructed(run.state.ema, images, generator)
    return image_grid(
        masked.cpu(), {"reconstructed": filled.cpu(), "original": images.cpu()}, across=4, rows=10, real_name="masked"
    )


def draw_encoder(run: Run, folder: Path) -> list[Path]:
    """Write ``neighbours.png`` and, for MAE, ``reconstructions.png`` into ``folder``; returns their paths."""
    figures = {"neighbours.png": neighbours_figure(run)}
    if isinstance(run.options, MAE):
        figures["reconstructions.png"] = reconstructions_figure(run)
    return [write_figure(figure, folder / name) for name, figure in figures.items()]


def _block(queries: Tensor, references: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    nearest = nearest_neighbours(mine.flatten(1), theirs.flatten(1), min(_NEIGHBOURS, len(references)))
    rows = torch.cat([queries[:, None], references[nearest]], 1)
    return rows.flatten(0, 1).cpu()
