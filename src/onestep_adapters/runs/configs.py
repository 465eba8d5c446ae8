"""The configuration saved in the folder of a run: method, data, options."""

import json
from typing import Any

import attrs

from onestep_adapters.data import Dataset, source_of
from onestep_adapters.methods import Method
from onestep_adapters.methods.options import from_dict
from onestep_adapters.methods.registry import find_preset
from onestep_core.errors import ConfigError


def config_of(name: str, data: Dataset, options: Method) -> dict[str, Any]:
    """The configuration of a run, as a dictionary: method, name of the data, options, and the source of the data.

    Only data sets that can be opened again have a source: see :class:`~onestep_adapters.data.dataset.Reopenable`.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> from onestep_adapters.methods import FlowMatching
        >>> sorted(config_of("flow-matching", open_dataset("checkerboard"), FlowMatching()))
        ['data', 'method', 'options']
    """
    source = source_of(data)
    found = {"method": name, "data": data.name, "options": attrs.asdict(options)}
    return found if source is None else {**found, "source": source}


def options_in(config: dict[str, Any], kind: type[Method] | None = None) -> Method:
    """The options in a configuration.

    Raises:
        ConfigError: if this version does not know the method or an option.
        KeyError: if it is not the configuration of a run.
    """
    return from_dict(type(find_preset(config["method"]).images) if kind is None else kind, config["options"])


def asked(config: dict[str, Any]) -> dict[str, Any]:
    """The user's part of a configuration, in the form of JSON: method, data, options."""
    return json.loads(json.dumps({name: config.get(name) for name in ("method", "data", "options")}))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with default values for missing options; unchanged if this version cannot read it."""
    try:
        options = options_in(config)
    except (KeyError, ConfigError):
        return config
    return {**config, "options": json.loads(json.dumps(attrs.asdict(options)))}


def extended(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The configuration with another number of updates."""
    options = config["options"]
    return {**config, "options": {**options, "training": {**options["training"], "steps": steps}}}


def dotted(options: Method) -> dict[str, Any]:
    """All options of a method by their dotted names, with values as JSON keeps them.

    Example:
        >>> from onestep_adapters.methods import FlowMatching
        >>> dotted(FlowMatching())["training.batch"]
        256
    """
    return _flat(json.loads(json.dumps(attrs.asdict(options))))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def differences(given: dict[str, Any], saved: dict[str, Any]) -> str:
    """A text that lists the options that differ between two configurations, by their dotted names."""
    one, other = (_flat(json.loads(json.dumps(config.get("options") or {}))) for config in (given, saved))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    told = [
        f"{name} is {other.get(name, 'absent')} in the folder, {one.get(name, 'absent')} in your options"
        for name in names
    ]
    return "; ".join(told) or "the options are the same"
