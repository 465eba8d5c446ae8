"""What the commands share: messages and threads."""

import os
import re

import torch

from onestep_core.errors import MissingExtraError

try:
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("the command line needs tyro and rich: pip install 'onestep[cli]'") from error

console = Console(highlight=False, soft_wrap=True)


def fail(message: str, status: int = 2) -> int:
    """Print an error to standard error; returns ``status``."""
    line = Text.assemble(("onestep:", "bold red"), f" {message}")
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    return status


def reason(error: OSError) -> str:
    """What the operating system said, and the file, in one line."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def no_memory(error: Exception) -> str | None:
    """One line for an error of the memory; ``None`` for another error."""
    told = str(error)
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(told):
        return None
    size = re.search(r"allocate ([\d.]+ \w+)", told)
    asked = f" ({size[1]} asked for)" if size else ""
    return f"there is not enough memory{asked}: lower what makes it large, such as --count, --batch, --width or --size"


_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|not enough memory|size calculation overflowed|Overflow when unpacking"
)
"""What torch says; on a CPU it is a ``RuntimeError`` like any other."""


def say(message: str) -> None:
    """Print a line."""
    console.print(message, markup=False)


def use_threads() -> None:
    """Use one thread, unless the environment variable ``OMP_NUM_THREADS`` gives another number.

    Small networks gain little from threads, and one thread gives the same numbers everywhere.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
