"""Checkpoints that survive a crash at any instant, and say clearly what is wrong with one that did not.

    folder/step-000500.safetensors    network, EMA, optimiser and generator; memory; the opponent and its optimiser
    folder/step-000500.json           format, step, method, config, history; size and sha256 of the tensors
    folder/latest.json                which of them counts

Every file is written beside its name, flushed to the disk and moved into place, the pointer last; only then
are the files of the previous checkpoint removed. Whatever interrupts this, ``latest.json`` names a complete
checkpoint. Nothing here is unpickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from onestep_adapters.training.folder import (
    FORMAT,
    OURS,
    POINTER,
    CheckpointError,
    check_folder,
    check_same_run,
    latest_checkpoint,
    read_description,
    write_whole,
)
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import MissingExtraError

try:
    from safetensors import SafetensorError
    from safetensors.torch import load, save
except ImportError as error:
    raise MissingExtraError("checkpoints need safetensors: pip install 'onestep[training]'") from error


def save_checkpoint(folder: str | os.PathLike[str], state: TrainingState) -> Path:
    """Write ``state`` as the folder's latest checkpoint; the previous one stays readable until this one is.

    Args:
        folder: made where absent.
        state: left as it is.

    Returns:
        The checkpoint's JSON file.

    Raises:
        CheckpointError: if the folder holds another run, or a later step of this one.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.training.state import new_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, new_state("demo", nn.Linear(2, 2))).name
        'step-000000.json'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder, state)
    stem, previous = f"step-{state.step:06d}", latest_checkpoint(folder)
    if previous is not None and previous.stem == stem:
        # Its files are the ones that count until the pointer moves.
        stem += "-again"
    tensors, numbers = _collect(state)
    data = save(tensors)
    description = {
        "format": FORMAT,
        "method": state.method,
        "step": state.step,
        "config": state.config,
        "history": state.history,
        **numbers,
        "tensors": {
            "file": f"{stem}.safetensors",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        },
    }
    write_whole(folder / f"{stem}.safetensors", data)
    write_whole(folder / f"{stem}.json", json.dumps(description).encode())
    write_whole(folder / POINTER, json.dumps({"format": FORMAT, "checkpoint": f"{stem}.json"}).encode())
    for file in folder.iterdir():
        if OURS.fullmatch(file.name) and file.name not in {f"{stem}.json", f"{stem}.safetensors"}:
            file.unlink(missing_ok=True)
    return folder / f"{stem}.json"


def load_checkpoint(folder: str | os.PathLike[str], state: TrainingState) -> TrainingState:
    """Put the folder's latest checkpoint into ``state``, bit for bit; on an error ``state`` is left as it was.

    Args:
        folder: as given to :func:`save_checkpoint`.
        state: built as the saved one was, on any device; ``read_run(folder)`` says how that was.

    Returns:
        ``state``, restored in place.

    Raises:
        CheckpointError: for an absent, foreign, damaged or different run; the message says which.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.training.state import new_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_checkpoint(folder, new_state("demo", nn.Linear(2, 2)))
        ...     load_checkpoint(folder, new_state("demo", nn.Linear(2, 2))).step
        0
    """
    folder = Path(folder)
    file, description = read_description(folder)
    check_same_run(file, description, state)
    tensors = _tensors(folder, description)
    modules, optimizers = _players(state)
    if missing := sorted(optimizers.keys() - description.keys()):
        raise CheckpointError(f"{file} has no {missing}: build the state without an opponent, as the saved one was")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*modules, *optimizers, "generator")}
    known = set(parts)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    if unknown := sorted(parts.keys() - known):
        raise CheckpointError(f"{file} holds tensors of {unknown}, expected those of {sorted(known)}")
    for part, module in modules.items():
        _compare(file, part, parts[part], module)
    saved = parts["generator"].get("state")
    if saved is None or saved.shape != state.generator.get_state().shape:
        raise CheckpointError(
            f"{file} holds no state for a generator on {state.generator.device}: continue on the kind of device on "
            "which the run began"
        )
    restored = {
        part: _optimizer_state(file, part, parts[part], description[part], optimizer)
        for part, optimizer in optimizers.items()
    }
    for part, module in modules.items():
        module.load_state_dict(parts[part])
    for part, optimizer in optimizers.items():
        optimizer.load_state_dict(restored[part])
    state.generator.set_state(saved)
    state.step, state.history, state.config = description["step"], description["history"], description["config"]
    return state


