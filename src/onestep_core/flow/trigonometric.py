"""TrigFlow: velocity, consistency function and its tangent on the trigonometric path.

On ``z = cos(t) data + sin(t) sigma_data noise`` one network ``F(z, t)`` of unit variance plays two roles,

    velocity       dz/dt = sigma_data F(z, t)
    consistency    f(z, t) = cos(t) z - sin(t) sigma_data F(z, t),      f(z, 0) = z for every network,

the second being a first-order step of the first down to ``t = 0``: the denoiser of the trained velocity. One ``F`` need
*not* be both. Trained as a velocity, ``f`` is the expected data; trained for consistency, ``f`` is where the trajectory
ends.

Here ``F`` takes the state ``z`` itself. A network that expects it at unit variance, as the paper writes, divides by
``sigma_data`` inside: ``lambda z, t: network(z / sigma_data, t)``.

Along a trajectory ``f`` is constant. Its tangent ``df/dt``, times ``cos(t)`` to stay finite at the noise end, is

    g = -cos(t)^2 (sigma_data F - v) - cos(t) sin(t) z - sigma_data cos(t) sin(t) dF/dt.

``dF/dt`` grows without bound towards ``t = pi/2`` where the network lives in another time, such as ``log tan(t)``;
``cos(t) sin(t) dF/dt`` does not. So the factor goes into the tangents of the derivative, not behind it.
"""

import torch
from torch import Tensor

from onestep_core.errors import ConfigError, like_states
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import ConsistencyFunction, Denoiser, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import positive_sigma_data, require_count


@typed
def trigflow_time(sigma: Time, *, sigma_data: float) -> Time:
    """``atan(sigma / sigma_data)``: the time on the trigonometric path with EDM's signal-to-noise ratio.

    The states of the two paths at these times differ by a factor: ``z_edm = z / cos(t)``.

    Args:
        sigma: noise levels of the variance-exploding path, ``[batch]``.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Lu and Song, Simplifying, Stabilizing and Scaling Continuous-time Consistency Models, section 3,
    https://arxiv.org/abs/2410.11081.

    Example:
        >>> trigflow_time(torch.tensor([0.5]), sigma_data=0.5) * 4 / torch.pi
        tensor([1.])
    """
    positive_sigma_data(sigma_data)
    sigma = full(sigma)
    return torch.atan2(sigma, torch.full_like(sigma, sigma_data))


@typed
def trigflow(network: Velocity, *, sigma_data: float) -> ConsistencyFunction:
    """``f(z, t) = cos(t) z - sin(t) sigma_data F(z, t)``: a network as a consistency function, the identity at 0.

    Args:
        network: ``F(z, t)``, any callable.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Lu and Song, section 3, https://arxiv.org/abs/2410.11081.

    Example:
        >>> f = trigflow(lambda z, t: z + 7, sigma_data=0.5)
        >>> f(torch.ones(1, 2), torch.zeros(1))
        tensor([[1., 1.]])
    """
    positive_sigma_data(sigma_data)

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        z, t = full(z), full(t)
        return expand_like(t.cos(), z) * z - expand_like(sigma_data * t.sin(), z) * full(like_states(network(z, t), z))

    return function


@typed
def trigflow_velocity(network: Velocity, *, sigma_data: float) -> Velocity:
    """``sigma_data F(z, t)``: a network trained by flow matching, or a teacher, as ``dz/dt``.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Lu and Song, section 3, https://arxiv.org/abs/2410.11081.

    Example:
        >>> trigflow_velocity(lambda z, t: z, sigma_data=0.5)(torch.ones(1, 1), torch.zeros(1))
        tensor([[0.5000]])
    """
    positive_sigma_data(sigma_data)

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return sigma_data * full(like_states(network(z, t), z))

    return velocity


