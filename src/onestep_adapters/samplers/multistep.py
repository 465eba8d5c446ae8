"""Sampling a trained flow map or consistency function in several evaluations.

Every sampler takes the network, the states ``z`` at the first time, the grid of times and the path. It returns the
states at the last time. To start from noise, pass ``z = path.prior(noise)``; to start in the middle, pass any state. A
grid is a sequence or tensor of times from noise to data, ``[steps + 1]``; each interval costs one network evaluation.

The stochastic samplers share one loop, :func:`noised_multistep`: jump to a time with less noise than the next time of
the grid, then add fresh noise up to the next time. They differ only in where the jump ends: at the next time itself
(:func:`multistep`), at the data end (:func:`consistency_multistep`), or in between (:func:`gamma_multistep` in
``gamma``).

The samplers draw no random numbers and keep gradients; use ``torch.no_grad()`` yourself. To save time compile the
network, not the sampler: the sampler reads the grid on the CPU.
"""

import torch
from torch import Tensor

from onestep_adapters.samplers.schedule import (
    Noise,
    Points,
    at,
    checked_grid,
    checked_landings,
    checked_points,
    drawing,
)
from onestep_core.flow.solvers import integrate
from onestep_core.flow.solvers import renoise as transition
from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction, FlowMap, Path, Renoise, Times
from onestep_core.typing import Sample, typed


@typed
def multistep(flow_map: FlowMap, z: Sample, times: Times, *, path: Path) -> Sample:
    """``z <- X(z, t, s)`` from each time of a grid to the next; deterministic, ``steps`` evaluations.

    If the grid is the two ends of the path, this is one-step sampling. A solver step is also a flow map:
    ``multistep(partial(ddim, denoiser, path=path), z, times, path=path)`` is DDIM over a grid.

    Args:
        flow_map: ``(z, t, s) -> state at s``. For an average velocity use ``flow.flow_map_from_average_velocity``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: used to check the grid. For the other direction, from data to noise, use ``flow.integrate``.

    Returns:
        States at the last time, ``[batch, *shape]``.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling with gamma = 0),
    https://arxiv.org/abs/2310.02279.

    Example:
        >>> from onestep_core.flow import Linear
        >>> multistep(lambda z, t, s: z * (s / t)[:, None], torch.ones(1, 2), [1.0, 0.5, 0.25], path=Linear())
        tensor([[0.2500, 0.2500]])
    """
    grid = checked_grid(times, z, path=path)
    return integrate(flow_map, full(z), grid.times.to(z.device))


@typed
def noised_multistep(
    flow_map: FlowMap,
    z: Sample,
    times: Times,
    landings: Times,
    *,
    path: Path,
    noise: Noise | None,
    renoise: Renoise = transition,
) -> Sample:
    """``z <- X(z, t_i, m_i)``, then noise from ``m_i`` up to ``t_{i+1}``: the loop of all stochastic samplers.

    A step with ``m_i = t_{i+1}`` needs no noise. The times may have any order; a grid whose noise level rises again is
    Restart sampling.

    Args:
        flow_map: ``(z, t, s) -> state at s``, called once per interval; or a solver step.
        z: states at the first time, ``[batch, *shape]``.
        times: start times of the jumps, then the last time, ``[steps + 1]``.
        landings: times at which the jumps end, ``[steps]``; none has more noise than the next time.
        path: gives ``alpha`` and ``sigma``.
        noise: draws ``[steps, batch, *shape]``, or a function ``(step, like) -> draw``; draw ``i`` is used after jump
            ``i``.
        renoise: ``flow.renoise`` takes into account the noise that is already in the state; ``flow.renoise_clean``
            treats the state as clean data.

    Returns:
        States at the last time, ``[batch, *shape]``.

    Raises:
        ConfigError: if there is not one landing per step, a time is not on the path, a landing has more noise than the
            time that follows it, or noise is needed but missing.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling), https://arxiv.org/abs/2310.02279; Xu et al.,
    Restart Sampling (a grid whose noise level rises again), https://arxiv.org/abs/2306.14878.

    Example:
        Jump to the data end, add noise up to ``t = 0.5``, and jump to the data end again:

        >>> from onestep_core.flow import Linear
        >>> noise = torch.zeros(2, 1, 2)
        >>> points = {"times": [1.0, 0.5, 0.0], "landings": [0.0, 0.0]}
        >>> noised_multistep(lambda z, t, s: z + 1, torch.ones(1, 2), **points, path=Linear(), noise=noise)
        tensor([[2., 2.]])
    """
    z = full(z)
    starts, angles = checked_points(times, z, path=path)
    stops = checked_landings(landings, Points(starts[1:], angles[1:]), z, path=path)
    gaps = (stops != starts[1:]).tolist()
    draw = drawing(noise, gaps)
    for step, (start, stop, then) in enumerate(zip(starts[:-1], stops, starts[1:], strict=True)):
        z = flow_map(z, at(start, z), at(stop, z))
        if gaps[step]:
            z = renoise(z, draw(step, z), at(stop, z), at(then, z), path=path)
    return z


