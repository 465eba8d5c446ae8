"""Sampling by solving the probability-flow equation ``dz/dt = v(z, t)``: the many-step baseline.

Network evaluations: ``steps`` with ``flow.euler``, ``2 * steps`` with ``flow.heun`` (one less on a path whose data end
is nearly clean); ``networks.count_calls`` counts them. As in :mod:`~onestep_adapters.samplers.one_step`, no random
numbers are drawn and gradients are kept; use ``torch.no_grad()`` yourself.
"""

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from onestep_adapters.samplers.schedule import checked_grid
from onestep_core.flow.grids import uniform_grid
from onestep_core.flow.paths import prior_state
from onestep_core.flow.solvers import euler, heun, integrate
from onestep_core.protocols import Path, Velocity
from onestep_core.typing import Sample, typed


@runtime_checkable
class Method(Protocol):
    """A solver step with its velocity as first argument: ``flow.euler``, ``flow.heun`` or a function of your own."""

    def __call__(self, velocity: Velocity, z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        """The state at ``s``."""
        ...


@typed
def sample_ode(velocity: Velocity, noise: Sample, *, path: Path, steps: int, method: Method = heun) -> Sample:
    """Integrate ``velocity`` from the path's noise end to its data end in ``steps`` equal steps.

    Args:
        velocity: ``(z, t) -> dz/dt``; called ``2 * steps`` times with the default method.
        noise: standard normal, ``[batch, *shape]``; the initial state is ``sigma(noise_time) noise``.
        path: gives the two ends and the scale of the noise.
        steps: number of steps, at least 1. On a path whose time is the noise level, equal steps are inefficient: use
            ``flow.integrate`` with ``flow.karras_grid`` there.
        method: solver step, ``(velocity, z, t, s) -> state at s``. The last step is ``flow.euler`` if the path's data
            end has little noise, but not none (variance preserving, EDM's): a velocity computed from a denoiser is
            multiplied by a large factor there. At an end without noise such a velocity is not finite: there an
            evaluation that is not finite counts as the one before it, so that ``flow.heun`` becomes ``flow.euler``.

    Returns:
        Samples, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if ``steps`` is below 1, or an end of the path is infinite.

    Source: Karras et al., Elucidating the Design Space, algorithm 1, https://arxiv.org/abs/2206.00364.

    Example:
        A velocity that moves every state to 3:

        >>> import torch
        >>> from onestep_core.flow import Linear, euler
        >>> noise = torch.ones(1, 2)
        >>> sample_ode(lambda z, t: noise - 3.0, noise, path=Linear(), steps=4, method=euler)
        tensor([[3., 3.]])
    """
    start = prior_state(path, noise)
    grid = uniform_grid(steps, path=path, dtype=start.dtype)
    points = checked_grid(grid, start, path=path)
    grid = grid.to(start.device)
    if not points.nearly_clean:
        return integrate(partial(method, velocity), start, grid)
    last = partial(method, _bounded(velocity)) if points.clean else partial(euler, velocity)
    before = integrate(partial(method, velocity), start, grid[:-1]) if steps > 1 else start
    return integrate(last, before, grid[-2:])


def _bounded(velocity: Velocity) -> Velocity:
    """The velocity, of which an evaluation that is not finite counts as the one before it."""
    found: list[Tensor] = []

    def bounded(z: Tensor, t: Tensor, /) -> Tensor:
        answer = velocity(z, t)
        if found:
            answer = torch.where(answer.isfinite(), answer, found[-1])
        found.append(answer)
        return answer

    return bounded
