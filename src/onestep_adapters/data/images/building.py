"""Folders that are whole or absent, and built by one process."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from onestep_adapters.data.images.locking import locked
from onestep_adapters.tracking import Track
from onestep_core.errors import OneStepError

T = TypeVar("T")


def built_once(
    folder: Path,
    opened: Callable[[Path], T | None],
    build: Callable[[Path], None],
    *,
    track: Track,
    title: str,
) -> T:
    """What ``opened`` finds in a folder, which is built first if it is absent or damaged.

    It is built in a new folder beside it and moved into place at the end. Other processes wait for the one that builds.
    What a killed process left behind is removed by the next one that builds.

    Args:
        folder: in a folder that exists.
        opened: reads the folder; ``None`` if it is absent or damaged.
        build: writes into a new, empty folder.
        track: shows that this process waits for another one.
        title: what is built, for that message: ``"decoding images"``.

    Raises:
        OneStepError: if the folder cannot be written.
    """
    found = opened(folder)
    if found is not None:
        return found

    def waiting() -> None:
        for _ in track([None], f"waiting for another process: {title}", 1):
            pass

    try:
        with locked(folder.parent / f"{folder.name}.lock", waiting):
            found = opened(folder)
            if found is None:
                _build(folder, build)
                found = opened(folder)
    except OSError as error:
        raise OneStepError(
            f"{folder.parent} cannot be written to ({error.strerror or error}): make room, or set ONESTEP_CACHE to "
            "another folder"
        ) from error
    if found is None:
        raise OneStepError(f"{folder} cannot be read after it was written: set ONESTEP_CACHE to another folder")
    return found


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """The lock is held: nobody else writes to the folder or beside it."""
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        build(partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
