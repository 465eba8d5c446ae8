"""CTM's gamma sampling: one number between the trajectory and fresh noise at every step."""

import torch

from onestep_adapters.samplers.multistep import noised_multistep
from onestep_adapters.samplers.schedule import Noise, checked_grid
from onestep_core.flow.ratios import times_with_less_noise
from onestep_core.protocols import FlowMap, Path, Times
from onestep_core.typing import Sample, typed


@typed
def gamma_multistep(
    flow_map: FlowMap,
    z: Sample,
    times: Times,
    *,
    path: Path,
    noise: Noise | None,
    gamma: float,
    floor: float | None = None,
) -> Sample:
    """``z <- X(z, t_i, m_i)`` and noise back up to ``t_{i+1}``, where ``m_i`` has ``sqrt(1 - gamma^2)`` of its noise.

    ``gamma = 0`` is :func:`~onestep_adapters.samplers.multistep` and asks for no noise; ``gamma = 1`` lands on the data
    every time, which is :func:`~onestep_adapters.samplers.consistency_multistep`. The last jump lands on the last
    time, without noise after it. ``steps`` evaluations.

    Args:
        flow_map: ``(z, t, s) -> state at s``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: gives ``alpha`` and ``sigma``.
        noise: draws ``[steps - 1, batch, *shape]``, or ``(step, like) -> draw``; the draw of step ``i`` follows its
            jump. May be ``None`` at ``gamma = 0``.
        gamma: share of fresh noise, in [0, 1].
        floor: the noise ratio below which no jump lands, in ``sqrt(1 - gamma^2) (ratio - floor) + floor``. By default
            that of the path's data end: the released code's 0.002 on EDM's path, the paper's 0 where the data end
            is clean. ``floor=0.0`` is the paper's rule on every path.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data; if
            noise is needed and absent; if ``gamma`` or ``floor`` is out of range.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling), https://arxiv.org/abs/2310.02279; sony/ctm,
    ``sample_gamma_multistep_``.

    Example:
        >>> from onestep_adapters.samplers import standard_normal
        >>> from onestep_core.flow import Linear
        >>> z, fresh = torch.ones(1, 2), standard_normal()
        >>> still = lambda z, t, s: z * (s / t)[:, None]
        >>> gamma_multistep(still, z, [1.0, 0.5, 0.25], path=Linear(), noise=fresh, gamma=0.0)
        tensor([[0.2500, 0.2500]])
    """
    grid = checked_grid(times, z, path=path)
    landings = times_with_less_noise(grid.times[1:], gamma=gamma, path=path, floor=floor)
    landings = torch.cat([landings[:-1], grid.times[-1:]])
    return noised_multistep(flow_map, z, grid.times, landings, path=path, noise=noise)
