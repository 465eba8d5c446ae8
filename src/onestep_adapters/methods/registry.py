"""All methods by their command-line names. Each method's file ends with its presets; this file only collects them.

A file is found by where it stands: in this folder or in the folder of a family. It needs a name ``PRESETS``. A file of
your own is added by :func:`use_methods`, or by ``onestep --with FILE``.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from onestep_adapters.methods import (
    average_velocity,
    consistency,
    distillation,
    drifting,
    flow_matching,
    matching,
    pretraining,
)
from onestep_adapters.methods.presets import Preset
from onestep_adapters.names import choose
from onestep_core.errors import ConfigError

FAMILIES = (average_velocity, consistency, distillation, matching, drifting)
"""Folders of methods, in the order of the tables. Within a folder the order is that of the file names."""


def _generators() -> Iterator[ModuleType]:
    yield flow_matching
    for family in FAMILIES:
        yield from _files(family)


def _files(family: ModuleType) -> Iterator[ModuleType]:
    for _, name, _ in iter_modules(family.__path__, f"{family.__name__}."):
        yield import_module(name)


def _presets(files: Iterable[ModuleType]) -> dict[str, Preset]:
    return {preset.name: preset for file in files for preset in getattr(file, "PRESETS", ())}


_METHODS = _presets(_generators())

METHODS: Mapping[str, Preset] = _METHODS
"""The presets of all methods that generate samples, by command-line name."""

ENCODERS: Mapping[str, Preset] = _presets(_files(pretraining))
"""The presets of all methods that train an encoder, by command-line name."""


FILES = "ONESTEP_METHODS"
"""Environment variable: files of methods of your own, separated as in ``PATH``. Processes that are started have them,
too."""


def use_methods(file: str | Path) -> tuple[Preset, ...]:
    """Add the methods of a Python file to :data:`METHODS`: then every function and command knows their names.

    The file is run. It needs a name ``PRESETS``, a tuple of :class:`Preset`. A file that was added is not run again.
    The methods are known in this process and in those that it starts; nothing is remembered after its end.

    Raises:
        ConfigError: if there is no such file, if it has no presets, or if one has the name of another method.
    """
    path = Path(file).expanduser().resolve()
    name = f"onestep_methods_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name].PRESETS
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"{file} is no Python file: expected one with methods, PRESETS = (Preset(...),)")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        presets = _own(file, getattr(module, "PRESETS", None))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        raise ConfigError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    _METHODS.update((preset.name, preset) for preset in presets)
    known = os.environ.get(FILES, "").split(os.pathsep)
    os.environ[FILES] = os.pathsep.join(dict.fromkeys([*filter(None, known), str(path)]))
    return presets


def _own(file: str | Path, presets: object) -> tuple[Preset, ...]:
    if not isinstance(presets, tuple | list) or not presets or not all(isinstance(x, Preset) for x in presets):
        raise ConfigError(f"{file} has PRESETS = {presets!r}: expected a tuple of Preset, one for each method")
    for preset in presets:
        if preset.name in METHODS or preset.name in ENCODERS:
            raise ConfigError(f"{file} has a method {preset.name!r}, and there is one of this name: choose another")
    return tuple(presets)


def use_known_files() -> None:
    """Add the files that :data:`FILES` names."""
    for file in filter(None, os.environ.get(FILES, "").split(os.pathsep)):
        use_methods(file)


def find_preset(name: str) -> Preset:
    """The presets of a method by its command-line name.

    Raises:
        ConfigError: if the name is unknown; the message lists the most similar names. A method of your own has to be
            added first, by :func:`use_methods` or ``onestep --with FILE``.

    Example:
        >>> find_preset("meanflow").summary
        'MeanFlow: average velocity, one step'
    """
    known = {**METHODS, **ENCODERS}
    try:
        return known[choose(name, known, "method")]
    except ConfigError as error:
        raise ConfigError(f"{error}; a method of your own is added by --with FILE, or use_methods(FILE)") from None
