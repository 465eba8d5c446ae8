"""Checkpoints. A crash at any time leaves a complete checkpoint, and the errors say what is damaged.

    folder/step-000500.safetensors    tensors: network.*, ema.*, optimizer.*, generator.state, kept.*, and for each
                                      companion companion.NAME.* and companion_optimizer.NAME.*
    folder/step-000500.json           format, step, method, config, how each companion is trained; hashes of the frozen
                                      parameters, which are not saved (``training.base``); what the optimisers
                                      keep beside tensors; size and sha256 of the file of tensors and of the history
    folder/history.jsonl              the history, one entry a line, appended at every save (all but the last entry)
    folder/latest.json                names the current checkpoint, with size, sha256 and its files
    folder/saving.json                during a save: the files that it writes, and those that it removes
    folder/.lock                      held by the process that trains into the folder

Every file is first written under an unpredictable name, flushed to the disk and then renamed; ``latest.json`` is the
last one. After that the files of the previous checkpoint are removed, and those of an interrupted save, which
``saving.json`` names: only files that this run wrote. So ``latest.json`` always names a complete checkpoint, also after
an interruption. Every byte is under a checksum. Nothing is unpickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from onestep_adapters.files import errors_name, make_folder, partial_name, require_path, write_whole
from onestep_adapters.training.base import Hashes, tensor_hash, unchanged
from onestep_adapters.training.ema import unwrapped
from onestep_adapters.training.folder import (
    FORMAT,
    HISTORY,
    JOURNAL,
    PARTIAL,
    POINTER,
    CheckpointError,
    check_folder,
    check_same_run,
    checksum,
    is_checkpoint,
    read_description,
    read_history,
    read_json,
    read_pointer,
    unless_replaced,
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
        CheckpointError: if the folder holds another run or a later step of this one, if a module or an optimiser
            keeps something that is neither a tensor nor plain data, or if the config or the history do.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.training.state import new_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, new_state("demo", nn.Linear(2, 2))).name
        'step-000000.json'
    """
    folder = make_folder(folder)
    check_folder(folder, state)
    before = read_pointer(folder)
    previous = None if before is None else read_description(folder)[1]
    left = {*_left_by_an_interrupted_save(folder), *(() if before is None else before["files"])}
    if before is None and (folder / HISTORY).exists() and not (folder / JOURNAL).exists():
        raise CheckpointError(f"{folder / HISTORY} is not of this run: choose another folder, or move it away")
    _require_plain(state, 0 if previous is None else previous["history"]["entries"])
    stem = _free_stem(folder, state.step)
    base = _base(state)
    tensors, optimizers = _collect(state, base)
    data = save(tensors)
    partials = [partial_name(folder / f"{stem}.{kind}") for kind in ("safetensors", "json")] + [
        partial_name(folder / POINTER)
    ]
    files = [f"{stem}.json", f"{stem}.safetensors"]
    journal = {"format": FORMAT, "files": [*files, *(partial.name for partial in partials), *sorted(left)]}
    write_whole(folder / JOURNAL, json.dumps({**journal, "check": checksum(journal)}))
    description = {
        "format": FORMAT,
        "method": state.method,
        "step": state.step,
        "config": state.config,
        "history": _append_history(folder, state.history, None if previous is None else previous["history"]),
        "companions": {name: companion.trained for name, companion in state.companions.items()},
        "optimizers": optimizers,
        "base": base,
        "tensors": {
            "file": f"{stem}.safetensors",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        },
    }
    told = json.dumps(description).encode()
    pointer = {
        "format": FORMAT,
        "checkpoint": f"{stem}.json",
        "bytes": len(told),
        "sha256": hashlib.sha256(told).hexdigest(),
        "files": files,
    }
    write_whole(folder / f"{stem}.safetensors", data, partial=partials[0])
    write_whole(folder / f"{stem}.json", told, partial=partials[1])
    write_whole(folder / POINTER, json.dumps({**pointer, "check": checksum(pointer)}), partial=partials[2])
    for name in left - set(files):
        (folder / name).unlink(missing_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    return folder / f"{stem}.json"


def _require_plain(state: TrainingState, saved: int) -> None:
    """Refuse what JSON cannot hold, before a file is written; ``saved`` entries of the history are in a file."""
    for name, value in {"config": state.config, "history": state.history[saved:]}.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{name} of the state cannot be saved as JSON ({error}): expected numbers, texts, lists and mappings "
                "of them; float(x) makes a number of a tensor"
            ) from error


def _free_stem(folder: Path, step: int) -> str:
    """A name that no file has: that of the current checkpoint is needed until the pointer is replaced."""
    stem, number = f"step-{step:06d}", 1
    while any((folder / f"{stem}.{kind}").exists() for kind in ("json", "safetensors")):
        stem, number = f"step-{step:06d}-again{'' if number == 1 else number}", number + 1
    return stem


def _left_by_an_interrupted_save(folder: Path) -> list[str]:
    """The files that the journal of an interrupted save names, less those of the current checkpoint."""
    file = folder / JOURNAL
    if not file.is_file():
        return []
    try:
        content = read_json(file, ("files", "check"), limit=2**16)
    except CheckpointError:
        return []
    if content["check"] != checksum(content) or not isinstance(content["files"], list):
        return []
    pointer = read_pointer(folder)
    current = [] if pointer is None else pointer["files"]
    names = [name for name in content["files"] if is_checkpoint(name) or PARTIAL.fullmatch(str(name))]
    return [name for name in names if name not in current]


