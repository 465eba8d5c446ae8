"""How the teacher of a run is found. The first rule that applies is used:

1. The caller gives an object.
2. ``teacher_from="exact"``: the exact score of a 2-D toy with known modes.
3. ``teacher_from=FOLDER``: a finished run of flow matching on the same data, or a pipeline of diffusers.
4. Otherwise: a run with the options ``teacher``. It is trained before the first update and saved for other runs.

In case 4 the name of the folder has a hash of data and options. Other options therefore give another teacher, and
interrupted training of a teacher is resumed.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

TEACHERS = Path("runs/teachers")
"""Folder of all teachers, in the current folder; overridden by the environment variable ``ONESTEP_TEACHERS``."""


def teachers_home() -> Path:
    """The folder of all teachers.

    Example:
        >>> isinstance(teachers_home(), Path)
        True
    """
    return Path(os.environ.get("ONESTEP_TEACHERS", TEACHERS))


def teacher_folder(data: str, options: dict[str, Any]) -> Path:
    """The folder of a teacher: ``DATA-HASH``.

    Args:
        data: name of the data set.
        options: options of the teacher, as ``attrs.asdict`` gives them; sampling options do not change the name.

    Example:
        >>> one, other = (teacher_folder("digits", {"coupling": "optimal", "sampling_steps": n}) for n in (10, 50))
        >>> one == other
        True
    """
    return teachers_home() / f"{data}-{_hash([data, _trained(options)])}"


def cache_key(config: dict[str, Any]) -> str:
    """Name of the cache of a teacher, from the config of its run; sampling options do not change it.

    Example:
        >>> cache_key({"method": "flow-matching", "data": "digits", "options": {}})[:7]
        'digits-'
    """
    # Where the data are has no effect on the weights.
    kept = {name: value for name, value in config.items() if name != "source"}
    return f"{config['data']}-{_hash({**kept, 'options': _trained(config['options'])})}"


def cache_folder(key: str) -> Path | None:
    """The folder for results computed with a teacher, from its key; ``None`` for an empty key.

    Example:
        >>> cache_folder("") is None
        True
    """
    return teachers_home() / "made" / key if key else None


def weights_hash(module: nn.Module) -> str:
    """A hash of a network's weights (names, dtypes, shapes and bits), twelve hexadecimal digits.

    That of a network with a config of diffusers also depends on the config: the same weights with another scheduler
    are another velocity.

    Example:
        >>> one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> weights_hash(one) == weights_hash(other)
        True
    """
    config = getattr(module, "config", None)
    found = hashlib.sha256(b"" if config is None else json.dumps(config, sort_keys=True, default=repr).encode())
    for name, value in sorted(module.state_dict().items()):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + bits.numpy().tobytes())
    return found.hexdigest()[:12]


def _trained(options: dict[str, Any]) -> dict[str, Any]:
    """The options that affect the weights: all except the sampling options."""
    return {name: value for name, value in options.items() if name != "sampling_steps"}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
