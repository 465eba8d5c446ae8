"""The folder of a run: its current checkpoint, and the description in it."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from onestep_adapters.training.state import TrainingState
from onestep_core.errors import OneStepError

FORMAT = 2
"""Version of the layout; a checkpoint of another version is refused."""

POINTER = "latest.json"
"""The file that names the current checkpoint."""

OURS = re.compile(
    r"step-\d+(-again)?\.(safetensors|json)(\.([0-9a-f]{16}\.)?partial)?|latest\.json\.([0-9a-f]{16}\.)?partial"
)
"""Files that a save may remove: earlier checkpoints and the remains of interrupted saves."""


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
    _, description = read_description(Path(folder))
    return SavedRun(*(description[name] for name in SavedRun._fields))


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
    pointer = Path(folder) / POINTER
    if not pointer.is_file():
        return None
    name = read_json(pointer, ("checkpoint",))["checkpoint"]
    if not (isinstance(name, str) and OURS.fullmatch(name)):
        raise CheckpointError(f"{pointer} names {name!r}, expected a file like step-000500.json: restore it")
    return pointer.with_name(name)


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
    file, description = read_description(Path(folder))
    check_same_run(file, description, state)
    if description["step"] > state.step:
        raise CheckpointError(
            f"{file} is at step {description['step']}, the state at {state.step}: saving would destroy what is further "
            "on; load_checkpoint first, or choose another folder"
        )


def read_json(file: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object of this format with these fields.

    Raises:
        CheckpointError: if the file is absent, damaged, of another format, or lacks a field.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing although {POINTER} names it: restore it from a copy") from error
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not JSON ({error}): cut off or overwritten; restore it from a copy or start the run anew"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{file} names no format: expected a checkpoint of this library; choose another folder")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{file} has format {content['format']!r}, expected {FORMAT}: read it with the version of onestep that "
            "wrote it"
        )
    if missing := [field for field in fields if field not in content]:
        raise CheckpointError(f"{file} lacks {missing}: restore it from a copy or start the run anew")
    return content


def read_description(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The latest checkpoint's JSON file and what it holds.

    Raises:
        CheckpointError: if the folder is absent, not a run, or its JSON is damaged.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {found}, expected the folder of a run: check the path")
    file = latest_checkpoint(folder)
    if file is None:
        names = sorted(path.name for path in folder.iterdir())
        if any(OURS.fullmatch(name) for name in names):
            raise CheckpointError(
                f"{folder} has no {POINTER}: the run was interrupted before its first checkpoint was complete; "
                "start it anew"
            )
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise CheckpointError(
            f"{folder} is not a run: it holds {shown}, expected {POINTER}; give the folder that the training wrote to"
        )
    return file, read_json(file, (*SavedRun._fields, "companions", "optimizers", "tensors"))


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
    if saved != config:
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
