"""Many-step samplers that use a denoiser: for teachers, and for the baselines of one-step methods.

The arguments are those of :mod:`~onestep_adapters.samplers.multistep`: network, states, grid, path.

- Other networks are converted to a denoiser by ``flow.denoiser_from_velocity`` or ``flow.denoiser_from_noise``.
- ``flow.clamped`` clamps the estimates of a denoiser.
- Grids: ``flow.karras_grid``, ``flow.polyexponential_grid`` and ``flow.vp_grid`` on EDM's path;
  ``flow.uniform_grid`` on every path.

Second-order steps are not defined for a step to a clean time (``sigma = 0``), and multiply the change of the estimate
by a large factor if the time is nearly clean. Therefore the last step uses ``flow.ddim``, with one evaluation, if the
noise ratio ``sigma / alpha`` of the last time is at most a tenth (``NEARLY_CLEAN``) of that of the time before. Steps
before the last one are second-order steps everywhere, as in the released code: on grids of six levels or fewer EDM's
step into the last level spreads the samples far beyond the data, so take more levels or ``step=flow.ddim``. If the
path's noise end has no signal (linear, trigonometric), ``flow.dpm_2`` has to start at a time with slightly less noise.
"""

import math

import torch
from torch import Tensor

from onestep_adapters.samplers.schedule import Noise, at, checked_grid, drawing
from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import times_with_more_noise
from onestep_core.flow.solvers import ancestral, ddim, denoised_heun, dpmpp_2m, renoise
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, DenoiserStep, Path, Times
from onestep_core.typing import Sample, typed


@typed
def sample_denoiser(
    denoiser: Denoiser,
    z: Sample,
    times: Times,
    *,
    path: Path,
    step: DenoiserStep = denoised_heun,
    noise: Noise | None = None,
    churn: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    noise_scale: float = 1.0,
) -> Sample:
    """EDM's sampler: noise may be added before a step, then ``step`` computes the state at the next time.

    With ``churn = 0`` the sampler is deterministic and solves the probability-flow equation. With ``churn > 0`` the
    noise ratio ``sigma / alpha`` is multiplied by ``1 + min(churn / steps, sqrt(2) - 1)`` before every step at which it
    lies in ``[low, high]``. Evaluations: ``steps`` with ``flow.ddim``; ``2 steps`` with ``flow.denoised_heun`` or
    ``flow.dpm_2``, and one less if the grid ends at a clean or nearly clean time.

    Args:
        denoiser: ``(z, t) -> expected data``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: gives ``alpha`` and ``sigma``.
        step: ``flow.denoised_heun`` (EDM's), ``flow.ddim`` (Euler's on EDM's path) or ``flow.dpm_2``.
        noise: draws ``[steps, batch, *shape]``, or a function ``(step, like) -> draw``; draw ``i`` is used before
            step ``i``, and only at steps that add noise.
        churn: EDM's ``S_churn``, the total over all steps; 0 adds no noise.
        low: EDM's ``S_tmin``, the smallest noise ratio at which noise is added.
        high: EDM's ``S_tmax``, the largest noise ratio at which noise is added.
        noise_scale: EDM's ``S_noise``, the standard deviation of the added noise; slightly above 1 in EDM.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data; if
            ``churn`` is negative, or noise is needed but missing; if ``step`` is not defined at the first time.

    Source: Karras et al., Elucidating the Design Space, algorithms 1 and 2, https://arxiv.org/abs/2206.00364.

    Example:
        >>> from onestep_core.flow import VarianceExploding, karras_grid
        >>> path = VarianceExploding()
        >>> start = path.prior(torch.ones(1, 2))
        >>> sample_denoiser(lambda z, t: 0 * z + 3, start, karras_grid(4), path=path)
        tensor([[3., 3.]])
    """
    grid = checked_grid(times, z, path=path)
    growth = min(churn / grid.steps, math.sqrt(2) - 1)
    starts = times_with_more_noise(grid.times[:-1], growth=growth, path=path, low=low, high=high)
    lifted = (starts != grid.times[:-1]).tolist()
    draw = drawing(noise, lifted)
    if not (grid.nearly_clean and grid.steps == 1):
        _check_first_step(step, starts[0], grid.times[1], path=path)
    z = full(z)
    for i, (t, start, s) in enumerate(zip(grid.times[:-1], starts, grid.times[1:], strict=True)):
        if lifted[i]:
            z = renoise(z, noise_scale * draw(i, z), at(t, z), at(start, z), path=path)
        last = grid.nearly_clean and i == grid.steps - 1
        z = (ddim if last else step)(denoiser, z, at(start, z), at(s, z), path=path)
    return z


