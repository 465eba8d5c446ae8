"""The folder of a run: its current checkpoint, and the description in it."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from onestep_adapters.files import require_path
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import OneStepError

T = TypeVar("T")

FORMAT = 4
"""Version of the layout; a checkpoint of another version is refused."""

POINTER = "latest.json"
"""The file that names the current checkpoint."""

JOURNAL = "saving.json"
"""During a save, and after an interrupted one: the files that this save writes and removes."""

HISTORY = "history.jsonl"
"""The history of a run, one entry a line, in order; readable while the run trains."""

LOCK = ".lock"
"""Held by the process that trains into the folder."""

CHECKPOINT = re.compile(r"step-\d{1,19}(-again\d{0,9})?\.(safetensors|json)")
"""Names of checkpoints."""

PARTIAL = re.compile(r"[\w.-]{1,80}\.[0-9a-f]{16}\.partial")
"""Names of files that are not whole."""

_ATTEMPTS = 200
"""Readings of a checkpoint while another process replaces it."""

_LARGEST_POINTER, _LARGEST_DESCRIPTION = 2**16, 2**28
"""In bytes: larger files are damaged, and are not read."""


class CheckpointError(OneStepError):
    """A checkpoint cannot be read, or must not be written. The message says what was found and what to do."""


class SavedRun(NamedTuple):
    """The description of a run in a checkpoint, without tensors."""

    method: str
    step: int
    config: dict[str, Any]
    history: list[dict[str, Any]]


def read_run(folder: str | os.PathLike[str]) -> SavedRun:
    """Method, step, config and history of the folder's latest checkpoint; enough to build the state to load into.

    Raises:
        CheckpointError: as :func:`load_checkpoint`, short of the tensors.

    Example:
        >>> import tempfile, torch
        >>> from onestep_adapters.training import new_state, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_checkpoint(folder, new_state("demo", torch.nn.Linear(2, 2), config={"width": 2}))
        ...     read_run(folder)
        SavedRun(method='demo', step=0, config={'width': 2}, history=[])
    """
    folder = require_path("folder", folder)

    def read() -> SavedRun:
        _, description = read_description(folder)
        history = read_history(folder, description)
        return SavedRun(description["method"], description["step"], description["config"], history)

    return unless_replaced(folder, read)


def unless_replaced(folder: Path, read: Callable[[], T]) -> T:
    """What ``read`` returns. If it fails while another process replaces the checkpoint, it is called again.

    A training removes the files of the previous checkpoint, perhaps between two files that ``read`` opens.

    Args:
        folder: of the run.
        read: reads files of the current checkpoint.
    """
    for _ in range(_ATTEMPTS - 1):
        before = read_pointer(folder)
        try:
            return read()
        except (CheckpointError, OSError):
            if read_pointer(folder) == before:
                raise
    return read()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """``read_run(folder).config``.

    Raises:
        CheckpointError: as :func:`read_run`.

    Example:
        >>> import tempfile, torch
        >>> from onestep_adapters.training import new_state, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_checkpoint(folder, new_state("demo", torch.nn.Linear(2, 2), config={"width": 2}))
        ...     read_config(folder)
        {'width': 2}
    """
    return read_run(folder).config


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The JSON file of the folder's latest checkpoint, or ``None`` where there is none yet.

    Raises:
        CheckpointError: if the pointer is damaged or of another version.

    Example:
        >>> latest_checkpoint("/nowhere") is None
        True
    """
    folder = require_path("folder", folder)
    pointer = read_pointer(folder)
    return None if pointer is None else folder / pointer["checkpoint"]


def read_pointer(folder: Path) -> dict[str, Any] | None:
    """What ``latest.json`` holds, or ``None`` where there is none: the checkpoint, its size and sha256, its files.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    file = folder / POINTER
    if not os.path.lexists(file):
        return None
    if not file.is_file():
        raise CheckpointError(
            f"{file} is no regular file, expected the file that names the current checkpoint: restore it"
        )
    content = read_json(file, ("checkpoint", "bytes", "sha256", "files", "check"), limit=_LARGEST_POINTER)
    name, files = content["checkpoint"], content["files"]
    if not (isinstance(name, str) and CHECKPOINT.fullmatch(name)):
        raise CheckpointError(f"{file} names {name!r}, expected a file like step-000500.json: restore it")
    if content["check"] != checksum(content) or not (isinstance(files, list) and all(map(is_checkpoint, files))):
        raise CheckpointError(f"{file} was altered: its own checksum does not fit; restore it from a copy")
    return content


def checksum(content: dict[str, Any]) -> str:
    """Hash of a JSON object without its entry ``check``."""
    rest = {name: value for name, value in content.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_checkpoint(name: object) -> bool:
    """Whether a name is one of a checkpoint's file."""
    return isinstance(name, str) and CHECKPOINT.fullmatch(name) is not None


