"""``onestep train METHOD``."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from onestep_adapters.cli.evaluate import show_encoder
from onestep_adapters.cli.images import OPTIONS, PLACES, add_image_options, image_options
from onestep_adapters.cli.interrupts import Stopped, until_interrupted
from onestep_adapters.cli.parsing import options
from onestep_adapters.cli.progress import progress, track
from onestep_adapters.cli.terminal import fail, filled, listed, reason, say, say_all, use_threads
from onestep_adapters.data import DEFAULT_DATASET, Dataset, open_dataset
from onestep_adapters.data.images.opening import is_place
from onestep_adapters.devices import choose_device
from onestep_adapters.methods import ENCODERS, METHODS, Method, Preset, find_preset
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.names import choose
from onestep_adapters.runs import Run, options_of_run, resume_or_start
from onestep_adapters.runs.datasets import data_of_run
from onestep_adapters.training import latest_checkpoint, read_config, read_run, save_checkpoint, writing_into
from onestep_core.errors import ConfigError, OneStepError


def help_text() -> str:
    """What ``onestep train --help`` prints, as wide as the terminal."""
    general = (
        ("METHOD", f"{', '.join(METHODS)}; encoders: {', '.join(ENCODERS)} (onestep --help says what each is)"),
        (
            "--data D",
            f"the data, see below (default: {DEFAULT_DATASET}; with --resume the data of the run, or the new place of "
            "its images)",
        ),
        ("--folder F", "folder of the run (default: runs/METHOD-DATA)"),
        (
            "--resume",
            "continue the run in the folder from its last checkpoint, with the options saved there; on the same "
            "machine the result is bit-identical to an uninterrupted run. METHOD is given again; other options than "
            "the saved ones are refused, but for a larger --steps: the training, also a finished one, goes on to that "
            "number. Without --resume a folder that holds a run is refused",
        ),
        ("--device D", "auto (default: a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps"),
    )
    words = (
        (
            "time t",
            "runs from 0 (data) to 1 (noise). In consistency-training, easy- and truncated-consistency t and m are "
            "noise levels; in continuous-consistency t is an angle",
        ),
        ("jump", "goes from a start time t to an end time s nearer to the data"),
        ("pair", "a data sample with its noise; a teacher's pair is noise and the sample that the teacher makes of it"),
        ("score gap", "the difference of two scores"),
        ("code", "what the authors of a paper released"),
    )
    opening = "Train a generator, or an encoder whose features a generator can use, and save it in a run folder."
    usage = "onestep train METHOD [--data D] [--folder F] [--resume] [--device D] [options of images] [options]"
    own = (
        "`onestep train METHOD --data D --help` lists the method's own options. Defaults depend on METHOD and D and "
        "are chosen for small data; the help gives the papers' values. Words of the help:"
    )
    return f"""{filled(opening)}

{filled(usage, "    ", first="  ")}

{listed(general)}

Data:
{listed(PLACES)}

For images (onestep data --help says more):
{listed(OPTIONS)}

{filled(own)}
{listed(words)}"""


_WORDS = (
    "Time t runs from 0 (data) to 1 (noise), where an option names no noise level or angle; a jump goes from a start "
    "time t to an end time s nearer to the data. "
)


def _place(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Data, folder, resumption and device: they decide which options exist. The rest are the method's."""
    parser = argparse.ArgumentParser(prog="onestep train", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--data")
    parser.add_argument("--folder")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="auto")
    add_image_options(parser)
    try:
        place, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}: see onestep train --help") from error
    for name in ("data", "folder", "device"):
        if getattr(place, name) == "":
            raise ConfigError(f"--{name} is empty: give a value, or leave the option out")
    place.folder = None if place.folder is None else Path(place.folder)
    return place, rest


