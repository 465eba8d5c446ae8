"""``onestep evaluate RUN [RUN ...]``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
from tyro.conf import Positional

from onestep_adapters.cli.terminal import options, say, use_threads
from onestep_adapters.recipes.evaluation import evaluate_runs
from onestep_adapters.recipes.options import count
from onestep_adapters.recipes.runs import open_run


@attrs.frozen
class Evaluate:
    """What to measure, against what."""

    runs: Positional[tuple[Path, ...]]
    """Folders of trained runs, all on the same data."""
    yardstick: Path | None = None
    """The many-step run to match; a flow-matching run among the others by default."""
    folder: Path | None = None
    """Where report.md and report.json go; the first run's folder by default."""
    split: Literal["test", "validation"] = "test"
    """Of real images: test for a report, validation for every choice. Toys are drawn anew and have none."""
    repeats: int = 5
    """Independent draws of samples."""
    seed: int = attrs.field(default=0, validator=count)
    """Of samples and reference rows."""


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, print."""
    chosen: Evaluate = options(
        Evaluate,
        arguments,
        prog="onestep evaluate",
        description="The report on runs: every metric beside its reference rows, and which bars are passed.",
    )
    use_threads()
    runs = [open_run(folder) for folder in chosen.runs]
    yardstick = None if chosen.yardstick is None else open_run(chosen.yardstick)
    report = evaluate_runs(runs, yardstick, split=chosen.split, repeats=chosen.repeats, seed=chosen.seed)
    target = chosen.runs[0] if chosen.folder is None else chosen.folder
    say(report.write(target))
    say(f"written: {target / 'report.md'}, {target / 'report.json'}")
    return 0
