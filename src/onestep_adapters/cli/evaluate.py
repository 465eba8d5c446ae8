"""``onestep evaluate RUN [RUN ...]``."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from onestep_adapters.cli.terminal import options, say, split_off, use_threads
from onestep_adapters.recipes.evaluation import evaluate_runs
from onestep_adapters.recipes.runs import open_run
from onestep_core.errors import ConfigError


@attrs.frozen
class Evaluate:
    """How to measure."""

    split: str = "test"
    """Of the digits: test for a report, validation for every choice."""
    repeats: int = 5
    """Independent draws of samples."""
    seed: int = 0
    """Of samples and reference rows."""


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, print."""
    taken, rest = split_off(arguments, {"--yardstick": "runs/flow-matching-digits", "--folder": "runs/report"})
    flags = [index for index, word in enumerate(rest) if word.startswith("-")]
    folders = rest[: flags[0]] if flags else rest
    chosen: Evaluate = options(
        Evaluate,
        rest[len(folders) :],
        prog="onestep evaluate RUN [RUN ...]",
        description="The report on runs of one data set: every metric with its reference rows, and which bars are "
        "passed. --yardstick RUN names the many-step run to match (a flow-matching run among them by default); "
        "--folder F is where report.md and report.json go (the first run's folder by default).",
    )
    if not folders:
        raise ConfigError("which run? onestep evaluate RUN, for example onestep evaluate runs/meanflow-digits")
    use_threads()
    runs = [open_run(folder) for folder in folders]
    yardstick = open_run(taken["--yardstick"]) if "--yardstick" in taken else None
    report = evaluate_runs(runs, yardstick, split=chosen.split, repeats=chosen.repeats, seed=chosen.seed)
    target = Path(taken.get("--folder", folders[0]))
    say(report.write(target))
    say(f"written: {target / 'report.md'}, {target / 'report.json'}")
    return 0