def _tensors(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    expected = description["tensors"]
    file = folder / expected["file"]
    damaged = "restore it from a copy or start the run anew"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, expected {expected['bytes']} bytes of tensors: {damaged}")
    data = file.read_bytes()
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{file} has {len(data)} bytes, expected {expected['bytes']}: truncated; {damaged}")
    if (found := hashlib.sha256(data).hexdigest()) != expected["sha256"]:
        raise CheckpointError(f"{file} has sha256 {found}, expected {expected['sha256']}: altered; {damaged}")
    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error}): {damaged}") from error


def _players(state: TrainingState) -> tuple[dict[str, nn.Module], dict[str, Optimizer]]:
    """The modules and the optimisers of a state, by the names that their tensors begin with."""
    modules, optimizers = {"network": state.network, "ema": state.ema}, {"optimizer": state.optimizer}
    if state.memory is not None:
        modules["memory"] = state.memory
    if state.opponent is not None:
        modules["opponent"] = state.opponent.network
        optimizers["opponent_optimizer"] = state.opponent.optimizer
    return modules, optimizers


def _collect(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and what the optimisers keep beside them, by optimiser."""
    tensors, kept = {"generator.state": state.generator.get_state()}, {}
    modules, optimizers = _players(state)
    for part, module in modules.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    for part, optimizer in optimizers.items():
        described, numbers = optimizer.state_dict(), {}
        for index, values in described["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{part}.{index}.{name}"] = value
                else:
                    numbers[f"{index}.{name}"] = value
        kept[part] = {"groups": described["param_groups"], "numbers": numbers}
    # The format refuses tensors that share memory.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, kept


def _compare(file: Path, part: str, saved: dict[str, Tensor], module: nn.Module) -> None:
    own = module.state_dict()
    remedy = "build the network as the saved one was (read_config)"
    if missing := sorted(own.keys() - saved.keys()):
        raise CheckpointError(f"{file} lacks tensors of the {part}: {missing}; {remedy}")
    if extra := sorted(saved.keys() - own.keys()):
        raise CheckpointError(f"{file} has tensors that the {part} does not know: {extra}; {remedy}")
    for name, tensor in own.items():
        found = saved[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"{file} has {part}.{name} of {tuple(found.shape)} {found.dtype}, expected {tuple(tensor.shape)} "
                f"{tensor.dtype}: {remedy}"
            )


def _groups(file: Path, part: str, saved: list[dict[str, Any]], optimizer: Optimizer) -> list[dict[str, Any]]:
    """The saved parameter groups, with lists where JSON lost a tuple."""
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved] != [group["params"] for group in own]:
        raise CheckpointError(f"{file} has an {part} of other parameters: build the optimiser as the saved one was")
    return [
        {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in group.items()}
        for group, now in zip(saved, own, strict=True)
    ]


def _optimizer_state(
    file: Path, part: str, tensors: dict[str, Tensor], saved: dict[str, Any], optimizer: Optimizer
) -> dict[str, Any]:
    """What ``load_state_dict`` of the optimiser takes."""
    groups = _groups(file, part, saved["groups"], optimizer)
    parameters = dict(
        zip(
            (index for group in groups for index in group["params"]),
            (parameter for group in optimizer.param_groups for parameter in group["params"]),
            strict=True,
        )
    )
    restored: dict[int, dict[str, Any]] = {}
    for name, value in (tensors | saved["numbers"]).items():
        index, _, key = name.partition(".")
        parameter = parameters.get(int(index))
        fits = not isinstance(value, Tensor) or value.ndim == 0 or parameter is None or value.shape == parameter.shape
        if parameter is None or not fits:
            raise CheckpointError(f"{file} has {part}.{name}, which fits no parameter: build the optimiser as saved")
        restored.setdefault(int(index), {})[key] = value
    return {"state": restored, "param_groups": groups}
