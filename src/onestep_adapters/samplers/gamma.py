"""CTM's gamma sampling. One number, ``gamma``, sets the share of fresh noise at every step."""

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
    """``z <- X(z, t_i, m_i)``, then fresh noise up to ``t_{i+1}``; ``gamma`` sets the share of fresh noise.

    The noise ratio at ``m_i`` is ``sqrt(1 - gamma^2)`` times the noise ratio at ``t_{i+1}`` (see ``floor``).
    ``gamma = 0`` equals :func:`~onestep_adapters.samplers.multistep` and needs no noise. With ``gamma = 1`` every jump
    ends at clean data, which equals :func:`~onestep_adapters.samplers.consistency_multistep`. The last jump ends at the
    last time, and no noise is added after it. ``steps`` network evaluations.

    Args:
        flow_map: ``(z, t, s) -> state at s``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: gives ``alpha`` and ``sigma``.
        noise: draws ``[steps - 1, batch, *shape]``, or a function ``(step, like) -> draw``; draw ``i`` is used after
            jump ``i``. May be ``None`` if ``gamma = 0``.
        gamma: share of fresh noise, in [0, 1].
        floor: smallest noise ratio at which a jump ends, in ``sqrt(1 - gamma^2) (ratio - floor) + floor``. The default
            is the noise ratio of the path's data end: 0.002 on EDM's path, as in the released code; 0 on a path with a
            clean data end. ``floor=0.0`` is the paper's rule on every path.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data; if
            noise is needed but missing; if ``gamma`` or ``floor`` is out of range.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling), https://arxiv.org/abs/2310.02279; sony/ctm,
    ``sample_gamma_multistep_``.

    Example:
        >>> from onestep_adapters.samplers import standard_normal
        >>> from onestep_core.flow import Linear
        >>> z, fresh = torch.ones(1, 2), standard_normal()
        >>> flow_map = lambda z, t, s: z * (s / t)[:, None]
        >>> gamma_multistep(flow_map, z, [1.0, 0.5, 0.25], path=Linear(), noise=fresh, gamma=0.0)
        tensor([[0.2500, 0.2500]])
    """
    grid = checked_grid(times, z, path=path)
    landings = times_with_less_noise(grid.times[1:], gamma=gamma, path=path, floor=floor)
    landings = torch.cat([landings[:-1], grid.times[-1:]])
    return noised_multistep(flow_map, z, grid.times, landings, path=path, noise=noise)
