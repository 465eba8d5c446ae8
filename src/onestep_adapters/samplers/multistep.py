"""Sampling a trained flow map or consistency function in several evaluations.

Every sampler takes the network, the states ``z`` at the first time, the grid of times and the path, and returns
states at the last time. ``z`` is ``path.prior(noise)`` to start from noise, or any state to start in the middle. A
grid is a sequence or tensor of times from noise to data, ``[steps + 1]``; each interval costs one evaluation.

The stochastic ones are one loop, :func:`noised_multistep`: jump below the next time, and go back up to it with
fresh noise. Where the jump lands is all that distinguishes them: on the next time itself (:func:`multistep`), on the
data (:func:`consistency_multistep`), or in between (:func:`gamma_multistep` in ``gamma``).

Nothing is drawn, gradients are kept, and ``torch.no_grad()`` is the caller's. To save time compile the network, not
the sampler: the grid is read on the host.
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
    """``z <- X(z, t, s)`` from each time of a grid to the next: deterministic, ``steps`` evaluations.

    With the two ends as the grid this is one-step sampling. A solver step is a flow map too:
    ``multistep(partial(ddim, denoiser, path=path), z, times, path=path)`` is DDIM over a grid.

    Args:
        flow_map: ``(z, t, s) -> state at s``; of an average velocity, ``flow.flow_map_from_average_velocity``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``.
        path: to check the grid against. For the other direction, from data to noise, use ``flow.integrate``.

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
    """``z <- X(z, t_i, m_i)``, then noise from ``m_i`` up to ``t_{i+1}``: the loop of all stochastic samplers here.

    No noise is asked for where ``m_i`` is ``t_{i+1}``. Times are free otherwise: a grid that goes up again restarts.

    Args:
        flow_map: ``(z, t, s) -> state at s``, called once an interval; or a solver step.
        z: states at the first time, ``[batch, *shape]``.
        times: where the jumps start, and where the last noise leads, ``[steps + 1]``.
        landings: where the jumps land, ``[steps]``; not noisier than the next time.
        path: gives ``alpha`` and ``sigma``.
        noise: draws ``[steps, batch, *shape]``, or ``(step, like) -> draw``; the draw of step ``i`` follows its jump.
        renoise: ``flow.renoise``, which knows the noise that a state still carries, or ``flow.renoise_clean``.

    Returns:
        States at the last time, ``[batch, *shape]``.

    Raises:
        ConfigError: if there is not one landing a step, a point is not on the path, a landing is noisier than the
            time that follows it, or noise is needed and absent.

    Source: Kim et al., Consistency Trajectory Models (gamma-sampling), https://arxiv.org/abs/2310.02279; Xu et al.,
    Restart Sampling (a grid that goes up again), https://arxiv.org/abs/2306.14878.

    Example:
        All the way down, back up to where noise and data are even, and down again:

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
    """``x = f(z, t_i)``, then noise up to ``t_{i+1}``: needs the data end of a flow map only, ``steps`` evaluations.

    With an exact function every step returns the law of the data, so more of them repair errors and add none. On
    EDM's path the estimate counts as a state at ``sigma_min`` and gets the variance ``t^2 - sigma_min^2``, as in the
    released code; ``renoise=flow.renoise_clean`` takes it for clean data and adds ``t^2``.

    Args:
        consistency: ``(z, t) -> state at the data end``; of a flow map, ``flow.consistency_from_flow_map``.
        z: states at the first time, ``[batch, *shape]``.
        times: from noise to data, ``[steps + 1]``; ends at ``path.data_time`` for samples. After the last evaluation no
            noise is added then; with an end above it the state is noised up to there, as the released code does.
        path: gives ``alpha``, ``sigma`` and the data end.
        noise: draws ``[steps, batch, *shape]``, or ``(step, like) -> draw``; the draw of step ``i`` follows its
            evaluation. The last is not needed where the grid ends at the data end exactly.
        renoise: see above.

    Returns:
        States at the last time, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the grid has fewer than two times, leaves the path, or does not run from noise to data, or
            ends below the data end; if noise is needed and absent.

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
    """The states in which a sampler of several steps meets its own function at ``times[-1]``, without a graph.

    A student of several steps is trained on these: the step that is trained takes what the steps before it left, as in
    sampling. On *data* with noise, the forward process, it would be trained where it is never asked, and its own errors
    would never be corrected.

    Args:
        consistency: the student, ``(z, t) -> state at the data end``.
        z: states at the first time, ``[batch, *shape]``.
        times: of the sampler, from the noise end to the time in question, at least one: the states ``z`` themselves.
        path: see :func:`consistency_multistep`, as for the other arguments and the errors.
        noise: see there; the last draw is needed here.
        renoise: see there.

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
