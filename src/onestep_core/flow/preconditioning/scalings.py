"""Scalings: the factors of the state and of the network in a preconditioned function.

``f(z, t) = c_skip z + c_out F(c_in z, t)``. Those of one time are for denoisers, velocities and consistency functions;
those of two times are for flow maps, and give the identity at ``s = t`` whatever the network returns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.precision import full
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed
from onestep_core.validators import positive_sigma_data, require_not_negative, require_positive


class Scalings(NamedTuple):
    """``f = skip z + out F(in z)``, each ``[batch]``."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


@typed
def edm_scalings(sigma: Time, *, sigma_data: float) -> Scalings:
    """``sd^2 / (s^2 + sd^2)``, ``s sd / sqrt(s^2 + sd^2)``, ``1 / sqrt(s^2 + sd^2)``.

    Args:
        sigma: noise levels, ``[batch]``, not negative.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> edm_scalings(torch.tensor([0.0]), sigma_data=0.5)
        Scalings(c_skip=tensor([1.]), c_out=tensor([0.]), c_in=tensor([2.]))
    """
    sigma = full(sigma)
    total = sigma.square() + positive_sigma_data(sigma_data) ** 2
    return Scalings(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt())


@typed
def consistency_scalings(sigma: Time, *, sigma_data: float, sigma_min: float) -> Scalings:
    """``sd^2 / ((s - s_min)^2 + sd^2)``, ``(s - s_min) sd / sqrt(s^2 + sd^2)``, ``1 / sqrt(s^2 + sd^2)``.

    At ``sigma_min`` exactly 1 and 0. As in the released code, the root in ``c_out`` holds the unshifted level.

    Args:
        sigma: noise levels, ``[batch]``, at least ``sigma_min``.
        sigma_data: standard deviation of the data, positive.
        sigma_min: the level at which the function is the identity.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Song et al., Consistency Models, appendix C, https://arxiv.org/abs/2303.01469.

    Example:
        >>> consistency_scalings(torch.tensor([0.5]), sigma_data=0.5, sigma_min=0.5)[:2]
        (tensor([1.]), tensor([0.]))
    """
    sigma = full(sigma)
    total = sigma.square() + positive_sigma_data(sigma_data) ** 2
    shifted = sigma - sigma_min
    return Scalings(
        sigma_data**2 / (shifted.square() + sigma_data**2),
        shifted * sigma_data * total.rsqrt(),
        total.rsqrt(),
    )


@typed
def input_scalings(sigma: Time, *, sigma_data: float) -> Scalings:
    """``0``, ``1``, ``1 / sqrt(s^2 + sd^2)``: a network that gets a state of unit variance and whose output is the
    result.

    Args:
        sigma: noise levels, ``[batch]``, not negative.
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: sony/ctm, ``inner_parametrization="no"``.

    Example:
        >>> import torch
        >>> input_scalings(torch.tensor([0.0]), sigma_data=0.5)
        Scalings(c_skip=tensor([0.]), c_out=tensor([1.]), c_in=tensor([2.]))
    """
    sigma = full(sigma)
    total = sigma.square() + positive_sigma_data(sigma_data) ** 2
    return Scalings(torch.zeros_like(sigma), torch.ones_like(sigma), total.rsqrt())


@typed
def velocity_scalings(t: Time, *, path: Path, sigma_data: float) -> Scalings:
    """The skip that leaves the smallest output to a network of velocities; ``v(z, t) = c_skip z + c_out F(c_in z, t)``.

    With ``q = sd^2 alpha^2 + sigma^2``, the variance of the state, and rates ``alpha'``, ``sigma'``,

        c_skip = (sd^2 alpha alpha' + sigma sigma') / q       the best linear guess of the velocity
        c_out  = sd (alpha sigma' - alpha' sigma) / sqrt(q)   what it misses, for data of variance sd^2
        c_in   = 1 / sqrt(q)

    For an average velocity the same factors of the source time serve: :func:`preconditioned` passes the target time
    on. On the linear path that is :func:`simple_edm_scalings`, written for the slope of the map: regular at ``s = t``.

    Args:
        t: times, ``[batch]``.
        path: gives ``alpha``, ``sigma`` and their rates.
        sigma_data: ``sd``, root mean square of the data's coordinates, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: derived for a velocity as Karras et al., Elucidating the Design Space, appendix B.6,
    https://arxiv.org/abs/2206.00364, derive theirs for the data.

    Example:
        >>> from functools import partial
        >>> from onestep_core.flow import Linear, preconditioned
        >>> scalings = partial(velocity_scalings, path=Linear(), sigma_data=0.5)
        >>> velocity = preconditioned(lambda z, t: 0 * z, scalings)
        >>> velocity(torch.ones(2, 1), torch.tensor([0.0, 1.0])).flatten()
        tensor([-1.,  1.])
    """
    t = full(t)
    (alpha, sigma), (alpha_rate, sigma_rate) = path.coefficients(t), path.rates(t)
    c_in = _unit(alpha, sigma, sigma_data)
    c_skip = (sigma_data**2 * alpha * alpha_rate + sigma * sigma_rate) * c_in.square()
    return Scalings(c_skip, sigma_data * (alpha * sigma_rate - alpha_rate * sigma) * c_in, c_in)


