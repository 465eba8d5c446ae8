"""``onestep sample RUN``."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from onestep_adapters.cli.terminal import options, say, split_off, use_threads
from onestep_adapters.recipes.pictures import write_samples
from onestep_adapters.recipes.runs import open_run
from onestep_core.errors import ConfigError


@attrs.frozen
class Sample:
    """How many samples, from which seed."""

    count: int = 1000
    """Samples."""
    seed: int = 0
    """Of classes and noise."""


def main(arguments: Sequence[str]) -> int:
    """Parse, sample, write."""
    taken, rest = split_off(arguments, {"--out": "samples"})
    folders = [word for word in rest if not word.startswith("-")][:1]
    named = [word for word in rest if word not in folders]
    chosen: Sample = options(
        Sample,
        named,
        prog="onestep sample RUN",
        description="Samples of a run: a picture (.png) and numbers (.npz), by default in the run's folder; --out F "
        "names the files without their endings.",
    )
    if not folders:
        raise ConfigError("which run? onestep sample RUN, for example onestep sample runs/meanflow-digits")
    use_threads()
    run = open_run(folders[0])
    written = write_samples(
        run, Path(taken.get("--out", f"{folders[0]}/samples")), count=chosen.count, seed=chosen.seed
    )
    say(f"{chosen.count} samples, {run.recipe.evaluations} network evaluations each: {', '.join(map(str, written))}")
    return 0
