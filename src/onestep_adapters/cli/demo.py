"""``onestep demo``."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from onestep_adapters.cli.terminal import options, progress, say, use_threads


@attrs.frozen
class Options:
    """Where the demo goes."""

    folder: Path = Path("runs/demo")
    """Runs, report and pictures; what is there already is not trained again."""
    steps: int | None = None
    """Updates of each method, for a quick look; the recipes' own by default."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    chosen: Options = options(
        Options,
        arguments,
        prog="onestep demo",
        description="Train flow matching, MeanFlow and drifting on scikit-learn's digits; write a report and pictures.",
    )
    use_threads()
    # Digits and pictures are extras: the other commands work without them.
    from onestep_adapters.recipes.demo import Demo

    demo = Demo(chosen.folder, chosen.steps)
    for name, run, updates in demo.trainings():
        total = run.recipe.training.steps
        for _ in progress(updates, done=run.state.step, total=total, title=f"{name:<18}"):
            pass
    for line in demo.finish():
        say(line)
    return 0