@typed
def euler_scalings(t: Time, s: Time, *, path: Path, sigma_data: float) -> Scalings:
    """``1``, ``(s - t) sd``, ``1 / sqrt(sd^2 alpha^2 + sigma^2)``: the network is an average velocity over ``sd``.

    Args:
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``; the noise's standard deviation is part of it, see
            :class:`~onestep_core.flow.NoiseScaled`.
        sigma_data: ``sd``, standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Zhou et al., Inductive Moment Matching, section 4 ("Euler-FM"), https://arxiv.org/abs/2503.07565; its
    released ``preconds.py`` calls it ``euler_fm``.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> euler_scalings(torch.ones(1), torch.zeros(1), path=Linear(), sigma_data=0.5)
        Scalings(c_skip=tensor([1.]), c_out=tensor([-0.5000]), c_in=tensor([1.]))
    """
    t, s = full(t), full(s)
    alpha, sigma = path.coefficients(t)
    return Scalings(torch.ones_like(t), (s - t) * sigma_data, _unit(alpha, sigma, sigma_data))


@typed
def ddim_scalings(t: Time, s: Time, *, path: Path, sigma_data: float) -> Scalings:
    """``r``, ``alpha(s) - r alpha(t)`` with ``r = sigma(s) / sigma(t)``: the network predicts the data, DDIM takes the
    step.

    Arguments and errors as :func:`euler_scalings`; ``sigma(t)`` is positive.

    Source: Zhou et al., Inductive Moment Matching, section 4 ("identity"), https://arxiv.org/abs/2503.07565.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> ddim_scalings(torch.ones(1), torch.zeros(1), path=Linear(), sigma_data=0.5)[:2]
        (tensor([0.]), tensor([1.]))
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(full(t)), path.coefficients(full(s))
    ratio = sigma_s / sigma_t
    return Scalings(ratio, alpha_s - ratio * alpha_t, _unit(alpha_t, sigma_t, sigma_data))


@typed
def simple_edm_scalings(t: Time, s: Time, *, path: Path, sigma_data: float) -> Scalings:
    """The skip that leaves the smallest output to the network, as in EDM, for every target time.

    With ``q = sd^2 alpha(t)^2 + sigma(t)^2``, the variance of the state,

        c_skip = (sd^2 alpha(t) alpha(s) + sigma(t) sigma(s)) / q
        c_out  = -sd (alpha(s) sigma(t) - alpha(t) sigma(s)) / sqrt(q)
        c_in   = 1 / sqrt(q)

    For data of variance ``sd^2`` independent of the noise the network's target has unit variance. On the
    trigonometric path ``c_skip = cos(t - s)`` and ``c_out = -sd sin(t - s)``, TrigFlow's; at a data end without noise
    and ``alpha = 1`` it is EDM's, with the sign of ``c_out`` turned. Arguments and errors as :func:`euler_scalings`.

    Source: Zhou et al., Inductive Moment Matching, section 4 ("Simple-EDM"), https://arxiv.org/abs/2503.07565. There
    ``sigma`` does not hold the noise's standard deviation ``sd``; here the path does.

    Example:
        >>> import torch
        >>> from onestep_core.flow import VarianceExploding
        >>> path, sigma = VarianceExploding(0.0), torch.tensor([0.5])
        >>> simple_edm_scalings(sigma, 0 * sigma, path=path, sigma_data=0.5)[0], edm_scalings(sigma, sigma_data=0.5)[0]
        (tensor([0.5000]), tensor([0.5000]))
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(full(t)), path.coefficients(full(s))
    c_in = _unit(alpha_t, sigma_t, sigma_data)
    c_skip = (sigma_data**2 * alpha_t * alpha_s + sigma_t * sigma_s) * c_in.square()
    return Scalings(c_skip, -sigma_data * (alpha_s * sigma_t - alpha_t * sigma_s) * c_in, c_in)


def _unit(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    return ((positive_sigma_data(sigma_data) * alpha).square() + sigma.square()).rsqrt()


@typed
def log_noise(sigma: Time, *, scale: float = 0.25, epsilon: float = 0.0) -> Time:
    """``scale log(sigma + epsilon)``: the input of a network instead of the noise level.

    Args:
        sigma: noise levels, ``[batch]``, positive unless ``epsilon`` is.
        scale: 1/4 in EDM and ECT; 250 in the released consistency models.
        epsilon: keeps level zero finite; 1e-44 there.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364;
    openai/consistency_models, ``KarrasDenoiser.denoise`` (``rescaled_t``).

    Example:
        >>> log_noise(torch.tensor([1.0]))
        tensor([0.])
    """
    require_positive("scale", scale)
    require_not_negative("epsilon", epsilon)
    return scale * (full(sigma) + epsilon).log()
