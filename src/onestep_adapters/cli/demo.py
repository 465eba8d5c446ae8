"""``onestep demo``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.terminal import options, progress_of_many, say, use_threads


@attrs.frozen
class Options:
    """Where the demo goes."""

    folder: Path = Path("runs/demo")
    """Runs, report and pictures; what is there already is not trained again."""
    steps: int | None = None
    """Updates of each method, for a quick look; the recipes' own by default."""
    processes: Literal[1, 2] = 2
    """Trainings at a time, of one thread each; 1 on a machine with one core."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    chosen: Options = options(
        Options,
        arguments,
        prog="onestep demo",
        description="Train flow matching, MeanFlow and drifting on scikit-learn's digits, the last two as published as "
        "well; write a report and pictures.",
    )
    use_threads()
    # Digits and pictures are extras: the other commands work without them.
    from onestep_adapters.recipes.demo import Demo

    demo = Demo(chosen.folder, chosen.steps)
    steps = {name: (run.state.step, run.recipe.training.steps) for name, run in demo.runs.items() if not run.finished}
    for _ in progress_of_many(demo.train(processes=chosen.processes), steps):
        pass
    for line in demo.finish():
        say(line)
    return 0