@typed
def sample_ancestral(
    denoiser: Denoiser, z: Sample, times: Times, *, path: Path, noise: Noise | None, eta: float = 1.0
) -> Sample:
    """``flow.ancestral`` over a grid: DDPM's posterior for ``eta = 1``, DDIM for ``eta = 0``. ``steps`` evaluations.

    Args:
        denoiser: ``(z, t) -> expected data``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: gives ``alpha`` and ``sigma``.
        noise: draws ``[steps, batch, *shape]``, or a function ``(step, like) -> draw``; not needed if ``eta = 0``, or
            for a step to a clean time.
        eta: factor of the posterior's standard deviation, at least 0.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data; if
            noise is needed but missing, or ``eta`` is negative.

    Source: Song et al., Denoising Diffusion Implicit Models, eq. 12 and 16, https://arxiv.org/abs/2010.02502;
    crowsonkb/k-diffusion, ``sample_euler_ancestral``.

    Example:
        >>> from onestep_adapters.samplers import standard_normal
        >>> from onestep_core.flow import Linear
        >>> z = torch.ones(1, 2)
        >>> sample_ancestral(lambda z, t: 0 * z + 3, z, [1.0, 0.5, 0.0], path=Linear(), noise=standard_normal())
        tensor([[3., 3.]])
    """
    grid = checked_grid(times, z, path=path)
    noisy = [eta > 0 and not (grid.clean and i == grid.steps - 1) for i in range(grid.steps)]
    draw = drawing(noise, noisy)
    z = full(z)
    for i, (t, s) in enumerate(zip(grid.times[:-1], grid.times[1:], strict=True)):
        fresh = draw(i, z) if noisy[i] else torch.zeros_like(z)
        z = ancestral(denoiser, z, fresh, at(t, z), at(s, z), path=path, eta=eta)
    return z


@typed
def sample_dpmpp_2m(denoiser: Denoiser, z: Sample, times: Times, *, path: Path) -> Sample:
    """DPM-Solver++(2M) over a grid: second order with one evaluation per step, ``steps`` in total.

    The first step is of first order; so is the last step if it ends at a clean or nearly clean time.

    Args:
        denoiser: ``(z, t) -> expected data``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: gives ``alpha`` and ``sigma``.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data.

    Source: Lu et al., DPM-Solver++, algorithm 2, https://arxiv.org/abs/2211.01095; crowsonkb/k-diffusion,
    ``sample_dpmpp_2m``.

    Example:
        >>> from onestep_core.flow import Linear
        >>> sample_dpmpp_2m(lambda z, t: 0 * z + 3, torch.ones(1, 2), [1.0, 0.5, 0.25, 0.0], path=Linear())
        tensor([[3., 3.]])
    """
    grid = checked_grid(times, z, path=path)
    z, before, previous = full(z), None, z
    for i, (t, s) in enumerate(zip(grid.times[:-1], grid.times[1:], strict=True)):
        now, then = at(t, z), at(s, z)
        data = full(denoiser(z, now))
        if before is None or (grid.nearly_clean and i == grid.steps - 1):
            z = ddim(_known(data), z, now, then, path=path)
        else:
            z = dpmpp_2m(z, data, previous, before, now, then, path=path)
        before, previous = now, data
    return z


def _check_first_step(step: DenoiserStep, start: Tensor, then: Tensor, *, path: Path) -> None:
    """Try the first step on one number, and refuse a step that is not defined there."""
    times = (time.detach().double()[None] for time in (start, then))
    tried = step(
        _known(torch.zeros(1, 1, dtype=torch.float64)), torch.ones(1, 1, dtype=torch.float64), *times, path=path
    )
    if not bool(tried.isfinite().all()):
        name = getattr(step, "__name__", type(step).__name__)
        raise ConfigError(
            f"{name} from time {float(start)} of this path gives no finite state, because the path has no signal "
            f"there: start the grid a little nearer to the data end {path.data_time}, or take step=flow.ddim or "
            "flow.denoised_heun"
        )


def _known(data: Tensor) -> Denoiser:
    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return data

    return denoiser
