"""Checkpoints. A crash at any time leaves a complete checkpoint, and the errors say what is damaged.

    folder/step-000500.safetensors    tensors: network.*, ema.*, optimizer.*, generator.state, and for each companion
                                      companion.NAME.* and companion_optimizer.NAME.*
    folder/step-000500.json           format, step, method, config, history, how each companion is trained; what the
                                      optimisers keep beside tensors; size and sha256 of the file of tensors
    folder/latest.json                names the current checkpoint

Every file is first written under a temporary name, flushed to the disk and then renamed; ``latest.json`` is the last
one. After that the files of the previous checkpoint are removed. So ``latest.json`` always names a complete
checkpoint, also after an interruption. Nothing is unpickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from onestep_adapters.files import write_whole
from onestep_adapters.training.folder import (
    FORMAT,
    OURS,
    POINTER,
    CheckpointError,
    check_folder,
    check_same_run,
    latest_checkpoint,
    read_description,
)
from onestep_adapters.training.optimizers import decoded, load_into, optimizer_state
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import MissingExtraError

try:
    from safetensors import SafetensorError
    from safetensors.torch import load, save
except ImportError as error:
    raise MissingExtraError("checkpoints need safetensors: pip install 'onestep[training]'") from error


def save_checkpoint(folder: str | os.PathLike[str], state: TrainingState) -> Path:
    """Save ``state`` as the latest checkpoint of the folder. The previous one is kept until the new one is complete.

    Args:
        folder: created if it does not exist.
        state: not changed.

    Returns:
        The checkpoint's JSON file.

    Raises:
        CheckpointError: if the folder holds another run or a later step of this one, or if a module or an optimiser
            keeps something that is neither a tensor nor plain data.

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
        # These files are the current checkpoint until latest.json is replaced.
        stem += "-again"
    tensors, optimizers = _collect(state)
    data = save(tensors)
    description = {
        "format": FORMAT,
        "method": state.method,
        "step": state.step,
        "config": state.config,
        "history": state.history,
        "companions": {name: companion.trained for name, companion in state.companions.items()},
        "optimizers": optimizers,
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
    """Load the folder's latest checkpoint into ``state``, bit-identical; after an error ``state`` is unchanged.

    Args:
        folder: as given to :func:`save_checkpoint`.
        state: built like the saved one, on any device; ``read_run(folder)`` returns the saved configuration.

    Returns:
        ``state``, restored in place.

    Raises:
        CheckpointError: if the folder holds no run, another run or a damaged checkpoint; the message says which.

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
    modules, optimizers = _modules(state), _optimizers(state)
    parts = _split(file, _tensors(folder, description), [*modules, *optimizers, "generator"])
    for part, module in modules.items():
        _compare(file, part, parts[part], module)
    saved = parts["generator"].get("generator.state")
    if saved is None or saved.shape != state.generator.get_state().shape:
        raise CheckpointError(
            f"{file} holds no state for a generator on {state.generator.device}: continue on the kind of device on "
            "which the run began"
        )
    described = description["optimizers"]
    if not (isinstance(described, dict) and described.keys() == optimizers.keys()):
        raise CheckpointError(f"{file} does not describe {sorted(optimizers)}: restore it from a copy")
    restored = {
        part: decoded(file, part, described[part], parts[part], optimizer, owners)
        for part, (optimizer, owners) in optimizers.items()
    }
    _load_optimizers({part: optimizer for part, (optimizer, _) in optimizers.items()}, restored)
    for part, module in modules.items():
        module.load_state_dict({name.removeprefix(f"{part}."): tensor for name, tensor in parts[part].items()})
    state.generator.set_state(saved)
    state.step, state.history, state.config = description["step"], description["history"], description["config"]
    return state


def _tensors(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    expected, damaged = description["tensors"], "restore it from a copy or start the run anew"
    if not (isinstance(expected, dict) and expected.keys() == {"file", "bytes", "sha256"}):
        raise CheckpointError(f"the checkpoint in {folder} names no file of tensors: {damaged}")
    if not (isinstance(expected["file"], str) and OURS.fullmatch(expected["file"])):
        raise CheckpointError(
            f"the checkpoint in {folder} names the tensors {expected['file']!r}, expected a file like "
            f"step-000500.safetensors: {damaged}"
        )
    file = folder / expected["file"]
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


def _modules(state: TrainingState) -> dict[str, nn.Module]:
    """The modules of a state, by the prefix of their tensors' names."""
    companions = {f"companion.{name}": companion.module for name, companion in state.companions.items()}
    return {"network": state.network, "ema": state.ema, **companions}


def _optimizers(state: TrainingState) -> dict[str, tuple[Optimizer, dict[str, nn.Module]]]:
    """The optimisers of a state, by the prefix of their tensors' names, with the modules that each updates."""
    found = {"optimizer": (state.optimizer, _modules(state))}
    for name, companion in state.companions.items():
        if companion.optimizer is not None:
            found[f"companion_optimizer.{name}"] = (companion.optimizer, {"": companion.module})
    return found


def _collect(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and what the optimisers keep beside them, by optimiser."""
    tensors, described = {"generator.state": state.generator.get_state()}, {}
    for part, module in _modules(state).items():
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{part}.{name} is a {type(tensor).__name__}, expected a tensor: a module of a run may not have "
                    "get_extra_state; keep that in a buffer"
                )
            tensors[f"{part}.{name}"] = tensor
    for part, (optimizer, owners) in _optimizers(state).items():
        described[part], kept = optimizer_state(optimizer, part, owners)
        tensors |= kept
    # The format refuses tensors that share memory.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, described


def _split(file: Path, tensors: dict[str, Tensor], parts: list[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, by their full names."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    unknown = []
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        if part is None:
            unknown.append(name)
        else:
            found[part][name] = tensor
    if unknown:
        raise CheckpointError(f"{file} holds the tensors {sorted(unknown)}, expected those of {sorted(parts)} only")
    return found


def _compare(file: Path, part: str, saved: dict[str, Tensor], module: nn.Module) -> None:
    own = {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    remedy = "build the network as the saved one was (read_config)"
    if missing := sorted(own.keys() - saved.keys()):
        raise CheckpointError(f"{file} lacks tensors of the {part}: {missing}; {remedy}")
    if extra := sorted(saved.keys() - own.keys()):
        raise CheckpointError(f"{file} has tensors that the {part} does not know: {extra}; {remedy}")
    for name, tensor in own.items():
        found = saved[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"{file} has {name} of {tuple(found.shape)} {found.dtype}, expected {tuple(tensor.shape)} "
                f"{tensor.dtype}: {remedy}"
            )


def _load_optimizers(optimizers: dict[str, Optimizer], contents: dict[str, dict[str, Any]]) -> None:
    """Load all optimisers, or none if one of them fails."""
    before = {part: optimizer.state_dict() for part, optimizer in optimizers.items()}
    try:
        for part, optimizer in optimizers.items():
            load_into(optimizer, contents[part])
    except BaseException:
        for part, optimizer in optimizers.items():
            load_into(optimizer, before[part])
        raise
