"""Progress of slow work: its items pass through a function of the caller, which may show how many are done."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

Track: TypeAlias = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""``(items, title, total) -> items``: returns the same items and shows the progress."""


def untracked(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """The items, without a progress display.

    Example:
        >>> list(untracked("ab", "letters", 2))
        ['a', 'b']
    """
    return iter(items)


def titled(track: Track, title: str) -> Track:
    """The same display, with ``title`` in front of every title.

    Example:
        >>> def track(items, title, total):
        ...     print(title)
        ...     return iter(items)
        >>> list(titled(track, "meanflow")("ab", "samples", 2))
        meanflow: samples
        ['a', 'b']
    """
    return lambda items, inner, total: track(items, f"{title}: {inner}", total)


@contextlib.contextmanager
def counting(track: Track, title: str, total: int) -> Iterator[Track]:
    """One display for the items of several loops: gives the function that their items pass through.

    Example:
        >>> def track(items, title, total):
        ...     for done, item in enumerate(items, 1):
        ...         yield item
        ...         print(f"{title} {done}/{total}")
        >>> with counting(track, "draws", 3) as each:
        ...     found = [*each("ab", "", 2), *each("c", "", 1)]
        draws 1/3
        draws 2/3
        draws 3/3
    """
    shown = track(range(total), title, total)
    next(shown, None)

    def each(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for item in items:
            yield item
            next(shown, None)

    try:
        yield each
    finally:
        getattr(shown, "close", lambda: None)()


class Phase(NamedTuple):
    """How far a phase is, for a display in another process: its title, and how many of its parts are done."""

    title: str
    done: int
    total: int


def told(tell: Callable[[Phase], None]) -> Track:
    """A display that tells how far a phase is, at its start and after each part.

    Example:
        >>> list(told(print)("ab", "pairs", 2))
        Phase(title='pairs', done=0, total=2)
        Phase(title='pairs', done=1, total=2)
        Phase(title='pairs', done=2, total=2)
        ['a', 'b']
    """

    def track(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        tell(Phase(title, 0, total))
        for done, item in enumerate(items, 1):
            yield item
            tell(Phase(title, done, total))

    return track
