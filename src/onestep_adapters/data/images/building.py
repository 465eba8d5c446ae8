"""Folders of computed files: whole or absent, built by one process, every byte under a checksum."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from onestep_adapters.data.images.locking import locked
from onestep_adapters.files import write_whole
from onestep_adapters.tracking import Track
from onestep_core.errors import OneStepError

T = TypeVar("T")

_INDEX = "index.json"
_BLOCK = 2**24
"""Bytes under one checksum."""


def built_once(
    folder: Path,
    opened: Callable[[dict[str, Any]], T],
    build: Callable[[Path], dict[str, Any]],
    *,
    track: Track,
    title: str,
    variable: str = "ONESTEP_CACHE",
) -> T:
    """What ``opened`` makes of a folder, which is built first if it is absent or damaged.

    It is built in a new folder beside it and moved into place at the end. Other processes wait for the one that builds.
    What a killed process left behind is removed by the next one that builds. A damaged folder is named in a warning.

    Args:
        folder: its parents are created.
        opened: takes the facts that ``build`` returned, and opens the files of the folder.
        build: writes files into a new, empty folder; returns facts in the form of JSON.
        track: shows that this process waits for another one.
        title: what is built, for that message: ``"decoding images"``.
        variable: the environment variable that names another place, for errors.

    Raises:
        OneStepError: if the folder cannot be written.
    """
    facts = sealed(folder)
    if facts is not None:
        return opened(facts)

    def waiting() -> None:
        for _ in track([None], f"waiting for another process: {title}", 1):
            pass

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f"{folder.name}.lock", waiting):
            facts = sealed(folder)
            if facts is None:
                if folder.exists():
                    warnings.warn(f"{folder} is damaged: it is made again", stacklevel=2)
                _build(folder, build)
                facts = sealed(folder)
    except OSError as error:
        if error.filename is not None and folder.parent not in Path(error.filename).parents:
            raise
        raise OneStepError(
            f"{folder.parent} cannot be written to ({error.strerror or error}): make room, or set {variable} to "
            "another folder"
        ) from error
    if facts is None:
        raise OneStepError(f"{folder} cannot be read after it was written: set {variable} to another folder")
    return opened(facts)


def sealed(folder: Path) -> dict[str, Any] | None:
    """The facts of a folder that :func:`built_once` built; ``None`` if it is absent or any byte was changed."""
    try:
        content = json.loads((folder / _INDEX).read_bytes())
        check = content.pop("check")
        files: dict[str, list[int]] = content["files"]
        # Compared before the blocks are read: another number of bytes is found at once.
        if check != _digest(content) or any((folder / name).stat().st_size != sums[0] for name, sums in files.items()):
            return None
        return content["facts"] if all(sums == _sums(folder / name) for name, sums in files.items()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """The lock is held: nobody else writes to the folder or beside it."""
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    with suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(folder)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        facts = build(partial)
        content = {"facts": facts, "files": {file.name: _sums(file) for file in sorted(partial.iterdir())}}
        write_whole(partial / _INDEX, json.dumps({**content, "check": _digest(json.loads(json.dumps(content)))}))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sums(file: Path) -> list[int]:
    """The size of a file and the CRC-32 of each block. It finds accidents, and several threads are fast."""
    size = file.stat().st_size

    def one(start: int) -> int:
        with file.open("rb") as stream:
            stream.seek(start)
            return zlib.crc32(stream.read(_BLOCK))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return [size, *threads.map(one, range(0, size, _BLOCK))]
