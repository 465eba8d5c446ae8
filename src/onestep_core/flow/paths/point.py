"""A point on a path: the state and the velocity of a pair of data and noise at one time.

A path is ``z = alpha(t) data + sigma(t) noise``. It fixes two functions of time and nothing else. The velocity of a
pair is its derivative, ``v = alpha'(t) data + sigma'(t) noise``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.precision import full
from onestep_core.protocols import Path
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


class PathPoint(NamedTuple):
    """State and instantaneous velocity of one pair at one time, both ``[batch, *shape]``."""

    z: Tensor
    v: Tensor


@typed
def point_on_path(path: Path, data: Sample, noise: Sample, t: Time) -> PathPoint:
    """``z = alpha data + sigma noise`` and ``v = alpha' data + sigma' noise`` at ``t``; what ``path(...)`` calls.

    Raises:
        ArgumentError: if data and noise differ in shape, or ``t`` is not ``[batch]``.
    """
    data, noise, t = full(data), full(noise), full(t)
    alpha, sigma = (expand_like(c, data) for c in path.coefficients(t))
    alpha_rate, sigma_rate = (expand_like(c, data) for c in path.rates(t))
    return PathPoint(alpha * data + sigma * noise, alpha_rate * data + sigma_rate * noise)


@typed
def prior_state(path: Path, noise: Sample) -> Sample:
    """``sigma(noise_time) * noise``, ``[batch, *shape]``: where sampling starts; what ``path.prior(...)`` calls."""
    end = torch.full((1,), path.noise_time, dtype=full(noise).dtype, device=noise.device)
    return path.coefficients(end)[1] * full(noise)
