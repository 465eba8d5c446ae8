"""The demo: three generators of real images, what they make, and how good it is. Needs matplotlib and scikit-learn."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import attrs
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation.figures import Figure, curves, write_figure
from onestep_adapters.evaluation.judges import image_classifier, image_splits
from onestep_adapters.evaluation.measuring import evaluate_runs
from onestep_adapters.evaluation.pages.of_report import write_page
from onestep_adapters.evaluation.pictures import draw_runs
from onestep_adapters.evaluation.summary import summary
from onestep_adapters.evaluation.watching import histories, validation_distance, watched
from onestep_adapters.evaluation.writing import write_report
from onestep_adapters.methods import Method, find_preset
from onestep_adapters.methods.flow_matching import PREVIEW_STEPS
from onestep_adapters.runs import Run, resume_or_start
from onestep_adapters.tracking import Phase, Track, titled, told, untracked
from onestep_adapters.training import StepRecord, load_checkpoint, side_by_side
from onestep_adapters.training.processes import Tell
from onestep_core.fields import energy_distance

DATA = "digits"
"""Name of the data set."""

BASELINE = "flow-matching"
"""The method of many steps. Rectified MeanFlow learns from it, so that it is trained once."""

LANES = ((BASELINE, "rectified-meanflow"), ("drifting",))
"""What the demo trains: two rows of trainings that do not wait for one another."""


def _shorter(options: Method, steps: int) -> Method:
    """The options with another number of updates, for the teacher too."""
    changes = {} if options.teacher is None else {"teacher": _shorter(options.teacher, steps)}
    return attrs.evolve(options, training=attrs.evolve(options.training, steps=steps), **changes)


class Demo:
    """Trainings, then a report; runs that are complete in the folder are kept, and interrupted ones continued.

    Args:
        folder: gets one run a method, ``report.html``, ``report.md``, ``report.json``, ``samples.png`` and
            ``curves.png``.
        steps: updates of each method, for a quick look; those of the presets by default.
        device: where networks and training live.
    """

    def __init__(self, folder: Path, steps: int | None = None, device: torch.device | str = "cpu") -> None:
        self.folder = folder
        self.data = open_dataset(DATA)
        self.runs: dict[str, Run] = {}
        for name in chain(*LANES):
            options = find_preset(name).options(self.data)
            if steps is not None:
                options = _shorter(options, steps)
            baseline = self.runs.get(BASELINE)
            teacher = baseline if baseline is not None and options.teacher == baseline.options else None
            self.runs[name] = resume_or_start(
                folder / name, name, self.data, options, resume=True, teacher=teacher, device=device
            )

    def ahead(self) -> list[str]:
        """What is made before the first updates, one line each."""
        return [
            f"for {name}: {line}"
            for name, run in self.runs.items()
            if not run.finished
            for line in run.options.preparations(run.context())
        ]

    def train(self, *, processes: int = 1, track: Track = untracked) -> Iterator[tuple[str, StepRecord | Phase]]:
        """Names and updates of the unfinished runs; with several processes, phases before the first update too.

        Args:
            processes: 1 trains one after another, here; with more, the two lanes train side by side, in processes of
                their own (see :func:`onestep_adapters.training.side_by_side`).
            track: with one process, shows the progress of the phases before the first update.
        """
        lanes = [names for names in LANES if not all(self.runs[name].finished for name in names)]
        if processes == 1:
            for names in lanes:
                yield from self._lane(names, partial(titled, track))
            return
        yield from side_by_side([partial(self._told, names) for names in lanes])
        for name, run in self.runs.items():
            load_checkpoint(self.folder / name, run.state)

    def _told(self, names: Sequence[str], tell: Tell) -> Iterator[tuple[str, StepRecord]]:
        return self._lane(names, lambda name: told(lambda phase: tell((name, phase))))

    def _lane(self, names: Sequence[str], track_of: Callable[[str], Track]) -> Iterator[tuple[str, StepRecord]]:
        distance = None
        for name in names:
            if not self.runs[name].finished:
                track = track_of(name)
                distance = distance or validation_distance(self.data, self._device, track=track)
                for record in watched(self.runs[name], self.folder / name, distance, track=track):
                    yield name, record

    def finish(self, track: Track = untracked) -> Iterator[str]:
        """Write report and pictures; yields lines to print. ``track`` shows the progress."""
        report = evaluate_runs(list(self.runs.values()), track=track)
        write_figure(draw_runs(self.runs, shared=True, track=track), self.folder / "samples.png")
        write_figure(self._curves(), self.folder / "curves.png")
        pictures = {"Samples beside real images": "samples.png", "Distance during training": "curves.png"}
        write_report(self.folder, report, pictures)
        write_page(self.folder, report, pictures)
        yield from summary(report)
        yield f"{sum(run.seconds for run in self.runs.values()):.0f} s of training in all"
        yield f"written into {self.folder}: report.html, report.md, report.json, samples.png, curves.png"

    def _curves(self) -> Figure:
        splits = image_splits(self.data, "validation", self._device)
        features = image_classifier(self.data, self._device).features
        return curves(
            histories(self.runs),
            floor=float(energy_distance(features(splits.held_out), features(splits.train))),
            ylabel="squared energy distance to the validation split, in classifier features",
            title=f"Training (flow matching sampled in {PREVIEW_STEPS} steps here)",
        )

    @property
    def _device(self) -> torch.device:
        return self.runs[BASELINE].state.generator.device
