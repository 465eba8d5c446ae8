"""The distance to validation data during training, at a few updates, kept in the run's history for curves."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from onestep_adapters.data.dataset import Dataset
from onestep_adapters.devices import generator_on
from onestep_adapters.evaluation.judges import image_classifier, image_splits
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Track, untracked
from onestep_adapters.training import StepRecord, save_checkpoint
from onestep_core.fields import energy_distance

DISTANCE = "validation"
"""Key of the distance in a run's history."""

POINTS = 2000
"""Draws that stand for validation data where draws are unlimited."""

Distance = Callable[[Run], float]
"""From a run, as it is, to a number."""


def watched(
    run: Run, folder: Path, distance: Distance, *, points: int = 8, track: Track = untracked
) -> Iterator[StepRecord]:
    """The updates of a run, with its distance at ``points`` of them, kept in the history.

    Args:
        run: to be trained to its end.
        folder: gets the checkpoints.
        distance: of the run as it is.
        points: how often the distance is measured.
        track: shows the progress of what is made before the first update.
    """
    every = max(1, run.options.training.steps // points)
    step, history = run.state.step, run.state.history
    if step and step % every == 0 and DISTANCE not in history[-1]:
        # The training was stopped between the checkpoint of this update and its distance.
        history[-1][DISTANCE] = distance(run)
    for record in run.updates(folder, track=track):
        if record.step % every == 0:
            run.state.history[-1][DISTANCE] = distance(run)
        yield record
    # The last distance came after the last checkpoint.
    save_checkpoint(folder, run.state)


def distance_to(real: Tensor, features: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)) -> Distance:
    """The squared energy distance of as many samples to ``real``, in some features; the same noise every time.

    Args:
        real: ``[n, *shape]``; samples are drawn on its device.
        features: ``[n, *shape] -> [n, d]``.
    """
    there = features(real)

    def distance(run: Run) -> float:
        samples, _ = run.previewed().samples(len(real), generator=generator_on(real.device, 1))
        return float(energy_distance(features(samples), there))

    return distance


def validation_distance(data: Dataset, device: torch.device | str = "cpu", *, track: Track = untracked) -> Distance:
    """The squared energy distance to validation data: of images, in the features of a classifier, or in pixels where
    they have no classes; of points, to fresh draws.

    Raises:
        ConfigError: for images without splits.
    """
    if data.kind == "points":
        return distance_to(data.sample(POINTS, generator_on(device, 9)))
    if data.classes is None:
        return distance_to(image_splits(data, "validation", device).held_out)
    return distance_to(
        image_splits(data, "validation", device).held_out, image_classifier(data, device, track=track).features
    )


def histories(runs: Mapping[str, Run]) -> dict[str, list[tuple[float, float]]]:
    """Pairs of update and distance of those runs whose distance was measured."""
    found = {
        name: [(entry["step"], entry[DISTANCE]) for entry in run.state.history if DISTANCE in entry]
        for name, run in runs.items()
    }
    return {name: history for name, history in found.items() if history}
