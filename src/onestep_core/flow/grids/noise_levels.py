"""Grids of noise levels on the variance-exploding path, where the time is the noise level.

A grid is a 1-D tensor in the order in which a sampler visits it: from the noise to the data.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.grids.rounding import rounded_grid
from onestep_core.precision import double
from onestep_core.typing import typed
from onestep_core.validators import require_count

_LEVELS = 1000
"""Entries of FastGen's discrete EDM grid."""


@typed
def karras_levels(
    fraction: Float[Tensor, "*count"], *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, "*count"]:
    """``(sigma_max^(1/rho) + f (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``: noise levels, falling in ``f``.

    Args:
        fraction: position on the grid, 0 at ``sigma_max`` and 1 at ``sigma_min``.
        sigma_min: smallest level, positive.
        sigma_max: largest level.
        rho: larger values spend more steps at small levels.

    Raises:
        ConfigError: if ``0 < sigma_min < sigma_max`` and ``rho > 0`` do not hold.

    Source: Karras et al., Elucidating the Design Space, eq. 5, https://arxiv.org/abs/2206.00364.

    Example:
        >>> karras_levels(torch.tensor([0.0, 1.0], dtype=torch.float64))
        tensor([8.0000e+01, 2.0000e-03], dtype=torch.float64)
    """
    if not (0 < sigma_min < sigma_max and rho > 0):
        raise ConfigError(
            f"Karras levels from {sigma_max} to {sigma_min} with rho = {rho}: "
            "expected 0 < sigma_min < sigma_max and rho > 0"
        )
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return ((high + double(fraction) * (low - high)) ** rho).to(fraction.dtype)


