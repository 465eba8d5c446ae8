"""Solvers: steps along a trajectory, and the loop that chains them.

A step takes ``(z, t, s)`` and returns the state at ``s``; times run in either direction. Networks are bound
by the caller: ``integrate(partial(heun, velocity), z, grid)``.

Steps that evaluate a denoiser use only the path's ``alpha`` and ``sigma`` and run from noise to data. Nothing is drawn
here: a step that adds noise takes it as an argument. :func:`renoise` is the one rule by which noise is added, the
path's own transition from a state to a noisier one; the state need *not* be clean.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow.ratios import noise_ratio, time_at
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, Path, SolverStep, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import readable


@typed
def euler(velocity: Velocity, z: Sample, t: Time, s: Time) -> Sample:
    """``z + (s - t) v(z, t)``: one evaluation, error ``O((s - t)^2)``.

    Args:
        velocity: ``(z, t) -> dz/dt``.
        z: states at ``t``, ``[batch, *shape]``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.

    Raises:
        ConfigError: if the answer is not of the shape of the states.

    Example:
        >>> import torch
        >>> euler(lambda z, t: z, torch.ones(1, 1), torch.zeros(1), torch.ones(1))
        tensor([[2.]])
    """
    z = full(z)
    return z + expand_like(full(s) - full(t), z) * full(like_states(velocity(z, t), z))


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
    first = full(like_states(velocity(z, t), z))
    second = full(like_states(velocity(z + duration * first, s), z))
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

    Raises:
        ConfigError: if the answer is not of the shape of the states.

    Source: Song et al., Denoising Diffusion Implicit Models, eq. 12 with eta = 0, https://arxiv.org/abs/2010.02502.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> ddim(lambda z, t: torch.zeros_like(z), torch.ones(1, 1), torch.ones(1), torch.zeros(1), path=Linear())
        tensor([[0.]])
    """
    return _towards(z, denoiser(z, t), t, s, path=path)


def _towards(z: Tensor, data: Tensor, t: Tensor, s: Tensor, *, path: Path) -> Tensor:
    """The state at ``s`` with the data given and the noise that ``z`` has besides."""
    z, data = full(z), full(like_states(data, z))
    alpha_t, sigma_t = (expand_like(c, z) for c in path.coefficients(full(t)))
    alpha_s, sigma_s = (expand_like(c, z) for c in path.coefficients(full(s)))
    return alpha_s * data + (sigma_s / sigma_t) * (z - alpha_t * data)


