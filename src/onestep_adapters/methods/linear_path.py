"""The linear path, on which teachers predict velocities, and a velocity network as a consistency function."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from onestep_adapters.networks import as_velocity
from onestep_core import Linear, denoiser_from_velocity, heun, time_between
from onestep_core.flow.paths import prior_state
from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction, Path, Velocity

PATH = Linear()
"""Path of all teachers and of the methods that learn from them."""


def straight_consistency(network: Callable[..., Tensor], labels: Tensor | None) -> ConsistencyFunction:
    """``f(z, t) = z - t v(z, t)``: a velocity network as a consistency function, the identity at ``t = 0``.

    For a teacher it is the expected data given the state.

    Example:
        >>> f = straight_consistency(lambda z, t, label: z, None)
        >>> f(torch.ones(1, 2), torch.tensor([0.25]))
        tensor([[0.7500, 0.7500]])
    """
    return denoiser_from_velocity(as_velocity(network, label=labels), path=PATH)


def one_evaluation(function: ConsistencyFunction, noise: Tensor, *, path: Path) -> Tensor:
    """The data end of the trajectories that start at ``noise``, by one call of a consistency function.

    Nothing here depends on values, so that ``torch.export`` can follow.

    Example:
        >>> one_evaluation(lambda z, t: z - 1, torch.ones(1, 2), path=PATH)
        tensor([[0., 0.]])
    """
    return evaluated_at(function, prior_state(path, noise), path.noise_time)


def evaluated_at(function: ConsistencyFunction, z: Tensor, time: float) -> Tensor:
    """A consistency function at one time for all samples, in at least float32.

    Example:
        >>> evaluated_at(lambda z, t: z * t[:, None], torch.ones(1, 2), 0.5)
        tensor([[0.5000, 0.5000]])
    """
    z = full(z)
    return full(function(z, z.new_full((z.shape[0],), time)))


@torch.no_grad()
def solved(velocity: Velocity, z: Tensor, t: Tensor, m: Tensor, *, steps: int) -> Tensor:
    """The state at ``m`` by Heun's method from ``t``, in ``steps`` equal steps for each sample.

    Example:
        >>> z, t, m = torch.ones(1, 2), torch.tensor([1.0]), torch.tensor([0.5])
        >>> solved(lambda z, t: 2 * z, z, t, m, steps=1)
        tensor([[0.5000, 0.5000]])
    """
    times = [time_between(t, m, share=i / steps) for i in range(steps + 1)]
    for start, stop in pairwise(times):
        z = heun(velocity, z, start, stop)
    return z
