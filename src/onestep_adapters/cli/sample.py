"""``onestep sample RUN``."""

from collections.abc import Sequence
from pathlib import Path

import attrs
from tyro.conf import Positional

from onestep_adapters.cli.terminal import options, say, use_threads
from onestep_adapters.recipes.options import count as valid_count
from onestep_adapters.recipes.runs import open_run
from onestep_adapters.recipes.samples import write_samples
from onestep_core.errors import MissingExtraError


@attrs.frozen
class Sample:
    """How many samples, from which seed, where to."""

    run: Positional[Path]
    """Folder of a trained run."""
    count: int = 1000
    """Samples."""
    seed: int = attrs.field(default=0, validator=valid_count)
    """Of classes and noise."""
    alpha: float | None = None
    """Guidance scale, for a drifting run that was trained with --largest-alpha: 1 is none, more is stronger."""
    out: Path | None = None
    """Files to write, without their endings; samples.npz and samples.png in the run's folder by default."""


def main(arguments: Sequence[str]) -> int:
    """Parse, sample, write."""
    chosen: Sample = options(
        Sample,
        arguments,
        prog="onestep sample",
        description="Samples of a run: numbers (.npz with `samples` and, for classes, `labels`) and a picture (.png).",
    )
    use_threads()
    run = open_run(chosen.run)
    if chosen.alpha is not None:
        run = run.guided(chosen.alpha)
    stem = chosen.run / "samples" if chosen.out is None else chosen.out
    drawn = write_samples(run, stem, count=chosen.count, seed=chosen.seed)
    each = run.recipe.evaluations
    say(f"{chosen.count} samples, {each} network evaluation{'s' * (each > 1)} each: {drawn.file}")
    try:
        # Pictures are an extra.
        from onestep_adapters.recipes.pictures import draw_samples
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return 0
    say(f"a picture of them beside real data: {draw_samples(run, drawn, stem)}")
    return 0
