"""All methods by their command-line names. Each method's file ends with its presets; this file only collects them.

A file is found by where it stands: in this folder or in the folder of a family. It needs a name ``PRESETS``.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
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


METHODS: Mapping[str, Preset] = _presets(_generators())
"""The presets of all methods that generate samples, by command-line name."""

ENCODERS: Mapping[str, Preset] = _presets(_files(pretraining))
"""The presets of all methods that train an encoder, by command-line name."""


def find_preset(name: str) -> Preset:
    """The presets of a method by its command-line name.

    Raises:
        ConfigError: if the name is unknown; the message lists the most similar names.

    Example:
        >>> find_preset("meanflow").summary
        'MeanFlow: average velocity, one step'
    """
    known = {**METHODS, **ENCODERS}
    return known[choose(name, known, "method")]
