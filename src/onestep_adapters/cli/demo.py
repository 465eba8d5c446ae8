"""``onestep demo``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.parsing import options
from onestep_adapters.cli.progress import progress_of_many, track
from onestep_adapters.cli.terminal import say_all, use_threads
from onestep_adapters.devices import choose_device
from onestep_adapters.files import require_writable
from onestep_core.validators import positive_count


@attrs.frozen
class Options:
    """Where the demo writes, and how long it trains."""

    folder: Path = Path("runs/demo")
    """Folder for runs, report and pictures; finished trainings found there are reused."""
    steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Training updates of each method, 1 or more, for a quick look; by default each method's own number, as in onestep
    train."""
    processes: Literal[1, 2] = 2
    """Trainings in parallel, with one thread each: 2, or 1 on a machine with one core."""
    device: str = "auto"
    """Device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, report."""
    chosen: Options = options(
        Options,
        arguments,
        prog="onestep demo",
        description="Train flow matching, rectified MeanFlow and drifting on scikit-learn's digits (about five minutes "
        "on two cores); write a report and pictures.",
    )
    use_threads()
    # Digits and pictures are extras: the other commands work without them.
    from onestep_adapters.evaluation.demo import Demo

    require_writable(chosen.folder)
    demo = Demo(chosen.folder, chosen.steps, choose_device(chosen.device))
    steps = {name: (run.state.step, run.options.training.steps) for name, run in demo.runs.items() if not run.finished}
    if ahead := demo.ahead():
        say_all(["before the first updates:", *(f"  {line}" for line in ahead)])
    for _ in progress_of_many(demo.train(processes=chosen.processes, track=track), steps):
        pass
    say_all(demo.finish(track))
    return 0
