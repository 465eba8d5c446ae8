"""Estimates over independent draws, and the generators of such draws."""

import math

import attrs
import torch
from torch import Tensor

from onestep_adapters.devices import generator_on
from onestep_core.errors import ConfigError


def _finite(_: object, attribute: "attrs.Attribute[float | None]", value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"expected a finite {attribute.name}, got {value}: a row that diverged has metrics=None")


@attrs.frozen
class Estimate:
    """A number and its standard error over independent draws; ``None`` for a single draw."""

    mean: float = attrs.field(validator=_finite)
    se: float | None = attrs.field(default=None, validator=_finite)


def require_finite_rows(**sets: Tensor) -> None:
    """Refuse sets of points with NaN or infinity; a metric of them would hide how many there are.

    Raises:
        ConfigError: with the number of such rows.

    Example:
        >>> require_finite_rows(generated=torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: 1 of 2 rows of generated hold NaN or infinity: ...
    """
    for name, points in sets.items():
        broken = int((~points.isfinite()).flatten(1).any(1).sum())
        if broken:
            raise ConfigError(
                f"{broken} of {len(points)} rows of {name} hold NaN or infinity: leave them out and say how many, or "
                "find where they come from"
            )


def new_generator(generator: torch.Generator | None) -> torch.Generator:
    """A generator on the device of ``generator`` (the CPU where ``None``), seeded by one draw from it.

    Example:
        >>> one, other = (new_generator(torch.Generator().manual_seed(0)) for _ in range(2))
        >>> one.initial_seed() == other.initial_seed()
        True
    """
    device = device_of(generator)
    return generator_on(device, int(torch.randint(2**62, (), generator=generator, device=device)))


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws; the CPU where ``None``."""
    return torch.device("cpu") if generator is None else generator.device


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error of independent values.

    Raises:
        ConfigError: without a value, or if one is not finite.

    Example:
        >>> estimate([1.0, 3.0])
        Estimate(mean=2.0, se=1.0)
    """
    if not values:
        raise ConfigError("no value to estimate a mean of: expected at least one")
    x = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(x.mean()), float(x.std() / len(values) ** 0.5) if len(values) > 1 else None)
