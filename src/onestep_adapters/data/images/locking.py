"""A lock between processes that is waited for, and that ends with the process that holds it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onestep_adapters.files import LockedError, one_writer

_PAUSE = 0.05
"""Seconds between two tries."""


@contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of ``file`` (:func:`~onestep_adapters.files.one_writer`); wait while another process holds it.

    Args:
        file: in a folder that exists; created if it is not there.
        waiting: called once if the lock is not free.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "lock")):
        ...     print("alone")
        alone
    """
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(one_writer(file))
                break
            except LockedError:
                if not told:
                    waiting()
                told = True
                time.sleep(_PAUSE)
        yield
