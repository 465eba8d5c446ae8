"""``onestep evaluate RUN [RUN ...]``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.parsing import Positional, options
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import say, say_all, use_threads
from onestep_adapters.devices import choose_device
from onestep_adapters.evaluation import evaluate_runs, label_of, labelled, summary, write_report
from onestep_adapters.evaluation.encoders import encoder_summary, evaluate_encoders, write_encoder_report
from onestep_adapters.evaluation.rows import counted
from onestep_adapters.files import is_pipeline, require_writable
from onestep_adapters.runs import Run, open_run
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.validators import count, positive_count


@attrs.frozen
class Evaluate:
    """Which runs are measured, and how."""

    runs: Positional[tuple[Path, ...]] = attrs.field(
        kw_only=True, metadata={"metavar": "RUN [RUN ...]", "help_behavior_hint": "(required)"}
    )
    """One or more folders of trained runs, all of one data set."""
    baseline: Path | None = None
    """Folder of the many-step run that the others are compared with, or of a pipeline of diffusers; by default the
    first flow-matching run given. Without any, the samples are compared with real data alone."""
    folder: Path | None = None
    """Folder for report.html, report.md and report.json; by default that of the first run."""
    split: Literal["test", "validation"] = "test"
    """Real images to compare with: test for a report, validation to choose options. 2-D toys have no splits."""
    repeats: int = attrs.field(default=5, validator=positive_count)
    """Independent sets of samples, for means and standard errors; 1: no standard error."""
    seed: int = attrs.field(default=0, validator=count)
    """Seed of the samples and of the reference rows (real data, fitted Gaussian), 0 or more."""
    features: str | None = None
    """Images: compare them also in the pooled features of this encoder (Fréchet and kernel distance, precision, recall,
    density, coverage). A pretrained one (efficientnet-lite0), or the folder of a run of simclr, moco or mae; not the
    encoder that a run was trained with."""
    data: str | None = None
    """New place of the runs' images, if they were moved: folder:PATH, idx:PATH or hub:NAME."""
    pipeline: Path | None = None
    """New place of the pipeline of diffusers that the runs were distilled from, if it was moved."""
    probe_images: int = attrs.field(default=5000, validator=positive_count)
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
    if not chosen.runs:
        raise ConfigError("no run is given: expected onestep evaluate RUN [RUN ...], with folders of trained runs")
    use_threads()
    device = choose_device(chosen.device)
    target = chosen.runs[0] if chosen.folder is None else chosen.folder
    runs = [
        open_run(folder, data=chosen.data, pipeline=chosen.pipeline, device=device, track=track)
        for folder in chosen.runs
    ]
    require_writable(target)
    encoders = [run for run in runs if not run.options.generates]
    if encoders:
        return _encoders(chosen, runs, encoders, target)
    baseline = _baseline(chosen, dict(zip(chosen.runs, runs, strict=True)))
    rows = labelled(runs, baseline)
    say(f"evaluating {', '.join(rows)} on {runs[0].data.name}: {counted(chosen.repeats, 'draw')} of samples each")
    report = evaluate_runs(
        runs,
        baseline,
        split=chosen.split,
        repeats=chosen.repeats,
        seed=chosen.seed,
        features=chosen.features or "",
        track=track,
    )
    pictures: dict[str, str] = {}
    try:
        # Pictures are an extra.
        from onestep_adapters.evaluation.pictures import draw_report

        pictures = draw_report(rows, target, track=track)
    except MissingExtraError as error:
        say(f"no pictures in the report: {error}")
    write_report(target, report, pictures)
    files = []
    try:
        # So are reports as HTML.
        from onestep_adapters.evaluation.pages.of_report import write_page

        files.append(write_page(target, report, pictures).name)
    except MissingExtraError as error:
        say(f"no report.html: {error}")
    files += ["report.md (all tables, what they mean, options)", "report.json", *pictures.values()]
    say_all(["", *summary(report), f"written into {target}: {', '.join(files)}"])
    return 0


def _encoders(chosen: Evaluate, runs: Sequence[Run], encoders: Sequence[Run], target: Path) -> int:
    """The report on encoders, and a picture of each."""
    if len(encoders) < len(runs):
        named = ", ".join(str(folder) for folder, run in zip(chosen.runs, runs, strict=True) if run in encoders)
        raise ConfigError(f"{named} trained encoders, the other runs generators: evaluate them in two commands")
    if chosen.baseline is not None:
        raise ConfigError(f"--baseline {chosen.baseline} with runs of encoders: leave it out, it is for generators")
    if chosen.features is not None:
        raise ConfigError(f"--features {chosen.features} with runs of encoders: leave it out, it is for generators")
    names = [label_of(run, runs) for run in runs]
    say(f"evaluating {', '.join(names)} on {runs[0].data.name}: probes of at most {chosen.probe_images:,} images")
    report = evaluate_encoders(encoders, split=chosen.split, images=chosen.probe_images, seed=chosen.seed, track=track)
    pictures = {
        f"{name}: {file.stem}": os.path.relpath(file, target)
        for name, folder, run in zip(names, chosen.runs, runs, strict=True)
        for file in show_encoder(run, folder)
    }
    write_encoder_report(target, report, pictures)
    written = f"written into {target}: report.md (all layers, what the probes mean, options), report.json"
    say_all(["", *encoder_summary(report), written])
    return 0


def _baseline(chosen: Evaluate, runs: Mapping[Path, Run]) -> Run | None:
    """The baseline that was asked for: one of the runs where it is among them, so that it has one row."""
    if chosen.baseline is None:
        return None
    same = (run for folder, run in runs.items() if folder.resolve() == chosen.baseline.resolve())
    found = next(same, None)
    if found is not None:
        return found
    if is_pipeline(str(chosen.baseline)):
        # diffusers is an optional dependency.
        from onestep_adapters.runs.pipelines import pipeline_run

        data = next(iter(runs.values())).data
        return pipeline_run(str(chosen.baseline), data, device=choose_device(chosen.device))
    return open_run(
        chosen.baseline, data=chosen.data, pipeline=chosen.pipeline, device=choose_device(chosen.device), track=track
    )


def show_encoder(run: Run, folder: Path) -> list[Path]:
    """Draw nearest neighbours (for MAE reconstructions too) into the folder, and say where they are."""
    try:
        # Pictures are an extra.
        from onestep_adapters.evaluation.encoders.pictures import draw_encoder
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return []
    files = draw_encoder(run, folder)
    say(f"pictures: {', '.join(map(str, files))}")
    return files
