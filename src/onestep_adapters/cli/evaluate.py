"""``onestep evaluate RUN [RUN ...]``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.parsing import Positional, options
from onestep_adapters.cli.pictures import show_encoder
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import say, use_threads
from onestep_adapters.devices import choose_device
from onestep_adapters.evaluation import evaluate_runs, write_report
from onestep_adapters.evaluation.encoders import evaluate_encoders, write_encoder_report
from onestep_adapters.runs import Run, open_run
from onestep_core.errors import ConfigError
from onestep_core.validators import count, positive


@attrs.frozen
class Evaluate:
    """Which runs are measured, and how."""

    runs: Positional[tuple[Path, ...]]
    """One or more folders of trained runs, all of one data set (required)."""
    baseline: Path | None = None
    """Folder of the many-step run that the others are compared with; by default the first flow-matching run given.
    Without any, the samples are compared with real data alone."""
    folder: Path | None = None
    """Folder for report.md and report.json; by default that of the first run."""
    split: Literal["test", "validation"] = "test"
    """Real images to compare with: test for a report, validation to choose options. 2-D toys have no splits."""
    repeats: int = attrs.field(default=5, validator=[count, positive])
    """Independent sets of samples, for means and standard errors; 1: no standard error (2-D toys: at least 2)."""
    seed: int = attrs.field(default=0, validator=count)
    """Seed of the samples and of the reference rows (real data, fitted Gaussian), 0 or more."""
    data: str | None = None
    """New place of the runs' images, if they were moved: folder:PATH, idx:PATH or hub:NAME."""
    probe_images: int = attrs.field(default=5000, validator=[count, positive])
    """Runs of encoders: at most so many training images for the probes, and two fifths of that of the other splits."""
    device: str = "auto"
    """Device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps."""


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, print."""
    chosen: Evaluate = options(
        Evaluate,
        arguments,
        prog="onestep evaluate",
        description="Report on trained runs: sample quality (distances, nearest neighbours, coverage), the same for "
        "real data and for a fitted Gaussian, pass or fail against quality limits, and the training cost. Of encoders: "
        "probes (linear, few-shot, nearest neighbours), the same for pixels and for a random network.",
    )
    use_threads()
    device = choose_device(chosen.device)
    runs = [open_run(folder, data=chosen.data, device=device, track=track) for folder in chosen.runs]
    target = chosen.runs[0] if chosen.folder is None else chosen.folder
    encoders = [run for run in runs if not run.options.generates]
    if encoders:
        return _encoders(chosen, runs, encoders, target)
    report = evaluate_runs(
        runs, _baseline(chosen, dict(zip(chosen.runs, runs, strict=True))), split=chosen.split, repeats=chosen.repeats,
        seed=chosen.seed,
    )  # fmt: skip
    say(write_report(target, report))
    say(f"written: {target / 'report.md'}, {target / 'report.json'}")
    return 0


def _encoders(chosen: Evaluate, runs: Sequence[Run], encoders: Sequence[Run], target: Path) -> int:
    """The report on encoders, and a picture of each."""
    if len(encoders) < len(runs):
        named = ", ".join(str(folder) for folder, run in zip(chosen.runs, runs, strict=True) if run in encoders)
        raise ConfigError(f"{named} trained encoders, the other runs generators: evaluate them in two commands")
    if chosen.baseline is not None:
        raise ConfigError(f"--baseline {chosen.baseline} with runs of encoders: leave it out, it is for generators")
    report = evaluate_encoders(encoders, split=chosen.split, images=chosen.probe_images, seed=chosen.seed)
    say(write_encoder_report(target, report))
    say(f"written: {target / 'report.md'}, {target / 'report.json'}")
    for folder, run in zip(chosen.runs, runs, strict=True):
        show_encoder(run, folder)
    return 0


def _baseline(chosen: Evaluate, runs: Mapping[Path, Run]) -> Run | None:
    """The baseline that was asked for: one of the runs where it is among them, so that it has one row."""
    if chosen.baseline is None:
        return None
    same = (run for folder, run in runs.items() if folder.resolve() == chosen.baseline.resolve())
    found = next(same, None)
    if found is not None:
        return found
    return open_run(chosen.baseline, data=chosen.data, device=choose_device(chosen.device), track=track)
