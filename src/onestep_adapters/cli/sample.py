"""``onestep sample RUN``."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from onestep_adapters.cli.parsing import Positional, options
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import say, use_threads
from onestep_adapters.devices import choose_device
from onestep_adapters.evaluation import write_samples
from onestep_adapters.files import require_replaceable, require_writable
from onestep_adapters.runs import open_run
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.validators import count as valid_count
from onestep_core.validators import positive_count


@attrs.frozen
class Sample:
    """Number of samples, their seed, the files."""

    run: Positional[Path] = attrs.field(kw_only=True, metadata={"metavar": "RUN"})
    """Folder of a trained run."""
    count: int = attrs.field(default=1000, validator=positive_count)
    """Number of samples, at least 1."""
    seed: int = attrs.field(default=0, validator=valid_count)
    """Seed of classes and noise, 0 or more."""
    alpha: float | None = None
    """Guidance scale, for a drifting run trained with --max-alpha above 1: from 1 (no guidance) to max-alpha. Default:
    the scale of the run."""
    out: Path | None = None
    """Output path; its files end with .npz and .png. Default: samples in the run's folder."""
    data: str | None = None
    """New place of the run's images, if they were moved: folder:PATH, idx:PATH or hub:NAME."""
    pipeline: Path | None = None
    """New place of the pipeline of diffusers that the run was distilled from, if it was moved."""
    device: str = "auto"
    """Device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps."""


def main(arguments: Sequence[str]) -> int:
    """Parse, sample, write."""
    chosen: Sample = options(
        Sample,
        arguments,
        prog="onestep sample",
        description="Draw samples of a run: arrays (.npz: `samples` [count, *shape] in the range of the data and, for "
        "data with classes, `labels` [count]) and a picture (.png).",
    )
    use_threads()
    run = open_run(
        chosen.run, data=chosen.data, pipeline=chosen.pipeline, device=choose_device(chosen.device), track=track
    )
    if chosen.alpha is not None:
        run = run.guided(chosen.alpha)
    stem = chosen.run / "samples" if chosen.out is None else _stem(chosen.out)
    require_writable(stem.parent)
    drawn = write_samples(run, stem, count=chosen.count, seed=chosen.seed, track=track)
    each = run.options.evaluations
    say(f"{chosen.count} samples, {each} network evaluation{'s' * (each > 1)} per sample: {drawn.file}")
    try:
        # Pictures are an extra.
        from onestep_adapters.evaluation.pictures import draw_samples
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return 0
    say(f"a picture of them beside real data: {draw_samples(run, drawn, stem)}")
    return 0


def _stem(out: Path) -> Path:
    """The path without .npz or .png, which are added."""
    stem = out.with_suffix("") if out.suffix in (".npz", ".png") else out
    if stem.name in ("", "..", ".npz", ".png"):
        raise ConfigError(f"--out {out}: expected the name of a file")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give the name of a file in it, such as {out / 'samples'}")
    require_replaceable(out)
    return stem
