"""What every recipe lets one choose: the network and the training. Plain numbers and names, kept as JSON in the run."""

import math
from functools import partial
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs
import torch
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, DiT
from onestep_adapters.recipes.names import choose
from onestep_adapters.recipes.problems import Problem
from onestep_core import l2, mse
from onestep_core.errors import ConfigError

Distance = Literal["squared", "l2"]
"""Of a prediction and its target: the mean square, whose minimiser is the mean, or the root, which counts large errors
less."""
DISTANCES = {"squared": mse, "l2": l2}
"""By name."""

T = TypeVar("T")

PUBLISHED_SIGMA_DATA = 0.5
"""Standard deviation of the data for which the consistency papers state their noise levels."""


def positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a finite number above zero."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} = {value!r}: expected a positive, finite number")


def not_negative(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a finite number of zero or more."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{attribute.name} = {value!r}: expected zero or more, and finite")


def finite(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: neither infinite nor NaN."""
    if not math.isfinite(value):
        raise ConfigError(f"{attribute.name} = {value!r}: expected a finite number")


def count(_: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    """An attrs validator: a whole number of zero or more, small enough for a seed."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ConfigError(f"{attribute.name} = {value!r}: expected a whole number, zero or more and below 2^63")


def share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a number between zero and one."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} = {value!r}: expected a share between 0 and 1")


@attrs.frozen
class Network:
    """Which backbone, and how large."""

    backbone: Literal["mlp", "conv", "dit"] = "mlp"
    """mlp for any shape; conv and dit for images."""
    width: int = attrs.field(default=256, validator=positive)
    """Hidden width (channels of conv, of a token for dit)."""
    depth: int = attrs.field(default=3, validator=positive)
    """Residual blocks."""
    max_frequency: float = attrs.field(default=16.0, validator=positive)
    """Largest angular frequency of a time; it bounds the derivative that MeanFlow regresses on."""

    fourier: int = attrs.field(default=0, validator=count)
    """Rows of sines and cosines of the sample beside it (mlp only): with them regressions tell narrow modes apart."""

    condition: int = attrs.field(default=1, validator=[count, positive])
    """Width of the vector of times and class in units of the channels (conv only)."""

    def build(self, problem: Problem, times: int, generator: torch.Generator) -> nn.Module:
        """A network for ``problem`` with 0, 1 or 2 times; initial weights from ``generator``.

        Raises:
            ConfigError: if an image backbone is asked for data that are no images.
        """
        if self.backbone != "mlp" and len(problem.shape) != 3:
            raise ConfigError(
                f"backbone {self.backbone!r} needs images, {problem.name} has samples of {problem.shape}: mlp"
            )
        if self.fourier and self.backbone != "mlp":
            raise ConfigError(
                f"fourier = {self.fourier} beside the backbone {self.backbone!r}: only mlp has it; leave it at 0"
            )
        if self.condition != 1 and self.backbone != "conv":
            raise ConfigError(
                f"condition = {self.condition} beside the backbone {self.backbone!r}: only conv has it; leave it at 1"
            )
        make = {
            "mlp": partial(MLP, fourier=self.fourier),
            "conv": partial(ConvNet, condition=self.condition),
            "dit": DiT,
        }[self.backbone]
        return make(
            problem.shape,
            width=self.width,
            depth=self.depth,
            times=times,
            classes=problem.classes,
            max_frequency=self.max_frequency,
            generator=generator,
        )


@attrs.frozen
class Training:
    """How long and how fast."""

    steps: int = attrs.field(default=2000, validator=positive)
    """Updates."""
    batch: int = attrs.field(default=256, validator=positive)
    """Samples in an update; for drifting, of all classes together."""
    learning_rate: float = attrs.field(default=2e-3, validator=positive)
    """Peak of AdamW's learning rate; a cosine takes it to zero."""
    warmup: int = attrs.field(default=50, validator=not_negative)
    """Updates of linear warm-up."""
    ema: float = attrs.field(default=0.995, validator=share)
    """Decay of the averaged weights, which make the samples."""
    clip: float = attrs.field(default=1.0, validator=positive)
    """Largest gradient norm."""
    seed: int = 0
    """Of initial weights, data, noise and times."""
    checkpoint_every: int = attrs.field(default=500, validator=positive)
    """Updates between checkpoints."""


def check_names(options: Any) -> None:
    """Refuse a word that an option does not know, nested options too: the command line asks, Python does not.

    Raises:
        ConfigError: with the nearest words.

    Example:
        >>> check_names(Network("mpl"))
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: no backbone is called 'mpl': did you mean 'mlp'? known are conv, dit, mlp
    """
    hints = get_type_hints(type(options))
    for field in attrs.fields(type(options)):
        value = getattr(options, field.name)
        if attrs.has(type(value)):
            check_names(value)
        elif get_origin(hints[field.name]) is Literal:
            choose(str(value), get_args(hints[field.name]), field.name)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """An attrs class from what ``attrs.asdict`` and JSON made of it.

    Raises:
        ConfigError: for a field that the class does not have, or lacks: a run of another version.

    Example:
        >>> from_dict(Training, {"steps": 3}).steps
        3
    """
    if not isinstance(values, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the options of {kind.__name__} are {values!r}, expected a mapping; train the run anew")
    hints = get_type_hints(kind)
    built: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints.get(name)
        nested = next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and attrs.has(kind)), None)
        if nested is not None and not (value is None and type(None) in get_args(hint)):
            built[name] = from_dict(nested, value)
        else:
            built[name] = tuple(value) if isinstance(value, list) and get_args(hint) else value
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"options that this version does not know: {error}; train the run anew") from error