@typed
def karras_grid(
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``steps`` Karras levels from ``sigma_max`` down to ``sigma_min``, then zero: ``[steps + 1]``.

    Raises:
        ConfigError: with fewer than two steps, or levels out of order.

    Example:
        >>> karras_grid(2, dtype=torch.float64)
        tensor([8.0000e+01, 2.0000e-03, 0.0000e+00], dtype=torch.float64)
    """
    require_count("steps", steps, least=2)
    fraction = torch.arange(steps, dtype=torch.float64, device="cpu") / (steps - 1)
    levels = karras_levels(fraction, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return rounded_grid(torch.cat([levels, levels.new_zeros(1)]), device=device, dtype=dtype)


@typed
def karras_times(
    index: Sequence[int] | Tensor,
    *,
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Chosen levels of the grid of ``steps`` Karras levels: 0 is ``sigma_max``, ``steps - 1`` is ``sigma_min``.

    The released consistency models and CTM name their multi-step grids so (``ts = 0, 22, 39`` of 40).

    Args:
        index: which levels, in the order in which they are visited, ``[points]``.
        steps: levels of the whole grid, at least 2.
        sigma_min: smallest level, positive.
        sigma_max: largest level.
        rho: larger values spend more steps at small levels.
        device: device of the result.
        dtype: type of the result.

    Returns:
        Levels, ``[points]``, without a zero at the end.

    Raises:
        ConfigError: with fewer than two steps, an index outside of ``0 .. steps - 1``, or levels out of order.

    Source: openai/consistency_models, ``stochastic_iterative_sampler``.

    Example:
        >>> karras_times([0, 39], steps=40, dtype=torch.float64)
        tensor([8.0000e+01, 2.0000e-03], dtype=torch.float64)
    """
    require_count("steps", steps, least=2)
    index = [int(i) for i in index]
    outside = [i for i in index if not 0 <= i < steps]
    if outside:
        raise ConfigError(f"levels {outside} of a grid of {steps}: expected indices from 0 to {steps - 1}")
    chosen = torch.tensor(index, dtype=torch.float64, device="cpu")
    levels = karras_levels(chosen / (steps - 1), sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return levels.to(device=device, dtype=dtype or torch.get_default_dtype())


@typed
def polyexponential_grid(
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sigma_min (sigma_max / sigma_min)^(f^rho)`` for ``steps`` fractions, then zero: ``[steps + 1]``.

    ``f`` falls evenly from 1 to 0. With ``rho = 1``, the default, every level is the same factor below the one before
    (k-diffusion's exponential grid).

    Args:
        steps: levels before the zero, at least 2.
        sigma_min: smallest level, positive.
        sigma_max: largest level.
        rho: larger values spend more steps at small levels.
        device: device of the result.
        dtype: type of the result.

    Raises:
        ConfigError: with fewer than two steps, or levels out of order.

    Source: crowsonkb/k-diffusion, ``get_sigmas_polyexponential``.

    Example:
        >>> polyexponential_grid(3, sigma_min=1.0, sigma_max=100.0, dtype=torch.float64)
        tensor([100.0000,  10.0000,   1.0000,   0.0000], dtype=torch.float64)
    """
    require_count("steps", steps, least=2)
    if not (0 < sigma_min < sigma_max and rho > 0):
        raise ConfigError(
            f"exponential levels from {sigma_max} to {sigma_min} with rho = {rho}: "
            "expected 0 < sigma_min < sigma_max and rho > 0"
        )
    share = torch.linspace(1, 0, steps, dtype=torch.float64, device="cpu") ** rho
    levels = (share * math.log(sigma_max / sigma_min) + math.log(sigma_min)).exp()
    return rounded_grid(torch.cat([levels, levels.new_zeros(1)]), device=device, dtype=dtype)


@typed
def vp_grid(
    steps: int,
    *,
    beta_range: float = 19.9,
    beta_min: float = 0.1,
    end: float = 1e-3,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sqrt(exp(beta_range t^2 / 2 + beta_min t) - 1)`` at ``steps`` equidistant ``t`` from 1 to ``end``, then zero.

    The noise levels of the variance-preserving process with a linear rate, as times of EDM's path: ``[steps + 1]``.

    Args:
        steps: levels before the zero, at least 2.
        beta_range: rate of the noise at ``t = 1`` less that at 0.
        beta_min: rate at ``t = 0``.
        end: last ``t``, in (0, 1).
        device: device of the result.
        dtype: type of the result.

    Raises:
        ConfigError: with fewer than two steps, rates that are not positive, or ``end`` outside (0, 1).

    Source: Song et al., Score-Based Generative Modeling through SDEs, appendix C, https://arxiv.org/abs/2011.13456;
    crowsonkb/k-diffusion, ``get_sigmas_vp``.

    Example:
        >>> vp_grid(2)
        tensor([1.5217e+02, 1.0486e-02, 0.0000e+00])
    """
    require_count("steps", steps, least=2)
    if not (beta_range > 0 and beta_min > 0 and 0 < end < 1):
        raise ConfigError(
            f"rates {beta_min} to {beta_min + beta_range} down to t = {end}: expected positive rates and 0 < end < 1"
        )
    t = torch.linspace(1, end, steps, dtype=torch.float64, device="cpu")
    levels = (beta_range * t.square() / 2 + beta_min * t).expm1().sqrt()
    return rounded_grid(torch.cat([levels, levels.new_zeros(1)]), device=device, dtype=dtype)


@typed
def discrete_levels(
    index: Int[Tensor, "*count"],
    *,
    levels: int = _LEVELS,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Entry ``index`` of the *ascending* Karras grid with ``levels`` entries: 0 is ``sigma_min``.

    FastGen draws training times as indices in ``[2, levels - 2]`` of 1000.

    Raises:
        ConfigError: with fewer than two levels, or levels out of order.

    Source: NVlabs/FastGen, ``EDMNoiseSchedule``.

    Example:
        >>> discrete_levels(torch.tensor([0, 999]), dtype=torch.float64)
        tensor([2.0000e-03, 8.0000e+01], dtype=torch.float64)
    """
    require_count("levels", levels, least=2)
    fraction = 1 - double(index) / (levels - 1)
    chosen = karras_levels(fraction, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return chosen.to(dtype or torch.get_default_dtype())


@typed
def few_step_grid(
    steps: int,
    *,
    levels: int = _LEVELS,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """FastGen's sampling grid for few-step students on EDM's path: ``[steps + 1]``, last entry zero.

    Entries of :func:`discrete_levels` at the truncated linear indices from ``levels - 2`` to 2.

    Raises:
        ConfigError: if there is no step, or there are more steps than different levels.

    Source: NVlabs/FastGen, ``EDMNoiseSchedule.get_t_list``.

    Example:
        >>> few_step_grid(1)
        tensor([79.5638,  0.0000])
    """
    require_count("steps", steps, least=1)
    require_count("levels", levels, least=5)
    if steps > levels - 4:
        raise ConfigError(
            f"a grid of {steps} steps from {levels} levels: expected at most {levels - 4}, so that no level repeats"
        )
    index = torch.linspace(levels - 2, 2, steps + 1, dtype=torch.float64, device="cpu").long()
    grid = discrete_levels(index, levels=levels, dtype=torch.float64)
    return rounded_grid(torch.cat([grid[:-1], grid.new_zeros(1)]), device=device, dtype=dtype)
