"""What the commands share: messages, progress, option parsing."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

import attrs
import torch

from onestep_core.errors import MissingExtraError

try:
    import tyro
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
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

    Nested options have short names, ``--steps``, except for those of a teacher, which repeat them:
    ``--teacher.training.steps``.
    """
    hints = get_type_hints(kind)
    nested = [a.name for a in attrs.fields(kind) if a.name != "teacher" and attrs.has(hints[a.name])]
    short = {name: tyro.conf.OmitArgPrefixes[hints[name]] for name in nested}
    shown = type(kind.__name__, (kind,), {"__annotations__": short, "__doc__": kind.__doc__})
    extra: dict[str, Any] = {} if default is None else {"default": shown(**_values(default))}
    return kind(**_values(tyro.cli(shown, args=list(arguments), prog=prog, description=description, **extra)))


def _values(instance: Any) -> dict[str, Any]:
    return {a.name: getattr(instance, a.name) for a in attrs.fields(type(instance))}


def progress(
    updates: Iterator[Any], *, done: int, total: int, title: str, shown: Sequence[str] | None = None
) -> Iterator[Any]:
    """Pass the records of a training through, showing a bar with loss and monitors; plain lines without a terminal.

    ``shown`` names the numbers to show, the last known of each; loss and all that was logged by default.
    """
    numbers = _Numbers(shown)
    if not console.is_terminal:
        yield from _lines(updates, total, title, numbers)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, numbers="")
        for record in updates:
            bar.update(task, completed=record.step, numbers=numbers.after(record))
            yield record


def _lines(updates: Iterator[Any], total: int, title: str, numbers: "_Numbers") -> Iterator[Any]:
    last = time.monotonic()
    for record in updates:
        line = numbers.after(record)
        if record.step == total or time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{title}  {record.step}/{total}  {line}")
        yield record


class _Numbers:
    """The last known value of every number; some are not measured in every update."""

    def __init__(self, shown: Sequence[str] | None) -> None:
        self._shown, self._known = shown, dict[str, float]()

    def after(self, record: Any) -> str:
        self._known |= {"loss": record.loss, **record.logs}
        names = self._known if self._shown is None else [name for name in self._shown if name in self._known]
        return "  ".join(f"{name} {self._known[name]:.3g}" for name in names)


def use_threads() -> None:
    """As many threads as there are cores for this process, unless the environment says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
