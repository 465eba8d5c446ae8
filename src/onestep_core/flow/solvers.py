"""Solvers: steps along a trajectory, and the loop that chains them.

A step takes ``(z, t, s)`` and returns the state at ``s``; times run in either direction. Networks are bound
by the caller: ``integrate(partial(heun, velocity), z, grid)``.
"""

from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, Path, SolverStep, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


@typed
def euler(velocity: Velocity, z: Sample, t: Time, s: Time) -> Sample:
    """``z + (s - t) v(z, t)``: one evaluation, error ``O((s - t)^2)``.

    Args:
        velocity: ``(z, t) -> dz/dt``.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.

    Example:
        >>> import torch
        >>> euler(lambda z, t: z, torch.ones(1, 1), torch.zeros(1), torch.ones(1))
        tensor([[2.]])
    """
    z = full(z)
    return z + expand_like(full(s) - full(t), z) * full(velocity(z, t))


@typed
def heun(velocity: Velocity, z: Sample, t: Time, s: Time) -> Sample:
    """The trapezoidal predictor-corrector: two evaluations, error ``O((s - t)^3)``. Arguments as :func:`euler`.

    Example:
        >>> import torch
        >>> heun(lambda z, t: z, torch.ones(1, 1), torch.zeros(1), torch.ones(1))
        tensor([[2.5000]])
    """
    z = full(z)
    duration = expand_like(full(s) - full(t), z)
    first = full(velocity(z, t))
    second = full(velocity(z + duration * first, s))
    return z + duration * (first + second) / 2


@typed
def ddim(denoiser: Denoiser, z: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """``alpha(s) x + (sigma(s) / sigma(t)) (z - alpha(t) x)`` with ``x`` the denoised state: one evaluation.

    Exact where the denoiser is constant along the trajectory.

    Args:
        denoiser: ``(z, t) -> expected data``.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``, where ``sigma`` is positive.
        s: target times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Source: Song et al., Denoising Diffusion Implicit Models, eq. 12 with eta = 0, https://arxiv.org/abs/2010.02502.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> ddim(lambda z, t: torch.zeros_like(z), torch.ones(1, 1), torch.ones(1), torch.zeros(1), path=Linear())
        tensor([[0.]])
    """
    z = full(z)
    alpha_t, sigma_t = (expand_like(c, z) for c in path.coefficients(full(t)))
    alpha_s, sigma_s = (expand_like(c, z) for c in path.coefficients(full(s)))
    data = full(denoiser(z, t))
    return alpha_s * data + (sigma_s / sigma_t) * (z - alpha_t * data)


@typed
def data_of_ddim_step(z: Sample, end: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """``(end - r z) / (alpha(s) - r alpha(t))``, ``r = sigma(s) / sigma(t)``: the data by which DDIM lands on ``end``.

    The inverse of :func:`ddim` in its denoised state: any state at ``s`` becomes a target in data space. Not finite
    at ``s = t``; a difference of ``s`` and ``t`` that is small costs digits.

    Args:
        z: states at ``t``, ``[batch, *shape]``.
        end: states at ``s``, ``[batch, *shape]``.
        t: source times, ``[batch]``, where ``sigma`` is positive.
        s: target times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Source: Salimans and Ho, Progressive Distillation, algorithm 2 (the target ``x~``), https://arxiv.org/abs/2202.00512.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> one = torch.ones(1, 1)
        >>> data_of_ddim_step(one, 0.75 * one, torch.tensor([1.0]), torch.tensor([0.5]), path=Linear())
        tensor([[0.5000]])
    """
    z = full(z)
    alpha_t, sigma_t = (expand_like(c, z) for c in path.coefficients(full(t)))
    alpha_s, sigma_s = (expand_like(c, z) for c in path.coefficients(full(s)))
    ratio = sigma_s / sigma_t
    return (full(end) - ratio * z) / (alpha_s - ratio * alpha_t)


@typed
def integrate(step: SolverStep, z: Sample, times: Float[Tensor, "points"]) -> Sample:
    """Apply ``step`` from each time of a grid to the next: ``[batch, *shape]`` at the last one.

    Args:
        step: ``(z, t, s) -> z``, called ``points - 1`` times.
        z: states at the first time, ``[batch, *shape]``.
        times: the grid, in order, at least two points; any spacing and direction.

    Raises:
        ConfigError: if the grid has fewer than two points.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> growth = partial(euler, lambda z, t: z)
        >>> integrate(growth, torch.ones(1, 1), torch.linspace(0, 1, 1001))
        tensor([[2.7169]])
    """
    if times.shape[0] < 2:
        raise ConfigError(f"a grid of {times.shape[0]} times: expected at least two, a start and an end")
    batch = z.shape[0]
    for first, last in zip(times[:-1].unbind(), times[1:].unbind(), strict=True):
        z = step(z, first.expand(batch), last.expand(batch))
    return z