@typed
def trigflow_from_denoiser(denoiser: Denoiser, *, sigma_data: float) -> Velocity:
    """A denoiser of EDM's path as ``F``: ``(cos(t) z - D(z / cos(t), sigma_data tan(t))) / (sigma_data sin(t))``.

    How a diffusion model that was trained on noise levels becomes the start, or the teacher, of a continuous-time
    consistency model. At the ends, where the noise level is zero or infinite, ``cos(t)`` and ``sin(t)`` in the
    denominators and in the noise level are at least the square root of the resolution of ``t``: at pure noise this is
    the limit; at the data, where the limit depends on the direction, a denoiser that returns its input gives zero.

    Args:
        denoiser: ``(z, sigma) -> expected data`` on the variance-exploding path.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Lu and Song, section 3, https://arxiv.org/abs/2410.11081; NVlabs/FastGen, ``TrigFlowPrecond``, which clamps
    times to ``pi/2 - 1e-4`` when it differentiates.

    Example:
        >>> F = trigflow_from_denoiser(lambda z, sigma: 0 * z, sigma_data=0.5)
        >>> F(torch.ones(1, 1), torch.full((1,), torch.pi / 4))
        tensor([[2.]])
    """
    positive_sigma_data(sigma_data)

    def network(z: Tensor, t: Tensor, /) -> Tensor:
        z, t = full(z), full(t)
        smallest = torch.finfo(t.dtype).eps ** 0.5
        cos, sin = t.cos().clamp(min=smallest), t.sin().clamp(min=smallest)
        data = full(like_states(denoiser(z / expand_like(cos, z), sigma_data * t.sin() / cos), z))
        return (expand_like(t.cos(), z) * z - data) / expand_like(sigma_data * sin, z)

    return network


@typed
def trigflow_tangent(
    prediction: Sample,
    z: Sample,
    v: Sample,
    derivative: Sample,
    t: Time,
    *,
    sigma_data: float,
    warmup: float | Time = 1.0,
) -> Sample:
    """``g = -cos(t)^2 (sigma_data F - v) - r (cos(t) sin(t) z + sigma_data F')``: at ``r = 1`` ``cos(t) df/dt``.

    Args:
        prediction: ``F(z, t)``, ``[batch, *shape]``.
        z: states on the trigonometric path, ``[batch, *shape]``.
        v: velocities there, ``[batch, *shape]``.
        derivative: ``F' = cos(t) sin(t) dF/dt``, the tangent of ``F(z, t)`` along ``cos(t) sin(t) (v, 1)``.
        t: times, ``[batch]``.
        sigma_data: standard deviation of the data, positive.
        warmup: ``r`` from 0 to 1, a number or ``[batch]``. At 0 the fixed point is ``sigma_data F = v``: flow matching,
            with the weight ``cos(t)^2``.

    Returns:
        The tangent, without gradient, ``[batch, *shape]``.

    Raises:
        ConfigError: if ``sigma_data`` is not positive, or a number ``warmup`` not from 0 to 1.
        ArgumentError: if shapes disagree.

    Source: Lu and Song, section 4 and algorithm 1, https://arxiv.org/abs/2410.11081.

    Example:
        >>> one = torch.ones(1, 1)
        >>> trigflow_tangent(one, one, 0 * one, one, torch.zeros(1), sigma_data=0.5)
        tensor([[-1.]])
    """
    positive_sigma_data(sigma_data)
    if not isinstance(warmup, Tensor) and not 0 <= warmup <= 1:
        raise ConfigError(f"warmup = {warmup}: expected a share from 0 to 1, such as tangent_warmup(iteration)")
    z, t = without_gradient(z), without_gradient(t)
    cos, sin = expand_like(t.cos(), z), expand_like(t.sin(), z)
    ramp = expand_like(without_gradient(warmup), z) if isinstance(warmup, Tensor) else warmup
    instant = cos.square() * (sigma_data * without_gradient(prediction) - without_gradient(v))
    return -instant - ramp * (cos * sin * z + sigma_data * without_gradient(derivative))


def tangent_warmup(iteration: int, *, iterations: int = 10_000) -> float:
    """``min(1, iteration / iterations)``: the number that :func:`trigflow_tangent` takes as ``warmup``.

    Args:
        iteration: steps taken so far, not negative.
        iterations: length of the ramp; 10,000 in the paper and as released.

    Raises:
        ConfigError: if ``iterations`` is not positive or ``iteration`` is negative.

    Source: Lu and Song, section 4 and algorithm 1, https://arxiv.org/abs/2410.11081.

    Example:
        >>> tangent_warmup(2_500), tangent_warmup(20_000)
        (0.25, 1.0)
    """
    require_count("iteration", iteration)
    require_count("iterations", iterations, least=1)
    return min(1.0, iteration / iterations)
