"""Grids in equal steps of a path's time.

A grid is a 1-D tensor in the order in which a sampler visits it: from the noise to the data.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.grids.rounding import rounded_grid
from onestep_core.precision import double
from onestep_core.protocols import Path
from onestep_core.typing import typed
from onestep_core.validators import require_count


@typed
def uniform_grid(
    steps: int,
    *,
    path: Path,
    start: float | None = None,
    end: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``steps + 1`` equidistant times from the noise end of ``path`` to its data end.

    Args:
        steps: number of solver steps, at least 1.
        path: gives the ends.
        start: first time, the path's noise end by default; inside the path's range.
        end: last time, the path's data end by default; inside the path's range.
        device: device of the result.
        dtype: type of the result.

    Raises:
        ConfigError: if ``steps`` is below 1, an end lies outside the path's range, or two times are equal in ``dtype``.

    Example:
        >>> from onestep_core.flow import Linear
        >>> uniform_grid(2, path=Linear())
        tensor([1.0000, 0.5000, 0.0000])
    """
    first = path.noise_time if start is None else start
    last = path.data_time if end is None else end
    low, high = sorted((path.data_time, path.noise_time))
    require_count("steps", steps, least=1)
    for name, value in (("start", first), ("end", last)):
        if not low <= value <= high:
            raise ConfigError(f"{name} = {value} lies outside the path's range [{low}, {high}]")
        if not math.isfinite(value):
            raise ConfigError(f"{name} = {value}: expected a finite time; give {name}, or the path a finite end")
    if first == last:
        raise ConfigError(f"a grid from {first} to {last}: expected two different times")
    return rounded_grid(
        torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu"), device=device, dtype=dtype
    )


@typed
def uniform_levels(fraction: Float[Tensor, "*count"], *, path: Path) -> Float[Tensor, "*count"]:
    """``noise_time + f (data_time - noise_time)``: equidistant times, from the noise at 0 to the data at 1.

    Args:
        fraction: position on the grid.
        path: gives the ends.

    Example:
        >>> from onestep_core.flow import Linear
        >>> uniform_levels(torch.tensor([0.0, 0.25, 1.0]), path=Linear())
        tensor([1.0000, 0.7500, 0.0000])
    """
    exact = double(fraction)
    return (path.noise_time * (1 - exact) + path.data_time * exact).to(fraction.dtype)


@typed
def central_steps(total: int, *, low: float = 0.02, high: float = 0.98) -> range:
    """``int(low total), ..., min(int(high total), total - 1)``: the steps of a grid without its two ends.

    Score gaps are evaluated at these: next to the data both scores are rough, next to the noise they carry no
    information.

    Args:
        total: steps of the whole grid, numbered from 0.
        low: share of the grid where the range begins; 0.02 as published.
        high: share where it ends.

    Raises:
        ConfigError: if no step is left, or the shares are not between 0 and 1.

    Source: Yin et al., One-step Diffusion with Distribution Matching Distillation, section 3.2,
    https://arxiv.org/abs/2311.18828; tianweiy/DMD2, ``min_step_percent`` and ``max_step_percent``.

    Example:
        >>> central_steps(1000)
        range(20, 981)
    """
    require_count("total", total, least=1)
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"shares from {low} to {high}: expected 0 <= low <= high <= 1")
    steps = range(int(low * total), min(int(high * total) + 1, total))
    if not steps:
        raise ConfigError(f"no step of {total} between the shares {low} and {high}: expected at least one")
    return steps
