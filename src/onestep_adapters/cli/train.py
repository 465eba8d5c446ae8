"""``onestep train METHOD``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep_adapters.cli.terminal import Stopped, fail, options, progress, say, until_interrupted, use_threads
from onestep_adapters.recipes import METHODS, Method, Recipe, find_method
from onestep_adapters.recipes.problems import DIGITS, PROBLEMS
from onestep_adapters.recipes.runs import Run, options_of_run, resume_or_start
from onestep_adapters.recipes.setting import Monitored
from onestep_adapters.recipes.teachers import ORACLE, ChoosesTeacher, teacher_folder
from onestep_adapters.training import latest_checkpoint, save_checkpoint
from onestep_core.errors import ConfigError

HELP = f"""Train a generator into a run folder.

  onestep train METHOD [--data D] [--folder F] [--resume] [options]

  METHOD    {", ".join(METHODS)}
  --data    {", ".join(PROBLEMS)} (default: {DIGITS}, or with --resume that of the run)
  --folder  where the run goes (default: runs/METHOD-DATA)
  --resume  continue the run in the folder from its last checkpoint, with the options that it has, to the bit

`onestep train METHOD --data D --help` lists the method's own options, with the defaults for that data."""


def _place(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Data, folder and resumption: what decides which options there are. The rest is the method's."""
    parser = argparse.ArgumentParser(prog="onestep train", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--data")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}: see onestep train --help") from error


def _preset(method: Method, data: str | None, folder: Path | None) -> tuple[str, Recipe]:
    """Data and defaults: those of the run in the folder, if it is one of the method on the data."""
    if folder is not None:
        name, there, recipe = options_of_run(folder)
        if find_method(name) is method and data in (None, there):
            return there, recipe
    chosen = data or DIGITS
    return chosen, method.options(chosen)


def _used(arguments: Sequence[str], recipe: Recipe) -> None:
    """Refuse options of a teacher that no training would use."""
    if not isinstance(recipe, ChoosesTeacher) or not recipe.teacher_from:
        return
    # Of an oracle's teacher the network counts: it is the fake score's.
    used = "--teacher.network." if recipe.teacher_from == ORACLE else "--teacher-from"
    for word in arguments:
        if word.startswith("--teacher.") and not word.startswith(used):
            raise ConfigError(
                f"{word} beside --teacher-from {recipe.teacher_from}: that teacher is not trained any more, so leave "
                "one of the two out"
            )


def _kept(folder: Path, run: Run, then: str) -> int:
    save_checkpoint(folder, run.state)
    total = run.recipe.training.steps
    return fail(f"interrupted; {folder} keeps {run.state.step} of {total} updates, {then}", status=130)


def main(arguments: Sequence[str]) -> int:
    """Parse, train, print."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say(HELP)
        return 0
    name, method = arguments[0], find_method(arguments[0])
    place, rest = _place(arguments[1:])
    folder = place.folder or Path(f"runs/{name}-{place.data or DIGITS}")
    there = place.resume and folder.is_dir() and latest_checkpoint(folder) is not None
    if place.resume and not there and place.folder is not None and place.data is None:
        raise ConfigError(
            f"{folder} holds no checkpoint to resume, so its data and options are not known: give --data and the "
            "options to start anew there"
        )
    data, preset = _preset(method, place.data, folder if there else None)
    recipe = options(
        type(preset),
        rest,
        prog=f"onestep train {name}",
        description=f"{method.summary}; defaults for {data}. Also: --data, --folder, --resume (onestep train --help).",
        default=preset,
    )
    _used(rest, recipe)
    use_threads()
    if place.resume and not there:
        say(f"{folder} holds no checkpoint: starting anew")
    run = resume_or_start(folder, name, data, recipe, resume=place.resume)
    total = recipe.training.steps
    if run.finished:
        say(f"{folder} is complete: {run.state.step} of {total} updates")
        return 0
    if run.teacher is not None and not run.teacher.finished:
        title = f"teacher on {data}"
        steps = run.teacher.recipe.training.steps
        teaching = until_interrupted(run.teaching())
        try:
            for _ in progress(teaching, done=run.teacher.state.step, total=steps, title=title):
                pass
        except Stopped:
            return _kept(teacher_folder(data, run.teacher.recipe), run.teacher, "the same command goes on")
    title = f"{name} on {data}"
    shown = recipe.monitors if isinstance(recipe, Monitored) else None
    updates = until_interrupted(run.updates(folder))
    try:
        for _ in progress(updates, done=run.state.step, total=total, title=title, shown=shown):
            pass
    except Stopped:
        return _kept(folder, run, "--resume goes on")
    say(f"{folder}: {total} updates in {run.seconds:.0f} s. Next: onestep sample {folder}, onestep evaluate {folder}")
    return 0