def _method_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with METHOD in front, wherever it was given.

    Raises:
        ConfigError: if no word is a method.
    """
    known = {**METHODS, **ENCODERS}
    place = next((i for i, word in enumerate(arguments) if word in known), None)
    if place is None and arguments[0].startswith("-"):
        # A misspelt method among the options?
        near = next((word for word in arguments if difflib.get_close_matches(word, known, cutoff=0.8)), None)
        if near is not None:
            choose(near, known, "method")
        raise ConfigError(
            f"no METHOD among {' '.join(arguments)!r}: expected onestep train METHOD [options]; onestep --help lists "
            "the methods"
        )
    place = place or 0
    return [arguments[place], *arguments[:place], *arguments[place + 1 :]]


def _data(preset: Preset, place: argparse.Namespace) -> tuple[Dataset, Path, Method | None]:
    """Data, the folder of the run, and the options saved there if it holds a run of the method to resume.

    The data are those of the saved run, if the data given have its name, or are a new place of its images.
    """
    chosen, folder = image_options(place), place.folder
    data = None
    if folder is None:
        data = open_dataset(place.data or DEFAULT_DATASET, track=track, **chosen)
        folder = Path(f"runs/{preset.name}-{data.name}")
    if not (place.resume and _holds_run(folder)):
        return data or open_dataset(place.data or DEFAULT_DATASET, track=track, **chosen), folder, None
    method, name, options = options_of_run(folder)
    if find_preset(method) is not preset:
        return data or open_dataset(place.data or name, track=track, **chosen), folder, None
    if data is None:
        source = read_config(folder).get("source")
        moved = source is not None and place.data is not None and is_place(place.data)
        if moved or place.data in (None, name, (source or {}).get("name")):
            new = place.data if moved else None
            data = data_of_run(folder, name, new, source, track=track, **chosen)
        else:
            data = open_dataset(place.data, track=track, **chosen)
    return data, folder, options if data.name == name else None


def _holds_run(folder: Path) -> bool:
    return folder.is_dir() and latest_checkpoint(folder) is not None


def _used(arguments: Sequence[str], options: Method) -> None:
    """Refuse options of a teacher that no training would use."""
    if not options.teacher_from:
        return
    # With the exact score the teacher's network still counts: it is the fake score's.
    used = "--teacher.network." if options.teacher_from == EXACT else "--teacher-from"
    for word in arguments:
        if word.startswith("--teacher.") and not word.startswith(used):
            raise ConfigError(
                f"{word} with --teacher-from {options.teacher_from}: that teacher is not trained any more, so leave "
                "one of the two out"
            )


def _kept(folder: Path, run: Run, then: str) -> int:
    total = run.options.training.steps
    try:
        save_checkpoint(folder, run.state)
    except OSError as error:
        return _failed(error, folder, total)
    return fail(f"interrupted; {folder} keeps {run.state.step} of {total} updates, {then}", status=130)


def _still_there(folder: Path, total: int) -> str:
    """What an error of the disk left in the folder."""
    try:
        step = read_run(folder).step
    except (OneStepError, OSError):
        return f"; {folder} holds no checkpoint to resume from"
    return f"; {folder} keeps {step} of {total} updates, --resume continues from there"


def _failed(error: OSError, folder: Path, total: int) -> int:
    return fail(f"{reason(error)}{_still_there(folder, total)}", status=1)


def run_to_end(run: Run, folder: Path) -> int | None:
    """Train a run to its last update, its teacher first, and show the progress; the exit status if it was stopped."""
    total = run.options.training.steps
    if run.options.advice(run.data):
        say(f"note: {run.options.advice(run.data)}")
    if run.finished:
        say(f"{folder} is complete: {run.state.step} of {total} updates")
        return None
    with writing_into(folder, run.state):
        # What cannot be written to is found out before a teacher is trained.
        pass
    ahead = run.ahead()
    if ahead:
        say("before the first update:" if run.state.step == 0 else "before training goes on:")
        say_all(f"  {line}" for line in ahead)
    teacher = run.teacher_run
    if teacher is not None and not teacher.finished:
        steps = teacher.options.training.steps
        try:
            teaching = until_interrupted(run.teaching(track=track))
            for _ in progress(teaching, done=teacher.state.step, total=steps, title=f"teacher on {run.data.name}"):
                pass
        except Stopped:
            return _kept(run.teacher_folder or folder, teacher, "the same command continues it")
        except OSError as error:
            return _failed(error, run.teacher_folder or folder, steps)
    try:
        updates = until_interrupted(run.updates(folder, track=track))
        title, shown = f"{run.name} on {run.data.name}", run.options.monitors or None
        for _ in progress(updates, done=run.state.step, total=total, title=title, shown=shown):
            pass
    except Stopped:
        return _kept(folder, run, "--resume continues it")
    except OSError as error:
        return _failed(error, folder, total)
    return None


def main(arguments: Sequence[str]) -> int:
    """Parse, train, print."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say(help_text())
        return 0
    arguments = _method_first(arguments)
    name, preset = arguments[0], find_preset(arguments[0])
    place, rest = _place(arguments[1:])
    if place.resume and place.folder is not None and place.data is None and not _holds_run(place.folder):
        raise ConfigError(
            f"{place.folder} holds no checkpoint to resume, so its data and options are not known: give --data and the "
            "options to start a new run there"
        )
    data, folder, saved = _data(preset, place)
    default = preset.options(data) if saved is None else saved
    method = options(
        type(default),
        rest,
        prog=f"onestep train {name}",
        description=f"{preset.summary}. Defaults are those for --data {data.name}. "
        f"{_WORDS if default.generates else ''}More: onestep train --help.",
        default=default,
    )
    _used(rest, method)
    use_threads()
    if place.resume and not _holds_run(folder):
        say(f"{folder} holds no checkpoint: starting a new run")
    run = resume_or_start(folder, name, data, method, resume=place.resume, device=choose_device(place.device))
    was_finished = run.finished
    status = run_to_end(run, folder)
    if status is not None or was_finished:
        return status or 0
    done = f"{folder}: {run.options.training.steps} updates in {run.seconds:.0f} s. Next: "
    if run.options.generates:
        say(f"{done}onestep sample {folder}, onestep evaluate {folder}")
        return 0
    drifting = f"onestep train drifting --encoder {folder}"
    say(f"{done}{drifting if run.data.classes is None else f'onestep evaluate {folder}, {drifting}'}")
    show_encoder(run, folder)
    return 0
