"""The demo: three generators on real digits and two as published, what they make, and how good it is."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import attrs
import torch
from torch import Tensor

from onestep_adapters.data.digits import load_digits
from onestep_adapters.metrics.plots import curves, image_grid
from onestep_adapters.recipes import Recipe, find_method
from onestep_adapters.recipes.digits import digits_evaluation
from onestep_adapters.recipes.evaluation import ImageReport, digits_classifier, evaluate_runs
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.runs import Run, resume_or_start
from onestep_adapters.recipes.watching import COARSE_STEPS, distance_to, histories, watched
from onestep_adapters.training import StepRecord, load_checkpoint, side_by_side
from onestep_core.fields import energy_distance

YARDSTICK = "flow-matching"
"""The method of many steps; MeanFlow learns from it too, so that it is trained once."""

LANES = ((YARDSTICK, "rectified-meanflow"), ("drifting", "meanflow-released", "drifting-released"))
"""What the demo trains: two rows of trainings that take about as long, and do not wait for one another. The published
settings have trainings of their own, also where they lose."""


def _shorter(recipe: Recipe, steps: int) -> Recipe:
    changes = {"training": attrs.evolve(recipe.training, steps=steps)}
    if recipe.teacher is not None:
        changes["teacher"] = _shorter(recipe.teacher, steps)  # type: ignore[assignment]
    return attrs.evolve(recipe, **changes)  # type: ignore[type-var]


class Demo:
    """Trainings, then a report; runs that are complete in the folder are kept, and interrupted ones continued.

    Args:
        folder: gets one run a method, ``report.md``, ``report.json``, ``samples.png`` and ``curves.png``.
        steps: updates of each method, for a quick look; the recipes' own by default.
    """

    def __init__(self, folder: Path, steps: int | None = None) -> None:
        self.folder = folder
        self.runs: dict[str, Run] = {}
        for name in chain(*LANES):
            recipe = find_method(name).options(DIGITS)
            if steps is not None:
                recipe = _shorter(recipe, steps)
            run = self.runs[name] = resume_or_start(folder / name, name, DIGITS, recipe, resume=True)
            if recipe.teacher == self.runs[YARDSTICK].recipe:
                run.teacher = self.runs[YARDSTICK]
        self._validation = digits_evaluation("validation")
        self._classifier = digits_classifier(self._validation, self._validation)

    def train(self, *, processes: int = 1) -> Iterator[tuple[str, StepRecord]]:
        """Names and updates of the unfinished runs.

        Args:
            processes: 1 trains one after another, here; with more, the two lanes train side by side, in processes of
                their own (see :func:`onestep_adapters.training.side_by_side`).
        """
        jobs = [partial(self._lane, names) for names in LANES if not all(self.runs[name].finished for name in names)]
        if processes == 1:
            for job in jobs:
                yield from job()
            return
        yield from side_by_side(jobs)
        for name, run in self.runs.items():
            load_checkpoint(self.folder / name, run.state)

    def _lane(self, names: Sequence[str]) -> Iterator[tuple[str, StepRecord]]:
        distance = distance_to(self._validation.held_out, self._classifier.features)
        for name in names:
            if not self.runs[name].finished:
                for record in watched(self.runs[name], self.folder / name, distance):
                    yield name, record

    def finish(self) -> Iterator[str]:
        """Write report and pictures; yields lines to print."""
        runs = list(self.runs.values())
        written = evaluate_runs(runs, None, split="test", repeats=5, seed=0)
        written.write(self.folder)
        self._pictures()
        if isinstance(written, ImageReport):
            yield from _verdicts(written)
        total = sum(run.seconds for run in runs)
        yield f"{total:.0f} s of training in all; see {self.folder}/report.md, samples.png, curves.png"

    def _pictures(self) -> None:
        real = load_digits().train
        sets: dict[str, Tensor] = {}
        labels: dict[str, Tensor] = {}
        for name, run in self.runs.items():
            title = f"{name}\n{run.recipe.evaluations} evaluation{'s' * (run.recipe.evaluations > 1)}"
            asked = torch.arange(10).repeat_interleave(4)
            sets[title], _ = run.samples(40, generator=torch.Generator().manual_seed(2), labels=asked)
            labels[title] = asked
        image_grid(real.images, sets, real_labels=real.labels, labels=labels).savefig(self.folder / "samples.png")
        floor = energy_distance(*(self._classifier.features(x) for x in (self._validation.held_out, real.images)))
        curves(
            histories(self.runs),
            floor=float(floor),
            ylabel="squared energy distance to the validation split, in classifier features",
            title=f"Training (flow matching sampled in {COARSE_STEPS} steps here)",
        ).savefig(self.folder / "curves.png")


def _verdicts(written: ImageReport) -> Iterator[str]:
    report = written.report
    for row in report.rows:
        missed = report.missed(row.label)
        against = "the floor" if row.label == report.yardstick else "the yardstick"
        said = f"misses {', '.join(missed)}" if missed else report.met()
        yield f"{row.label:<20}against {against}: {said}"
