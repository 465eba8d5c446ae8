"""What the commands share: messages, progress, option parsing."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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


class Stopped(KeyboardInterrupt):
    """Ctrl-C was pressed, and the update that was under way has ended: the state is whole."""


def until_interrupted(updates: Iterator[T]) -> Iterator[T]:
    """Pass records on until Ctrl-C, which lets the update under way end; a second Ctrl-C, or one before the first
    update, interrupts at once. Where Ctrl-C does something else already, it still does.

    Raises:
        Stopped: after the update in which Ctrl-C was pressed.
    """
    for record in updates:
        yield record
        break
    before, asked = signal.getsignal(signal.SIGINT), False
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield from updates
        return

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    try:
        signal.signal(signal.SIGINT, note)
        for record in updates:
            yield record
            if asked:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise Stopped


def progress(
    updates: Iterator[Any], *, done: int, total: int, title: str, shown: Sequence[str] | None = None
) -> Iterator[Any]:
    """Pass the records of a training through, showing a bar with loss and monitors; plain lines without a terminal.

    ``shown`` names the numbers to show, the last known of each; loss and all that was logged by default.
    """
    titled = ((title, record) for record in updates)
    for _, record in progress_of_many(titled, {title: (done, total)}, shown=shown):
        yield record


def progress_of_many(
    updates: Iterator[tuple[str, Any]], steps: Mapping[str, tuple[int, int]], *, shown: Sequence[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """Likewise for several trainings, a bar each; ``steps`` are the made and the wanted updates by title."""
    numbers = {title: _Numbers(shown) for title in steps}
    if not console.is_terminal:
        yield from _lines(updates, steps, numbers)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {
            title: bars.add_task(title, total=total, completed=done, numbers="", start=False)
            for title, (done, total) in steps.items()
        }
        for title, record in updates:
            bars.start_task(tasks[title])
            bars.update(tasks[title], completed=record.step, numbers=numbers[title].after(record))
            yield title, record


def _lines(
    updates: Iterator[tuple[str, Any]], steps: Mapping[str, tuple[int, int]], numbers: "Mapping[str, _Numbers]"
) -> Iterator[tuple[str, Any]]:
    widest, last = max(map(len, steps), default=0), dict.fromkeys(steps, time.monotonic())
    for title, (done, total) in steps.items():
        # What comes before the first update, pairs that are coupled, may take half a minute.
        say(f"{title:<{widest}}  {done}/{total}")
    for title, record in updates:
        line, total = numbers[title].after(record), steps[title][1]
        if record.step == total or time.monotonic() - last[title] > 10:
            last[title] = time.monotonic()
            say(f"{title:<{widest}}  {record.step}/{total}  {line}")
        yield title, record


class _Numbers:
    """The last known value of every number; some are not measured in every update."""

    def __init__(self, shown: Sequence[str] | None) -> None:
        self._shown, self._known = shown, dict[str, float]()

    def after(self, record: Any) -> str:
        self._known |= {"loss": record.loss, **record.logs}
        names = self._known if self._shown is None else [name for name in self._shown if name in self._known]
        return "  ".join(f"{name} {self._known[name]:.3g}" for name in names)


def use_threads() -> None:
    """One thread, unless the environment's ``OMP_NUM_THREADS`` says otherwise: threads that wait for one another cost
    more than small networks gain by them where the machine is busy, and one gives the same numbers everywhere.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
