"""The configuration that a run's folder holds: method, data, options."""

import json
from typing import Any

import attrs

from onestep_adapters.methods import Method
from onestep_adapters.methods.options import from_dict
from onestep_adapters.methods.registry import find_preset
from onestep_core.errors import ConfigError


def config_of(name: str, data: str, options: Method) -> dict[str, Any]:
    """The configuration of a run.

    Example:
        >>> from onestep_adapters.methods import FlowMatching
        >>> sorted(config_of("flow-matching", "digits", FlowMatching()))
        ['data', 'method', 'options']
    """
    return {"method": name, "data": data, "options": attrs.asdict(options)}


def options_in(config: dict[str, Any]) -> Method:
    """The options that a configuration holds.

    Raises:
        ConfigError: for a method or an option that this version does not know.
        KeyError: for a configuration of something else.
    """
    return from_dict(type(find_preset(config["method"]).images), config["options"])


def asked(config: dict[str, Any]) -> dict[str, Any]:
    """What the user asked for, as JSON keeps it: method, data, options."""
    return json.loads(json.dumps({name: config.get(name) for name in ("method", "data", "options")}))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with defaults for options it lacks; unchanged where this version cannot read it."""
    try:
        options = options_in(config)
    except (KeyError, ConfigError):
        return config
    return {**config, "options": json.loads(json.dumps(attrs.asdict(options)))}


def differences(given: dict[str, Any], saved: dict[str, Any]) -> str:
    """Options that differ between two configurations, by their dotted names."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    one, other = (flat(json.loads(json.dumps(config.get("options") or {}))) for config in (given, saved))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    told = [f"{name} is {other.get(name, 'absent')} there, {one.get(name, 'absent')} here" for name in names]
    return "; ".join(told) or "the options are the same"