@typed
def consistency_multistep(
    consistency: ConsistencyFunction,
    z: Sample,
    times: Times,
    *,
    path: Path,
    noise: Noise | None,
    renoise: Renoise = transition,
) -> Sample:
    """``x = f(z, t_i)``, then noise up to ``t_{i+1}``. Needs only a consistency function; ``steps`` evaluations.

    With an exact consistency function, the result of every step has the distribution of the data. More steps then
    correct earlier errors and add none. On EDM's path the estimate is treated as a state at ``sigma_min``: noise of
    variance ``t^2 - sigma_min^2`` is added, as in the released code. ``renoise=flow.renoise_clean`` treats the estimate
    as clean data and adds the variance ``t^2``.

    Args:
        consistency: ``(z, t) -> state at the data end``. For a flow map use ``flow.consistency_from_flow_map``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``. For samples end at ``path.data_time``: then no noise is added after
            the last evaluation. If the last time has noise, noise is added up to it, as in the released code.
        path: gives ``alpha``, ``sigma`` and the data end.
        noise: draws ``[steps, batch, *shape]``, or a function ``(step, like) -> draw``; draw ``i`` is used after
            evaluation ``i``. The last draw is not needed if the grid ends exactly at the data end.
        renoise: ``flow.renoise`` or ``flow.renoise_clean``, see above.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, does not run from noise to data, or has
            less noise at its last time than the path's data end; if noise is needed but missing.

    Source: Song et al., Consistency Models, algorithm 1, https://arxiv.org/abs/2303.01469; openai/consistency_models,
    ``stochastic_iterative_sampler``.

    Example:
        >>> from onestep_adapters.samplers import standard_normal
        >>> from onestep_core.flow import Linear
        >>> z = torch.ones(1, 2)
        >>> consistency_multistep(lambda z, t: 0 * z + 3, z, [1.0, 0.5, 0.0], path=Linear(), noise=standard_normal())
        tensor([[3., 3.]])
    """
    grid = checked_grid(times, z, path=path)
    end = torch.full_like(grid.times[1:], path.data_time)

    def to_the_end(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return full(consistency(z, t))

    return noised_multistep(to_the_end, z, grid.times, end, path=path, noise=noise, renoise=renoise)


@torch.no_grad()
@typed
def backward_simulation(
    consistency: ConsistencyFunction,
    z: Sample,
    times: Times,
    *,
    path: Path,
    noise: Noise | None,
    renoise: Renoise = transition,
) -> Sample:
    """The states at ``times[-1]`` that a multi-step sampler reaches by its own earlier steps; without a graph.

    A multi-step student is trained on these states, because during sampling every step starts from the result of the
    step before. Noised *data* would be a different input distribution, and the student would not learn to correct its
    own errors.

    Args:
        consistency: the student, ``(z, t) -> state at the data end``.
        z: states at the first time, ``[batch, *shape]``.
        times: of the sampler, from the noise end to the wanted time. With a single time the result is ``z``.
        path: as in :func:`consistency_multistep`; this function also raises the same errors.
        noise: as in :func:`consistency_multistep`, but the last draw is always needed.
        renoise: as in :func:`consistency_multistep`.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Source: Yin et al., Improved Distribution Matching Distillation, section 4.5, https://arxiv.org/abs/2405.14867.

    Example:
        >>> from onestep_core.flow import Linear
        >>> z, noise = torch.ones(1, 2), torch.zeros(1, 1, 2)
        >>> backward_simulation(lambda z, t: 0 * z + 4, z, [1.0, 0.5], path=Linear(), noise=noise)
        tensor([[2., 2.]])
    """
    if len(times) == 1:
        return full(z)
    return consistency_multistep(consistency, z, times, path=path, noise=noise, renoise=renoise)
