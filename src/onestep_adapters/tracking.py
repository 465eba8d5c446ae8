"""Progress of slow work: its items pass through a function of the caller, which may show how many are done."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

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
