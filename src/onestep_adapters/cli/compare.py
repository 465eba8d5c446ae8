"""``onestep compare``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.parsing import options
from onestep_adapters.cli.progress import progress_of_grid
from onestep_adapters.cli.terminal import say, say_all, use_threads
from onestep_adapters.comparison import make_plan, missing, work
from onestep_adapters.evaluation.rows import counted
from onestep_adapters.files import require_writable
from onestep_core.validators import positive_count


@attrs.frozen
class Compare:
    """What is compared, and at which budget."""

    preset: Literal["quick", "standard", "thorough"] = "standard"
    """quick: 8 Gaussians, a method or two of every family, one seed. standard: 8 Gaussians, checkerboard, unequal
    mixture and digits, every method, three seeds. thorough: Fashion-MNIST too."""
    data: tuple[str, ...] = ()
    """Names of data sets, instead of those of the preset."""
    methods: tuple[str, ...] = ()
    """Names of methods, instead of those of the preset; flow-matching, the baseline, is always among them."""
    budget: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Network evaluations in one training, instead of the preset's: a forward pass of one sample counts 1, a backward
    pass 2, a tangent 1. The training of a teacher and the pairs that it makes count too."""
    seeds: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Trainings of each method, from seeds 0, 1, ..., instead of the preset's number."""
    batch: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Samples in an update of every method and teacher. Default: 128 in quick, else those of each method's preset."""
    folder: Path | None = None
    """Folder for runs and report (default: runs/compare-PRESET). What is finished there is kept; what was interrupted
    goes on."""
    workers: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Processes, each with one thread. Default: one for each core."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train what is missing, report."""
    chosen: Compare = options(
        Compare,
        arguments,
        prog="onestep compare",
        description="Compare methods at equal budgets of network evaluations: train, sample and judge every method on "
        "every data set with every seed, in parallel processes, and write a report (report.html, report.md, "
        "report.json, which-method.md). Stop it with Ctrl-C and start it again: it goes on.",
    )
    use_threads()
    # Pictures and HTML are extras, found missing before hours of training.
    from onestep_adapters.comparison.report import write_comparison

    changes = {name: getattr(chosen, name) for name in ("data", "methods", "budget", "seeds", "batch")}
    plan = make_plan(chosen.preset, **changes)
    home = chosen.folder or Path(f"runs/compare-{chosen.preset}")
    require_writable(home)
    left = missing(plan, home)
    say(
        f"{counted(len(plan.cells), 'training')} in {home}, {len(plan.cells) - len(left)} finished; budget of each in "
        f"network evaluations: {', '.join(f'{data} {budget:,}' for data, budget in plan.budgets.items())}"
    )
    total = sum(plan.budgets[cell.data] for cell in left)
    workers = chosen.workers or os.cpu_count() or 1
    for _ in progress_of_grid(work(plan, home, workers=workers), cells=len(left), total=total):
        pass
    page = write_comparison(plan, home)
    say_all(["", *(line.replace("**", "") for line in page.verdict)])
    say(f"written into {home}: report.html, report.md, report.json, which-method.md")
    return 0
