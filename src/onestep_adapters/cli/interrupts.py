"""Ctrl-C during a training: the update under way ends first, so that the state is whole."""

import signal
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """Ctrl-C was pressed, and the update under way has ended: the state is whole."""


def until_interrupted(updates: Iterator[T]) -> Iterator[T]:
    """Pass records on until Ctrl-C; the update under way still ends.

    A second Ctrl-C, or one before the first update, interrupts at once. If another handler of Ctrl-C is installed, it
    stays in place.

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
