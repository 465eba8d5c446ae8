"""Progress of trainings and of what comes before and after them: bars on a terminal, plain lines elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from onestep_adapters.cli.terminal import console, say
from onestep_adapters.tracking import Phase
from onestep_core.errors import MissingExtraError

try:
    from rich.console import RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("the command line needs tyro and rich: pip install 'onestep[cli]'") from error

SECONDS = 5.0
"""Seconds between two plain lines of one task."""


def track(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Pass items through and show how many of them are done."""
    if not console.is_terminal:
        start, done = time.monotonic(), 0

        def line() -> None:
            say(f"{title}  {done}/{total}  {time.monotonic() - start:.0f} s")

        say(f"{title}  0/{total}")
        with _repeated(line):
            for item in items:
                yield item
                done += 1
        if time.monotonic() - start > 1:
            line()
        return
    with _bars() as bars:
        task = bars.add_task(title, total=total, numbers="")
        for item in items:
            yield item
            bars.advance(task)


@contextlib.contextmanager
def _repeated(line: Callable[[], None]) -> Iterator[None]:
    """Inside, ``line`` is called every few seconds, however long one part of the work takes."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(SECONDS):
            line()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def progress(
    updates: Iterator[Any], *, done: int, total: int, title: str, shown: Sequence[str] | None = None
) -> Iterator[Any]:
    """Pass the records of a training through and show a bar with numbers; plain lines without a terminal.

    ``shown`` names the numbers, of which the last known value is shown; by default the loss and everything logged.
    """
    titled = ((title, record) for record in updates)
    for _, record in progress_of_many(titled, {title: (done, total)}, shown=shown):
        yield record


def progress_of_many(
    updates: Iterator[tuple[str, Any]], steps: Mapping[str, tuple[int, int]], *, shown: Sequence[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """The same for several trainings, with one bar each; ``steps`` are the updates made and wanted, by title.

    In place of a record, a training in another process may give a :class:`~onestep_adapters.tracking.Phase`: it is
    shown, and not passed on.
    """
    numbers = {title: _Numbers(shown) for title in steps}
    if not console.is_terminal:
        yield from _lines(updates, steps, numbers)
        return
    with _bars() as bars:
        tasks = {
            title: bars.add_task(title, total=total, completed=done, numbers="", start=False)
            for title, (done, total) in steps.items()
        }
        for title, record in updates:
            if isinstance(record, Phase):
                bars.update(tasks[title], numbers=_phase(record))
                continue
            bars.start_task(tasks[title])
            bars.update(tasks[title], completed=record.step, numbers=numbers[title].after(record))
            yield title, record


def _lines(
    updates: Iterator[tuple[str, Any]], steps: Mapping[str, tuple[int, int]], numbers: "Mapping[str, _Numbers]"
) -> Iterator[tuple[str, Any]]:
    widest, last = max(map(len, steps), default=0), dict.fromkeys(steps, time.monotonic())
    for title, (done, total) in steps.items():
        say(f"{title:<{widest}}  {done}/{total}")
    for title, record in updates:
        due = time.monotonic() - last[title] > SECONDS
        if isinstance(record, Phase):
            if due or record.done == 0:
                last[title] = time.monotonic()
                say(f"{title:<{widest}}  {_phase(record)}")
            continue
        line, total = numbers[title].after(record), steps[title][1]
        if due or record.step == total:
            last[title] = time.monotonic()
            say(f"{title:<{widest}}  {record.step}/{total}  {line}")
        yield title, record


def progress_of_grid(updates: Iterator[Any], *, cells: int, total: int) -> Iterator[Any]:
    """Pass the progress of many trainings in several processes through, and show one bar for all of them.

    Args:
        updates: each with a ``cell`` that has a title, the work ``made`` in it, a ``phase`` and whether it is ``done``.
        cells: number of trainings.
        total: work in all of them.
    """
    made, before, running = dict[Any, int](), dict[Any, int](), dict[Any, str]()
    finished, start, last = 0, time.monotonic(), time.monotonic()

    def noted(update: Any) -> None:
        nonlocal finished
        # What an earlier call has made says nothing about the speed of this one.
        before.setdefault(update.cell, update.made)
        made[update.cell] = max(made.get(update.cell, 0), update.made)
        if update.done:
            running.pop(update.cell, None)
            finished += 1
        else:
            running[update.cell] = update.cell.title + (f" ({update.phase})" if update.phase else "")

    if not console.is_terminal:
        for update in updates:
            noted(update)
            now, share = time.monotonic(), sum(made.values()) / max(1, total)
            if now - last > SECONDS or update.done:
                last = now
                new = share - sum(before.values()) / max(1, total)
                left = f", about {(now - start) * (1 - share) / new:.0f} s left" if new > 0.02 else ""
                doing = "; ".join(running.values())
                say(f"{finished}/{cells} trainings, {100 * share:.0f} %  {now - start:.0f} s{left}  {doing}".rstrip())
            yield update
        return
    with _bars() as bars:
        task = bars.add_task("trainings", total=100.0, numbers="")
        for update in updates:
            noted(update)
            shown = f"{finished} of {cells} finished; {'; '.join(running.values())}"
            bars.update(task, completed=round(100 * sum(made.values()) / max(1, total), 1), numbers=shown)
            yield update


def _phase(phase: Phase) -> str:
    return f"{phase.title}  {phase.done}/{phase.total}"


class _Numbers:
    """The last known value of every number; some are not logged at every update."""

    def __init__(self, shown: Sequence[str] | None) -> None:
        self._shown, self._known = shown, dict[str, float]()

    def after(self, record: Any) -> str:
        self._known |= {"loss": record.loss, **record.logs}
        names = self._known if self._shown is None else [name for name in self._shown if name in self._known]
        return "  ".join(f"{name} {self._known[name]:.3g}" for name in names)


class _Bars(Progress):
    """Bars of all tasks, and below them the numbers of each: a long line of numbers leaves the bar its place."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if numbers := task.fields.get("numbers"):
                yield Text(f"  {numbers}", style="dim", overflow="ellipsis", no_wrap=True)


_shown: list[_Bars] = []
"""The bars on the terminal: a phase inside of a training adds its bar to them."""


@contextlib.contextmanager
def _bars() -> Iterator[_Bars]:
    if _shown:
        yield _shown[0]
        return
    columns = (
        # A long title wraps, so that bar, count and times have their place.
        TextColumn("{task.description}", table_column=Column(no_wrap=False, overflow="fold")),
        BarColumn(bar_width=max(8, min(40, console.width - 60)), table_column=Column(min_width=8)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _Bars(*columns, console=console) as bars:
        _shown.append(bars)
        try:
            yield bars
        finally:
            _shown.pop()
