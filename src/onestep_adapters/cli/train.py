"""``onestep train METHOD``."""

from collections.abc import Sequence
from pathlib import Path

from onestep_adapters.cli.terminal import options, progress, say, split_off, use_threads
from onestep_adapters.recipes import METHODS, find_method
from onestep_adapters.recipes.problems import PROBLEMS
from onestep_adapters.recipes.runs import resume_or_start

HELP = f"""Train a generator into a run folder.

  onestep train METHOD [--data D] [--folder F] [--resume] [options]

  METHOD    {", ".join(METHODS)}
  --data    {", ".join(PROBLEMS)} (default: digits)
  --folder  where the run goes (default: runs/METHOD-DATA)
  --resume  continue the run in the folder from its last checkpoint, to the bit

`onestep train METHOD --data D --help` lists the method's own options, with the defaults for that data."""


def main(arguments: Sequence[str]) -> int:
    """Parse, train, print."""
    taken, rest = split_off(arguments, {"--data": "digits", "--folder": "runs/mine", "--resume": None})
    if not rest or rest[0] in ("-h", "--help"):
        print(HELP)
        return 0
    name, data = rest[0], taken.get("--data", "digits")
    method = find_method(name)
    preset = method.options(data)
    recipe = options(
        type(preset),
        rest[1:],
        prog=f"onestep train {name}",
        description=f"{method.summary}; defaults for {data}. Also: --data, --folder, --resume (onestep train --help).",
        default=preset,
    )
    use_threads()
    folder = Path(taken.get("--folder", f"runs/{name}-{data}"))
    run = resume_or_start(folder, name, data, recipe, resume="--resume" in taken)
    total = recipe.training.steps
    if run.finished:
        say(f"{folder} is complete: {run.state.step} of {total} updates")
        return 0
    for _ in progress(run.updates(folder), done=run.state.step, total=total, title=f"{name} on {data}"):
        pass
    say(f"{folder}: {total} updates in {run.seconds:.0f} s. Next: onestep sample {folder}, onestep evaluate {folder}")
    return 0