def check_folder(folder: str | os.PathLike[str], state: TrainingState) -> None:
    """Whether ``state`` may be saved into ``folder`` without destroying another run.

    Raises:
        CheckpointError: if the folder holds another run, or a later step of this one.

    Example:
        >>> import torch
        >>> from onestep_adapters.training import new_state
        >>> check_folder("/nowhere", new_state("demo", torch.nn.Linear(2, 2)))
    """
    if latest_checkpoint(folder) is None:
        return
    file, description = read_description(require_path("folder", folder))
    check_same_run(file, description, state)
    if description["step"] > state.step:
        raise CheckpointError(
            f"{file} is at step {description['step']}, the state at {state.step}: saving would destroy what is further "
            "on; go on from there (load_checkpoint, --resume), or choose another folder"
        )


def read_json(file: Path, fields: tuple[str, ...], *, limit: int) -> dict[str, Any]:
    """A JSON object of this format with these fields.

    Raises:
        CheckpointError: if the file is absent, damaged, larger than ``limit`` bytes, of another format, or lacks a
            field.
    """
    return parsed_json(file, read_bytes(file, limit=limit), fields)


def read_bytes(file: Path, *, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        CheckpointError: if it is absent, no regular file, or larger than ``limit`` bytes.
    """
    if not file.is_file():
        found = "is no regular file" if file.exists() else f"is missing although {POINTER} names it"
        raise CheckpointError(f"{file} {found}: restore it from a copy")
    if (size := file.stat().st_size) > limit:
        raise CheckpointError(
            f"{file} has {size} bytes, expected at most {limit}: it is damaged; restore it from a copy"
        )
    return file.read_bytes()


def parsed_json(file: Path, data: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in ``data``, with these fields.

    Raises:
        CheckpointError: as :func:`read_json`.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not JSON ({str(error)[:200]}): cut off or overwritten; restore it from a copy or start the run "
            "anew"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{file} names no format: expected a checkpoint of this library; choose another folder")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{file} has format {str(content['format'])[:20]}, expected {FORMAT}: read it with the version of onestep "
            "that wrote it"
        )
    if missing := [field for field in fields if field not in content]:
        raise CheckpointError(f"{file} lacks {missing}: restore it from a copy or start the run anew")
    return content


def read_history(folder: Path, description: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a run's history up to a checkpoint: those in ``history.jsonl``, and the latest ones beside it.

    Raises:
        CheckpointError: if the file lacks a part or was altered.
    """
    kept = description["history"]
    file, size = folder / HISTORY, kept["bytes"]
    data = b""
    if size:
        if not file.is_file():
            found = "no regular file" if file.exists() else "missing"
            raise CheckpointError(f"{file} is {found}, expected {size} bytes of history: restore it from a copy")
        with file.open("rb") as stream:
            data = stream.read(size)
    if hashlib.sha256(data).hexdigest() != kept["sha256"]:
        raise CheckpointError(
            f"the first {size} bytes of {file} are not those that were written: altered or cut off; restore it from a "
            "copy"
        )
    return [*(json.loads(line) for line in data.splitlines()), *kept["latest"]]


def read_description(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The latest checkpoint's JSON file and what it holds.

    Raises:
        CheckpointError: if the folder is absent, not a run, or its JSON is damaged.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {found}, expected the folder of a run: check the path")
    pointer = read_pointer(folder)
    if pointer is None:
        names = sorted(path.name for path in folder.iterdir())
        if JOURNAL in names:
            raise CheckpointError(
                f"{folder} has no {POINTER}: the run was interrupted before its first checkpoint was complete; "
                "start it anew"
            )
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise CheckpointError(
            f"{folder} is not a run: it holds {shown}, expected {POINTER}; give the folder that the training wrote to"
        )
    file = folder / pointer["checkpoint"]
    data = read_bytes(file, limit=_LARGEST_DESCRIPTION)
    fields = (*SavedRun._fields, "companions", "optimizers", "base", "tensors")
    content = parsed_json(file, data, fields)
    if len(data) != pointer["bytes"] or hashlib.sha256(data).hexdigest() != pointer["sha256"]:
        raise CheckpointError(f"{file} is not the file that {POINTER} names: altered; restore it from a copy")
    return file, content


def check_same_run(file: Path, description: dict[str, Any], state: TrainingState) -> None:
    """Whether a checkpoint and ``state`` have the same method, config and companions.

    Raises:
        CheckpointError: if not; names what differs.
    """
    if description["method"] != state.method:
        raise CheckpointError(
            f"{file} is a run of {description['method']!r}, the state is one of {state.method!r}: choose another "
            "folder, or build the state for that method"
        )
    saved, config = description["config"], state.config
    if saved not in (config, state.replaced):
        differing = sorted(key for key in saved.keys() | config.keys() if saved.get(key, ...) != config.get(key, ...))
        values = "; ".join(f"{key}: {saved.get(key)!r} saved, {config.get(key)!r} given" for key in differing)
        raise CheckpointError(
            f"{file} was made with another config ({values}): build the state from read_config(folder), or choose "
            "another folder"
        )
    saved, own = description["companions"], {name: companion.trained for name, companion in state.companions.items()}
    if saved != own:
        raise CheckpointError(
            f"{file} was made with the companions {saved}, the state has {own}: give new_state the same companions, or "
            "choose another folder"
        )
