"""A path of the core as a component of a pipeline: written to and read from ``scheduler_config.json``."""

from collections.abc import Mapping
from typing import Any

import attrs

from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.flow.paths import Linear, NoiseScaled, Reversed, Trigonometric, VarianceExploding
from onestep_core.protocols import Path

try:
    from diffusers import ConfigMixin, SchedulerMixin
except ImportError as error:
    raise MissingExtraError("pipelines of diffusers need it: pip install 'onestep[diffusers]'") from error

_PATHS: dict[str, Any] = {
    kind.__name__: kind for kind in (Linear, Trigonometric, VarianceExploding, Reversed, NoiseScaled)
}


class SavedPath(SchedulerMixin, ConfigMixin):
    """A path with a config.

    Args:
        path: ``Linear``, ``Trigonometric``, ``VarianceExploding``, ``Reversed`` or ``NoiseScaled``; or its config.

    Raises:
        ConfigError: for another path: its function of time could not be written.

    Example:
        >>> SavedPath.from_config(SavedPath(Linear(noise_floor=0.01)).config).original
        Linear(noise_floor=0.01)
    """

    def __init__(self, path: Path | Mapping[str, Any]) -> None:
        super().__init__()
        self.original: Path = _read(path) if isinstance(path, Mapping) else path
        self.register_to_config(path=_written(self.original))


def _written(path: Path) -> dict[str, Any]:
    name = type(path).__name__
    if _PATHS.get(name) is not type(path):
        raise ConfigError(
            f"a {name} cannot be written to a file: expected one of {', '.join(_PATHS)}, or the scheduler of diffusers "
            "itself where the path came from path_of(scheduler)"
        )
    numbers = {field.name: getattr(path, field.name) for field in attrs.fields(type(path))}
    return {"name": name} | {key: _written(value) if key == "original" else value for key, value in numbers.items()}


def _read(config: Mapping[str, Any]) -> Path:
    kind = _PATHS.get(str(config.get("name")))
    if kind is None:
        raise ConfigError(f"the config names the path {config.get('name')!r}: expected one of {', '.join(_PATHS)}")
    numbers = {key: value for key, value in config.items() if key != "name"}
    return kind(**{key: _read(value) if key == "original" else value for key, value in numbers.items()})