def _not_zero(sigma: Tensor) -> Tensor:
    """A divisor: one where there is no noise, and the quotient is not used."""
    return torch.where(sigma == 0, 1.0, sigma)


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

    Source: Salimans and Ho, Progressive Distillation, algorithm 2 (the target ``x~``),
    https://arxiv.org/abs/2202.00512.

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
def denoised_heun(denoiser: Denoiser, z: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """EDM's second-order step: :func:`ddim`, corrected by the change of the denoiser's estimate; two evaluations.

    ``z' + (alpha(s) sigma(t) / sigma(s) - alpha(t)) (x' - x) / 2`` with ``x`` the estimate at ``(z, t)``, ``z'`` the
    :func:`ddim` step with ``x``, and ``x'`` the estimate at ``(z', s)``. On EDM's path and on the linear path this is
    :func:`heun` on the velocity that the denoiser implies. On every path it is exact for a constant estimate.

    Where ``sigma(s)`` is zero the step is :func:`ddim` without correction, as EDM's. Use :func:`ddim` yourself where
    ``sigma(s)`` is much smaller than ``sigma(t)``: the factor in front of ``x' - x`` is large there. Arguments as
    :func:`ddim`.

    Source: Karras et al., Elucidating the Design Space, algorithm 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> path, one = VarianceExploding(), torch.ones(1)
        >>> denoised_heun(lambda z, t: 0 * z, torch.ones(1, 1), 2 * one, one, path=path)
        tensor([[0.5000]])
    """
    z = full(z)
    first = full(like_states(denoiser(z, t), z))
    predicted = _towards(z, first, t, s, path=path)
    second = full(like_states(denoiser(predicted, s), z))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(full(t)), path.coefficients(full(s))
    factor = torch.where(sigma_s == 0, 0.0, alpha_s * sigma_t / _not_zero(sigma_s) - alpha_t)
    return predicted + expand_like(factor, z) * (second - first) / 2


@typed
def dpm_2(denoiser: Denoiser, z: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """DPM-Solver-2: to the middle of the log ratios, then the whole step with the noise found there.

    ``z_m = ddim(z, t, m)`` with ``ratio(m) = sqrt(ratio(t) ratio(s))``; then, with
    ``noise = (z_m - alpha(m) denoiser(z_m, m)) / sigma(m)``, ``z_s = alpha(s) (z / alpha(t) + (ratio(s) - ratio(t))
    noise)``. Two evaluations, error ``O(h^3)`` in the log of ``ratio = sigma / alpha``.

    Where ``sigma(s)`` is zero the step is :func:`ddim`. Not finite where ``alpha(t)`` is zero: start a little below the
    noise end where that has no signal. Arguments as :func:`ddim`.

    Raises:
        ConfigError: for such a time, on the CPU outside of compiled functions and ``torch.func``.

    Source: Lu et al., DPM-Solver, algorithm 1, https://arxiv.org/abs/2206.00927, in the form of k-diffusion's
    ``sample_dpm_2``.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> path, one = VarianceExploding(), torch.ones(1)
        >>> dpm_2(lambda z, t: 0 * z, torch.ones(1, 1), 4 * one, one, path=path)
        tensor([[0.2500]])
    """
    z, t, s = full(z), full(t), full(s)
    from_ratio, to_ratio = noise_ratio(t, path=path), noise_ratio(s, path=path)
    middle = time_at((from_ratio * to_ratio).sqrt(), path=path)
    half = ddim(denoiser, z, t, middle, path=path)
    (alpha_t, _), (alpha_m, sigma_m), (alpha_s, sigma_s) = (path.coefficients(time) for time in (t, middle, s))
    lost = (alpha_t == 0) & (sigma_s != 0)
    if readable(lost) and bool(lost.any()):
        raise ConfigError(
            f"dpm_2 gives no finite state from {int(lost.sum())} of {len(lost)} times, because the path has no signal "
            "there: start a little nearer to the data, or take flow.ddim or flow.denoised_heun"
        )
    data = full(like_states(denoiser(half, middle), half))
    noise = (half - expand_like(alpha_m, z) * data) / expand_like(_not_zero(sigma_m), z)
    step = expand_like(alpha_s, z) * (z / expand_like(alpha_t, z) + expand_like(to_ratio - from_ratio, z) * noise)
    # At a clean end the middle is the end, and half the whole step.
    return torch.where(expand_like(sigma_s, z) == 0, half, step)


@typed
def dpmpp_2m(z: Sample, data: Sample, previous: Sample, before: Time, t: Time, s: Time, *, path: Path) -> Sample:
    """DPM-Solver++(2M): :func:`ddim` towards the data extrapolated from two estimates. No evaluation of its own.

    ``x = data + (h / (2 h')) (data - previous)``, with the steps of ``log(alpha / sigma)``: ``h`` from ``t`` to ``s``,
    ``h'`` from ``before`` to ``t``; ``x = data``, first order, where ``s`` is clean or ``before`` has no signal.

    Args:
        z: states at ``t``, ``[batch, *shape]``.
        data: the denoiser's estimate at ``(z, t)``, ``[batch, *shape]``.
        previous: its estimate one step earlier, ``[batch, *shape]``.
        before: time of that step, noisier than ``t``, ``[batch]``.
        t: source times, ``[batch]``, where ``sigma`` is positive.
        s: target times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Source: Lu et al., DPM-Solver++, algorithm 2, https://arxiv.org/abs/2211.01095; first order at a clean end as in
    k-diffusion's ``sample_dpmpp_2m``.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> path, one = VarianceExploding(), torch.ones(1)
        >>> states = torch.full((1, 1), 4.0), torch.ones(1, 1), torch.zeros(1, 1)
        >>> dpmpp_2m(*states, 16 * one, 4 * one, one, path=path)
        tensor([[2.1250]])
    """
    z, data = full(z), full(data)
    earlier, now, later = (noise_ratio(full(time), path=path).log() for time in (before, t, s))
    step = now - later
    share = torch.where(step.isfinite(), step / (2 * (earlier - now)), 0.0)
    return _towards(z, data + expand_like(share, z) * (data - full(previous)), t, s, path=path)


@typed
def renoise(z: Sample, noise: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """``r z + sqrt(sigma(s)^2 - r^2 sigma(t)^2) noise`` with ``r = alpha(s) / alpha(t)``: the path's transition.

    A state distributed as at ``t`` becomes one distributed as at the noisier ``s``. The noise in ``z`` is taken into
    account: on EDM's path from ``sigma_min`` the added variance is ``s^2 - sigma_min^2``, as in the released
    consistency models; :func:`renoise_clean` treats ``z`` as clean. Where ``s`` is not noisier than ``t``, no noise is
    added.

    Args:
        z: states at ``t``, ``[batch, *shape]``.
        noise: standard normal, ``[batch, *shape]``.
        t: times of the states, ``[batch]``; ``alpha`` is positive there, or ``s = t``.
        s: times of the result, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Source: Song et al., Consistency Models, algorithm 1, https://arxiv.org/abs/2303.01469 (from ``sigma_min``);
    Karras et al., Elucidating the Design Space, algorithm 2, https://arxiv.org/abs/2206.00364 (churn).

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> one = torch.ones(1, 1)
        >>> renoise(one, one, torch.tensor([3.0]), torch.tensor([5.0]), path=VarianceExploding())
        tensor([[5.]])
    """
    z, t, s = full(z), full(t), full(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    ratio = torch.where(alpha_s == alpha_t, 1.0, alpha_s / alpha_t)
    kept = ratio * sigma_t
    added = ((sigma_s - kept) * (sigma_s + kept)).clamp(min=0.0).sqrt()
    return expand_like(ratio, z) * z + expand_like(added, z) * full(noise)


@typed
def renoise_clean(z: Sample, noise: Sample, t: Time, s: Time, *, path: Path) -> Sample:
    """``alpha(s) z + sigma(s) noise``: back onto the path from data without noise; ``t`` is not used.

    The textbook rule, equal to :func:`renoise` from a clean ``t``. With an estimate that still has the noise of its
    ``t`` the result is a little noisier than ``s``. Arguments as :func:`renoise`.

    Example:
        >>> from onestep_core.flow import Linear
        >>> one, half = torch.ones(1, 1), torch.tensor([0.5])
        >>> renoise_clean(2 * one, one, 0 * half, half, path=Linear())
        tensor([[1.5000]])
    """
    z = full(z)
    alpha, sigma = (expand_like(c, z) for c in path.coefficients(full(s)))
    return alpha * z + sigma * full(noise)


@typed
def ancestral(
    denoiser: Denoiser, z: Sample, noise: Sample, t: Time, s: Time, *, path: Path, eta: float = 1.0
) -> Sample:
    """:func:`ddim` to less noise than at ``s``, then fresh noise up to ``s``: one evaluation.

    ``alpha(s) x + sqrt(sigma(s)^2 - up^2) e + up noise``, where ``x`` is the denoised state, ``e`` its noise and
    ``up = eta sigma(s) sqrt(1 - (ratio(s) / ratio(t))^2)``, at most ``sigma(s)``. With ``eta = 1`` the posterior of the
    forward process given ``x``; with ``eta = 0`` exactly :func:`ddim`.

    Args:
        denoiser: ``(z, t) -> expected data``.
        z: states at ``t``, ``[batch, *shape]``.
        noise: standard normal, ``[batch, *shape]``.
        t: source times, ``[batch]``, where ``sigma`` is positive.
        s: target times, ``[batch]``, less noisy.
        path: gives ``alpha`` and ``sigma``.
        eta: share of the posterior's standard deviation, not negative.

    Raises:
        ConfigError: if ``eta`` is negative.

    Source: Song et al., Denoising Diffusion Implicit Models, eq. 12 and 16, https://arxiv.org/abs/2010.02502; on
    EDM's path k-diffusion's ``sample_euler_ancestral``.

    Example:
        >>> from onestep_core.flow import VarianceExploding
        >>> path, one = VarianceExploding(), torch.ones(1)
        >>> ancestral(lambda z, t: 0 * z, torch.ones(1, 1), torch.zeros(1, 1), 5 * one, 4 * one, path=path)
        tensor([[0.6400]])
    """
    if not eta >= 0:
        raise ConfigError(f"eta = {eta}: expected a share of noise, not negative; 0 is ddim, 1 the forward posterior")
    z, t, s = full(z), full(t), full(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    # Written with products, so that neither end of a path divides by zero.
    fall = (alpha_t * sigma_s) / (alpha_s * sigma_t)
    fresh = (eta * (1 - fall.square()).clamp(min=0.0).sqrt()).clamp(max=1.0)
    kept = (1 - fresh.square()).sqrt()
    data = full(like_states(denoiser(z, t), z))
    remainder = (z - expand_like(alpha_t, z) * data) / expand_like(sigma_t, z)
    drawn = expand_like(kept, z) * remainder + expand_like(fresh, z) * full(noise)
    return expand_like(alpha_s, z) * data + expand_like(sigma_s, z) * drawn


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