def _append_history(folder: Path, history: list[dict[str, Any]], before: dict[str, Any] | None) -> dict[str, Any]:
    """Append what is new, all but the last entry, which may still change; says what the file holds then.

    What an interrupted save appended after the current checkpoint is cut off first.
    """
    file, latest = folder / HISTORY, history[-1:]
    entries, size = (0, 0) if before is None else (before["entries"], before["bytes"])
    whole = max(len(history) - 1, 0)
    lines = "".join(json.dumps(entry) + "\n" for entry in history[entries:whole]).encode()
    if entries > whole or size == 0:
        # A run that was copied from elsewhere, or the first save.
        lines, size = "".join(json.dumps(entry) + "\n" for entry in history[:whole]).encode(), 0
        if lines:
            write_whole(file, lines)
        data = lines
    else:
        with errors_name(file), file.open("r+b") as stream:
            data = stream.read(size) + lines
            stream.seek(size)
            stream.truncate()
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())
    return {"entries": whole, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "latest": latest}


def load_checkpoint(folder: str | os.PathLike[str], state: TrainingState) -> TrainingState:
    """Load the folder's latest checkpoint into ``state``, bit-identical; after an error ``state`` is unchanged.

    Args:
        folder: as given to :func:`save_checkpoint`.
        state: built like the saved one, on any device; ``read_run(folder)`` returns the saved configuration. Its frozen
            parameters have to have the values that they had in the saved run.

    Returns:
        ``state``, restored in place.

    Raises:
        CheckpointError: if the folder holds no run, another run or a damaged checkpoint, or if the frozen parameters of
            the state are others; the message says which.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.training.state import new_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_checkpoint(folder, new_state("demo", nn.Linear(2, 2)))
        ...     load_checkpoint(folder, new_state("demo", nn.Linear(2, 2))).step
        0
    """
    folder = require_path("folder", folder)

    def read() -> tuple[Path, dict[str, Any], list[dict[str, Any]], dict[str, Tensor]]:
        file, description = read_description(folder)
        check_same_run(file, description, state)
        return file, description, read_history(folder, description), _tensors(folder, description)

    file, description, history, tensors = unless_replaced(folder, read)
    modules, optimizers = _modules(state), _optimizers(state)
    parts = _split(file, tensors, [*modules, *optimizers, "generator", "kept"])
    frozen = _frozen(file, description["base"], modules)
    for part, module in modules.items():
        parts[part] |= frozen.get(part, {})
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
    device = state.generator.device
    state.kept = {name.removeprefix("kept."): tensor.to(device) for name, tensor in parts["kept"].items()}
    state.step, state.history, state.config = description["step"], history, description["config"]
    return state


def _tensors(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    expected, damaged = description["tensors"], "restore it from a copy or start the run anew"
    if not (isinstance(expected, dict) and expected.keys() == {"file", "bytes", "sha256"}):
        raise CheckpointError(f"the checkpoint in {folder} names no file of tensors: {damaged}")
    if not is_checkpoint(expected["file"]):
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
    companions = {f"companion.{name}": unwrapped(companion.module) for name, companion in state.companions.items()}
    return {"network": unwrapped(state.network), "ema": unwrapped(state.ema), **companions}


def _optimizers(state: TrainingState) -> dict[str, tuple[Optimizer, dict[str, nn.Module]]]:
    """The optimisers of a state, by the prefix of their tensors' names, with the modules that each updates."""
    found = {"optimizer": (state.optimizer, _modules(state))}
    for name, companion in state.companions.items():
        if companion.optimizer is not None:
            found[f"companion_optimizer.{name}"] = (companion.optimizer, {"": unwrapped(companion.module)})
    return found


def _base(state: TrainingState) -> Hashes:
    """The hashes of the frozen parameters that have not changed since the run began."""
    return {part: unchanged(module, state.base.get(part, {})) for part, module in _modules(state).items()}


def _frozen(file: Path, saved: Any, modules: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """The frozen parameters of the state, by their full names; those of the checkpoint have to be the same."""
    if not (isinstance(saved, dict) and saved.keys() <= modules.keys() and all(map(_is_hashes, saved.values()))):
        raise CheckpointError(f"{file} has a damaged description of the frozen parameters: restore it from a copy")
    found: dict[str, dict[str, Tensor]] = {}
    for part, hashes in saved.items():
        own = modules[part].state_dict()
        if missing := sorted(hashes.keys() - own.keys()):
            raise CheckpointError(f"{file} was trained on frozen parameters that the {part} lacks: {missing[:3]}")
        others = [name for name, value in hashes.items() if tensor_hash(own[name]) != value]
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise CheckpointError(
                f"{file} was trained on another base: {len(others)} of {len(hashes)} frozen parameters of the {part} "
                f"differ ({shown}), and a checkpoint holds only their hashes; load the same pretrained weights first"
            )
        found[part] = {f"{part}.{name}": own[name] for name in hashes}
    return found


def _is_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _collect(state: TrainingState, base: Hashes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name but the frozen ones, and what the optimisers keep beside them, by optimiser."""
    tensors, described = {"generator.state": state.generator.get_state()}, {}
    for part, module in _modules(state).items():
        for name, tensor in module.state_dict().items():
            if name in base.get(part, {}):
                continue
            if not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{part}.{name} is a {type(tensor).__name__}, expected a tensor: a module of a run may not have "
                    "get_extra_state; keep that in a buffer"
                )
            tensors[f"{part}.{name}"] = tensor
    for part, (optimizer, owners) in _optimizers(state).items():
        described[part], kept = optimizer_state(optimizer, part, owners)
        tensors |= kept
    tensors |= {f"kept.{name}": tensor for name, tensor in state.kept.items()}
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
