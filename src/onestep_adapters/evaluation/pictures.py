"""Pictures of runs: samples beside real data, with each run's budget under its name. Needs matplotlib, an extra."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from onestep_adapters.data import Dataset, part_of
from onestep_adapters.devices import generator_on
from onestep_adapters.evaluation.figures import Figure, curves, image_grid, toy_scatter, write_figure
from onestep_adapters.evaluation.measuring import cost_of
from onestep_adapters.evaluation.samples import Drawn
from onestep_adapters.evaluation.watching import histories
from onestep_adapters.files import make_folder
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Track, untracked

_PER_CLASS = 4
_SHEET_SIDE = 128
"""Largest side of an image in a contact sheet, in pixels."""
_SHEET_NUMBERS = 100_000_000
"""Numbers of images read for a contact sheet."""
_MOST_ROWS = 20
_REAL = 2000
"""Real images of which a picture shows some."""


def draw_samples(run: Run, drawn: Drawn, stem: Path) -> Path:
    """Write ``stem.png``: the samples beside real data.

    Raises:
        MissingExtraError: at the import of this module, without matplotlib.
    """
    generator, name = generator_on(run.state.generator.device, 0), run.name
    captions = {name: cost_of(run).caption}
    if run.data.kind == "images":
        real = run.data.batch(200, generator)
        figure = image_grid(
            run.data.finish(real.data),
            {name: drawn.samples},
            real_labels=real.labels,
            labels=None if drawn.labels is None else {name: drawn.labels},
            captions=captions,
            across=8,
        )
    else:
        figure = toy_scatter(run.data.batch(3000, generator).data, {name: drawn.samples}, captions=captions)
    return write_figure(figure, stem.with_name(stem.name + ".png"))


def draw_data(data: Dataset, file: Path, *, seed: int = 0) -> Path:
    """Write a picture of training data: a contact sheet of images, with one class in each row, or a cloud of points.

    Args:
        data: the data set.
        file: a PNG file.
        seed: of the points.
    """
    if data.kind == "points":
        figure = toy_scatter(data.sample(3000, generator_on("cpu", seed)), {}, title=data.name)
    else:
        rows = min(_MOST_ROWS, data.classes or _MOST_ROWS // 2)
        # Large images are shown in part, and made smaller: a contact sheet needs no more.
        most = max(rows, min(max(200, 100 * rows), _SHEET_NUMBERS // max(1, math.prod(data.shape))))
        real = part_of(data, "train", most) or data.batch(most, generator_on("cpu", seed))
        figure = image_grid(_reduced(real.data), {}, real_labels=real.labels, across=16, rows=rows, real_name=data.name)
    make_folder(file.parent)
    return write_figure(figure, file)


def _reduced(images: Tensor) -> Tensor:
    """Images of at most :data:`_SHEET_SIDE` pixels a side."""
    largest = max(images.shape[2:])
    if largest <= _SHEET_SIDE:
        return images
    scale = _SHEET_SIDE / largest
    sides = [max(1, round(side * scale)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=sides, mode="bilinear", antialias=True)


def draw_report(runs: Mapping[str, Run], folder: Path, *, track: Track = untracked) -> dict[str, str]:
    """Write the pictures of a report into ``folder``; returns their names by what they show.

    ``report-samples.png``, and ``report-curves.png`` if distances were measured during a training.
    """
    make_folder(folder)
    figures = {"Samples beside real data": ("samples", draw_runs(runs, track=track))}
    if known := histories(runs):
        figures["Distance to validation data during training"] = ("curves", curves(known))
    for name, figure in figures.values():
        write_figure(figure, folder / f"report-{name}.png")
    return {caption: f"report-{name}.png" for caption, (name, _) in figures.items()}


def draw_runs(
    runs: Mapping[str, Run], *, seed: int = 2, title: str = "", shared: bool = False, track: Track = untracked
) -> Figure:
    """Samples of runs of one data set beside real data, by label, with each one's budget under its name.

    Args:
        runs: at least one, by label.
        seed: of the samples.
        title: above everything.
        shared: whether all runs get the same noise; otherwise one generator draws for all.
        track: shows how many runs are drawn.
    """
    data, device = next(iter(runs.values())).data, next(iter(runs.values())).state.generator.device
    captions = {name: cost_of(run).caption for name, run in runs.items()}
    common = generator_on(device, seed)

    def each() -> Iterator[tuple[str, Run]]:
        return track(runs.items(), "picture", len(runs))

    def drawn(run: Run, count: int, labels: Tensor | None = None) -> Tensor:
        return run.samples(count, generator=generator_on(device, seed) if shared else common, labels=labels)[0]

    if data.kind == "points":
        samples = {name: drawn(run, 1000) for name, run in each()}
        return toy_scatter(data.sample(1000, common), samples, captions=captions, columns=5, title=title)
    real = part_of(data, "train", _REAL)
    if real is None:
        real = data.batch(200, common)
    classes = None if data.classes is None else torch.arange(data.classes, device=device)
    labels = None if classes is None else classes.repeat_interleave(_PER_CLASS)
    count = 10 * _PER_CLASS if labels is None else len(labels)
    samples = {name: drawn(run, count, labels) for name, run in each()}
    return image_grid(
        real.data,
        samples,
        real_labels=real.labels,
        labels=None if labels is None else dict.fromkeys(samples, labels),
        captions=captions,
        across=_PER_CLASS,
        rows=10 if labels is None else min(10, data.classes or 10),
        title=title,
    )
