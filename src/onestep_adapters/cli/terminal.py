"""What the commands share: messages, option parsing, threads."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

import attrs
import torch

from onestep_core.errors import MissingExtraError

try:
    import tyro
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("the command line needs tyro and rich: pip install 'onestep[cli]'") from error

T = TypeVar("T")

console = Console(highlight=False, soft_wrap=True)


def fail(message: str, status: int = 2) -> int:
    """Print an error to standard error; returns ``status``."""
    line = Text.assemble(("onestep:", "bold red"), f" {message}")
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    return status


def say(message: str) -> None:
    """Print a line."""
    console.print(message, markup=False)


def options(kind: type[T] | Any, arguments: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Options of an attrs class from the command line, by tyro; ``--help`` prints them and exits.

    Nested options have short names, ``--steps``. Those of a teacher have long ones, ``--teacher.training.steps``.
    """
    hints = get_type_hints(kind)
    nested = [a.name for a in attrs.fields(kind) if a.name != "teacher" and attrs.has(hints[a.name])]
    short = {name: tyro.conf.OmitArgPrefixes[hints[name]] for name in nested}
    shown = type(kind.__name__, (kind,), {"__annotations__": short, "__doc__": kind.__doc__})
    extra: dict[str, Any] = {} if default is None else {"default": shown(**_values(default))}
    return kind(**_values(tyro.cli(shown, args=list(arguments), prog=prog, description=description, **extra)))


def _values(instance: Any) -> dict[str, Any]:
    return {a.name: getattr(instance, a.name) for a in attrs.fields(type(instance))}


def use_threads() -> None:
    """Use one thread, unless the environment variable ``OMP_NUM_THREADS`` gives another number.

    Small networks gain little from threads, and one thread gives the same numbers everywhere.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
