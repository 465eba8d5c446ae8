"""What the commands share: messages and threads."""

import os
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


def use_threads() -> None:
    """Use one thread, unless the environment variable ``OMP_NUM_THREADS`` gives another number.

    Small networks gain little from threads, and one thread gives the same numbers everywhere.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
