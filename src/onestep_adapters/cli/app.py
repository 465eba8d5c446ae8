"""The commands of ``onestep``, its help, and how a command ends."""

import os
import sys
import warnings
from typing import Any

from onestep_adapters.cli import compare, data, demo, distill, evaluate, export, sample, train
from onestep_adapters.cli.terminal import fail, filled, listed, no_memory, reason
from onestep_adapters.methods import ENCODERS, METHODS, use_methods
from onestep_adapters.names import choose
from onestep_core.errors import ConfigError, OneStepError

COMMANDS = {
    "train": train.main,
    "sample": sample.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
    "distill": distill.main,
    "export": export.main,
    "data": data.main,
    "demo": demo.main,
}

_COMMANDS = (
    ("onestep demo", "three methods on 8 x 8 digits; report and pictures (5 minutes)"),
    ("onestep train METHOD [--data D] [options]", "train and save in a run folder; --resume continues"),
    ("onestep sample RUN [options]", "draw samples of a run: arrays and a picture"),
    (
        "onestep evaluate RUN [RUN ...] [options]",
        "report: quality, cost, pass or fail against quality limits; of an encoder: probes beside pixels and a random "
        "network",
    ),
    ("onestep compare [options]", "which method? train and judge several at equal budgets; report as HTML"),
    ("onestep distill PIPELINE --method M [options]", "distil a pretrained pipeline of diffusers to one step"),
    ("onestep export RUN [options]", "write a one-step generator to a file that needs torch or ONNX alone"),
    ("onestep data PLACE [options]", "show data, such as a folder of your images, and check its files"),
)


def help_text() -> str:
    """What ``onestep --help`` prints, as wide as the terminal."""
    methods, encoders = (
        listed((name, preset.summary) for name, preset in presets.items()) for presets in (METHODS, ENCODERS)
    )
    session = (
        "A first session (about five minutes; the report is runs/first/report.md). Flow matching, in many steps, is "
        "the baseline that one-step methods are compared with:"
    )
    more = "`onestep COMMAND --help` lists all options with their defaults; for training,"
    return f"""{filled("onestep: train one-step generators, draw samples and evaluate them.")}

{listed(_COMMANDS)}

{filled("METHOD is one of (-paper: the named settings of the paper instead of those for small data)")}
{methods}
or trains an encoder, whose features a generator can use
{encoders}

{filled(session)}
  onestep train flow-matching --data 8gaussians --folder runs/baseline
  onestep train meanflow --data 8gaussians --folder runs/first
  onestep sample runs/first
  onestep evaluate runs/first --baseline runs/baseline

{filled("A method of your own, in a file (docs/guides/own-method.md); --with FILE goes with every command:")}
  onestep train my-method --with mine.py --data 8gaussians

On your own images (docs/data.md):
  onestep data folder:photos
  onestep train meanflow --data folder:photos --folder runs/photos

{filled(f"{more} `onestep train METHOD --data D --help`.")}"""


_GOES_ON = {
    "train": "--resume continues from the last checkpoint, if one was saved",
    "distill": "--resume continues from the last checkpoint, if one was saved",
    "demo": "the same command continues from the last checkpoint of each training, one every 500 updates",
    "compare": "the same command goes on; what is finished is kept",
    "data": "the same command starts anew",
}
"""What to do after Ctrl-C."""


def _note(message: Warning | str, *_: Any) -> None:
    fail(f"note: {message}")


def _without_files(words: list[str]) -> list[str]:
    """The words without every ``--with FILE``, whose methods are added."""
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, file = word.partition("=")
        if name != "--with":
            left.append(word)
            continue
        file = file if equals else next(rest, "")
        if not file:
            raise ConfigError("--with needs a file: a Python file with a method of yours, PRESETS = (Preset(...),)")
        use_methods(file)
    return left


def run(words: list[str]) -> int:
    """Run a command; returns the exit status."""
    try:
        words = _without_files(words)
    except OneStepError as error:
        return fail(str(error))
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return COMMANDS[choose(words[0], COMMANDS, "command")](words[1:])
    except OneStepError as error:
        return fail(str(error))
    except BrokenPipeError:
        # The reader of the pipe has closed it: nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(reason(error), status=1)
    except (MemoryError, RuntimeError) as error:
        told = no_memory(error)
        if told is None:
            raise
        return fail(told, status=1)
    except KeyboardInterrupt:
        return fail(f"interrupted; {_GOES_ON.get(words[0], 'the same command starts anew')}", status=130)
