"""What the commands share: messages and threads."""

import os
import re
import shutil
import textwrap
from collections.abc import Iterable

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


def say_all(lines: Iterable[str]) -> None:
    """Print lines; on a terminal, long ones are wrapped at words, and what follows is indented."""
    for line in lines:
        if not console.is_terminal:
            say(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrapped = textwrap.wrap(line, console.width, subsequent_indent=indent, break_on_hyphens=False)
        say("\n".join(wrapped))


def width() -> int:
    """Columns for texts: those of the terminal, or of the environment variable ``COLUMNS``; at most 110."""
    return max(40, min(110, shutil.get_terminal_size().columns))


def filled(text: str, indent: str = "", first: str | None = None) -> str:
    """A paragraph, wrapped at words.

    Example:
        >>> filled("onestep trains one-step generators", "  ", first="")
        'onestep trains one-step generators'
    """
    start = indent if first is None else first
    return textwrap.fill(
        text, width(), initial_indent=start, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def listed(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean in two columns; on a narrow terminal the meaning begins on a line of its own.

    Example:
        >>> print(listed([("--flip", "mirror half of the training images"), ("--size N", "height and width")]))
          --flip    mirror half of the training images
          --size N  height and width
    """
    rows = list(rows)
    column = 4 + max(len(name) for name, _ in rows)
    if column > 0.45 * width():
        return "\n".join(f"  {name}\n{filled(text, ' ' * 6)}" for name, text in rows)
    return "\n".join(filled(text, " " * column, first=f"  {name:<{column - 2}}") for name, text in rows)


def use_threads() -> None:
    """Use one thread, unless the environment variable ``OMP_NUM_THREADS`` gives another number.

    Small networks gain little from threads, and one thread gives the same numbers everywhere.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
