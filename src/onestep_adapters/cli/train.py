"""``onestep train METHOD``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep_adapters.cli.terminal import options, progress, say, use_threads
from onestep_adapters.recipes import METHODS, find_method
from onestep_adapters.recipes.problems import DIGITS, PROBLEMS
from onestep_adapters.recipes.runs import resume_or_start
from onestep_adapters.recipes.setting import Monitored
from onestep_adapters.training import latest_checkpoint
from onestep_core.errors import ConfigError

HELP = f"""Train a generator into a run folder.

  onestep train METHOD [--data D] [--folder F] [--resume] [options]

  METHOD    {", ".join(METHODS)}
  --data    {", ".join(PROBLEMS)} (default: {DIGITS})
  --folder  where the run goes (default: runs/METHOD-DATA)
  --resume  continue the run in the folder from its last checkpoint, to the bit

`onestep train METHOD --data D --help` lists the method's own options, with the defaults for that data."""


def _place(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Data, folder and resumption: what decides which options there are. The rest is the method's."""
    parser = argparse.ArgumentParser(prog="onestep train", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--data", default=DIGITS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}: see onestep train --help") from error


def main(arguments: Sequence[str]) -> int:
    """Parse, train, print."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say(HELP)
        return 0
    name, method = arguments[0], find_method(arguments[0])
    place, rest = _place(arguments[1:])
    preset = method.options(place.data)
    recipe = options(
        type(preset),
        rest,
        prog=f"onestep train {name}",
        description=f"{method.summary}; defaults for {place.data}. Also: --data, --folder, --resume "
        "(onestep train --help).",
        default=preset,
    )
    use_threads()
    folder = place.folder or Path(f"runs/{name}-{place.data}")
    if place.resume and not (folder.exists() and latest_checkpoint(folder)):
        say(f"{folder} holds no checkpoint: starting anew")
    run = resume_or_start(folder, name, place.data, recipe, resume=place.resume)
    total = recipe.training.steps
    if run.finished:
        say(f"{folder} is complete: {run.state.step} of {total} updates")
        return 0
    if run.teacher is not None and not run.teacher.finished:
        title = f"teacher on {place.data}"
        steps = run.teacher.recipe.training.steps
        for _ in progress(run.teaching(), done=run.teacher.state.step, total=steps, title=title):
            pass
    title = f"{name} on {place.data}"
    shown = recipe.monitors if isinstance(recipe, Monitored) else None
    for _ in progress(run.updates(folder), done=run.state.step, total=total, title=title, shown=shown):
        pass
    say(f"{folder}: {total} updates in {run.seconds:.0f} s. Next: onestep sample {folder}, onestep evaluate {folder}")
    return 0
