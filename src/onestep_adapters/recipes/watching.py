"""Watching a training: a distance to real data at a few updates, kept in the run's history for curves."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.runs import Run
from onestep_adapters.training import StepRecord, save_checkpoint
from onestep_core.fields import energy_distance

DISTANCE = "validation"
"""Under which name the history holds it."""

COARSE_STEPS = 10
"""Steps in which flow matching is sampled while it is watched."""


def watched(run: Run, folder: Path, distance: Callable[[Run], float], *, points: int = 8) -> Iterator[StepRecord]:
    """The updates of a run, with its distance at ``points`` of them, kept in the history.

    Args:
        run: to be trained to its end.
        folder: gets the checkpoints.
        distance: of the run as it is.
        points: how often.
    """
    every = max(1, run.recipe.training.steps // points)
    for record in run.updates(folder):
        if record.step % every == 0:
            run.state.history[-1][DISTANCE] = distance(run)
        yield record
    # The last distance came after the last checkpoint.
    save_checkpoint(folder, run.state)


def distance_to(real: Tensor, features: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)) -> Callable[[Run], float]:
    """The squared energy distance of as many samples to ``real``, in some features; the same noise every time.

    Args:
        real: ``[n, *shape]``.
        features: ``[n, *shape] -> [n, d]``.
    """
    there = features(real)

    def distance(run: Run) -> float:
        recipe = run.recipe
        quick = attrs.evolve(recipe, sampling_steps=COARSE_STEPS) if isinstance(recipe, FlowMatching) else recipe
        samples, _ = attrs.evolve(run, recipe=quick).samples(len(real), generator=torch.Generator().manual_seed(1))
        return float(energy_distance(features(samples), there))

    return distance


def histories(runs: Mapping[str, Run]) -> dict[str, list[tuple[float, float]]]:
    """Pairs of update and distance of those runs that were watched."""
    found = {
        name: [(entry["step"], entry[DISTANCE]) for entry in run.state.history if DISTANCE in entry]
        for name, run in runs.items()
    }
    return {name: history for name, history in found.items() if history}
