"""Preconditioning: a raw network as a denoiser or a consistency function.

``f(z, sigma) = c_skip z + c_out F(c_in z, sigma)`` on the variance-exploding path. The choice of ``c_skip`` and
``c_out`` decides what is true before training: EDM's keep input and target at unit variance; the consistency
form makes ``f(z, sigma_min) = z`` for *every* network, which is what rules the constant solution out. Both take the
same raw network, so one may train with EDM's scalings and sample with the consistency form, as the released ECT does
(``edm(network)`` in training, ``consistency(network, sigma_min=0.003)`` in evaluation: two different functions, which
agree to ``O(sigma_min)``); :func:`unwrap` gives the raw network back where only the wrapped one is at hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.errors import like_states, positive_sigma_data
from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction, Denoiser, FlowMap, Path, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


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
def log_noise(sigma: Time, *, scale: float = 0.25, epsilon: float = 0.0) -> Time:
    """``scale log(sigma + epsilon)``: what a network is told instead of the noise level.

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
    return scale * (full(sigma) + epsilon).log()


@typed
def input_scalings(sigma: Time, *, sigma_data: float) -> Scalings:
    """``0``, ``1``, ``1 / sqrt(s^2 + sd^2)``: a network that sees a state of unit variance and answers in full.

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


def preconditioned(network: Callable[..., Tensor], scalings: Callable[[Tensor], Scalings]) -> Callable[..., Tensor]:
    """``(z, t, *times) -> c_skip z + c_out F(c_in z, t, *times)``: any scalings, any further times.

    Args:
        network: ``F``, called with the scaled state and all the times.
        scalings: of the first time: :func:`edm_scalings`, :func:`consistency_scalings`, :func:`input_scalings`, with
            their numbers bound.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> g = preconditioned(lambda z, t, s: z, partial(edm_scalings, sigma_data=0.5))
        >>> g(torch.ones(1, 2), torch.zeros(1), torch.zeros(1))
        tensor([[1., 1.]])
    """

    def function(z: Tensor, t: Tensor, /, *times: Tensor) -> Tensor:
        return _scaled(lambda state, at: network(state, at, *times), scalings(t), z, t)

    return function


@typed
def raw_target(z: Sample, data: Sample, scalings: Scalings) -> Sample:
    """``(data - c_skip z) / c_out``: what the raw network should say for ``f(z)`` to be ``data``.

    A loss on it, against ``F(c_in z, sigma)``, is the denoising loss times ``1 / c_out^2``; it keeps its digits where
    ``c_out`` is small. Not finite where ``c_out`` is zero.

    Args:
        z: states, ``[batch, *shape]``.
        data: clean samples, ``[batch, *shape]``.
        scalings: at the noise level of every state, each ``[batch]``.

    Source: Karras et al., Elucidating the Design Space, eq. 8, https://arxiv.org/abs/2206.00364.

    Example:
        >>> import torch
        >>> raw_target(torch.ones(1, 1), torch.ones(1, 1), edm_scalings(torch.ones(1), sigma_data=1.0))
        tensor([[0.7071]])
    """
    z = full(z)
    return (full(data) - expand_like(scalings.c_skip, z) * z) / expand_like(scalings.c_out, z)


def _scaled(network: Velocity, scalings: Scalings, z: Tensor, sigma: Tensor) -> Tensor:
    z = full(z)
    c_skip, c_out, c_in = (expand_like(c, z) for c in scalings)
    return c_skip * z + c_out * full(like_states(network(c_in * z, sigma), z))


def edm(network: Velocity, *, sigma_data: float = 0.5) -> Denoiser:
    """A raw network ``F(scaled state, sigma)`` as EDM's denoiser; noise conditioning is the network's matter.

    Args:
        network: any callable ``(state, sigma) -> state``.
        sigma_data: standard deviation of the data.

    Source: Karras et al., eq. 7, https://arxiv.org/abs/2206.00364.

    Example:
        >>> denoiser = edm(lambda z, sigma: 0 * z)
        >>> denoiser(torch.ones(1, 2), torch.zeros(1))
        tensor([[1., 1.]])
    """

    def denoiser(z: Tensor, sigma: Tensor, /) -> Tensor:
        return _scaled(network, edm_scalings(sigma, sigma_data=sigma_data), z, sigma)

    return denoiser


def consistency(network: Velocity, *, sigma_data: float = 0.5, sigma_min: float = 0.002) -> ConsistencyFunction:
    """A raw network as a consistency function: ``f(z, sigma_min) = z`` whatever the network says.

    Args:
        network: any callable ``(scaled state, sigma) -> state``.
        sigma_data: standard deviation of the data.
        sigma_min: the data end of the path.

    Source: Song et al., Consistency Models, eq. 5, https://arxiv.org/abs/2303.01469.

    Example:
        >>> f = consistency(lambda z, sigma: z + 7, sigma_min=0.5)
        >>> f(torch.ones(1, 2), torch.tensor([0.5]))
        tensor([[1., 1.]])
    """

    def function(z: Tensor, sigma: Tensor, /) -> Tensor:
        scalings = consistency_scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
        return _scaled(network, scalings, z, sigma)

    return function


def unwrap(function: Denoiser, *, scalings: Callable[[Tensor], Scalings]) -> Velocity:
    """The raw network under a preconditioned callable: ``(f(z, sigma) - c_skip z) / c_out`` at ``z = x / c_in``.

    A pretrained denoiser becomes a consistency function with a boundary condition without access to its inside:
    ``consistency(unwrap(denoiser, scalings=partial(edm_scalings, sigma_data=0.5)))``.

    Args:
        function: a denoiser or consistency function, ``(z, sigma) -> state``.
        scalings: those it was made with, ``sigma -> Scalings``.

    Returns:
        ``(scaled state, sigma) -> state``; not finite where ``c_out = 0``, and of few digits near it.

    Example:
        >>> from functools import partial
        >>> raw = unwrap(edm(lambda x, sigma: x + 7), scalings=partial(edm_scalings, sigma_data=0.5))
        >>> raw(torch.ones(1, 2), torch.ones(1))
        tensor([[8., 8.]])
    """

    def network(x: Tensor, sigma: Tensor, /) -> Tensor:
        x = full(x)
        c_skip, c_out, c_in = (expand_like(c, x) for c in scalings(sigma))
        z = x / c_in
        return (full(like_states(function(z, sigma), z)) - c_skip * z) / c_out

    return network


def truncated(late: ConsistencyFunction, early: ConsistencyFunction, *, transition: float) -> ConsistencyFunction:
    """``late`` where ``t >= transition``, ``early`` below: a consistency function in two stages.

    ``early``, a consistency function trained before and frozen, is the boundary condition of ``late``, which spends
    nothing on small noise. Both are evaluated on the whole batch and chosen by rows, which needs no knowledge of
    values and compiles; each sees the transition time on the rows that are not its own. Where all times are late,
    as when sampling from noise or at the prediction of a training pair, call ``late`` itself and save the other.

    Args:
        late: the student, ``(z, t) -> end of the trajectory``; the gradient goes here.
        early: the first stage, without gradient in its parameters (the adapters' ``frozen``).
        transition: the time that divides them; larger times carry more noise.

    Source: Lee et al., Truncated Consistency Models, section 3, https://arxiv.org/abs/2410.14895; NVlabs/FastGen,
    ``TCMPrecond``.

    Example:
        >>> f = truncated(lambda z, t: z + 1, lambda z, t: z, transition=1.0)
        >>> f(torch.zeros(2, 1), torch.tensor([2.0, 0.5])).flatten()
        tensor([1., 0.])
    """

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        second = full(like_states(late(z, t.clamp(min=transition)), z))
        first = full(like_states(early(z, t.clamp(max=transition)), z))
        return torch.where(expand_like(t >= transition, z), second, first)

    return function


@typed
def velocity_scalings(t: Time, *, path: Path, sigma_data: float) -> Scalings:
    """The skip that leaves least to a network of velocities; ``v(z, t) = c_skip z + c_out F(c_in z, t)``.

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
        >>> from onestep_core.flow import Linear
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


# Flow maps: f(z, t, s) = c_skip z + c_out F(c_in z, t, s), the identity at s = t whatever the network says.


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
    """``r``, ``alpha(s) - r alpha(t)`` with ``r = sigma(s) / sigma(t)``: the network says the data, DDIM does the step.

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
    """The skip that leaves least to the network, as EDM chooses it, for every target time.

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


def preconditioned_flow_map(network: FlowMap, *, scalings: Callable[[Tensor, Tensor], Scalings]) -> FlowMap:
    """``f(z, t, s) = c_skip z + c_out F(c_in z, t, s)``, the scalings being functions of the two times.

    Args:
        network: any callable ``(scaled state, t, s) -> state``; time conditioning is its matter.
        scalings: ``(t, s) -> Scalings``: :func:`euler_scalings`, :func:`ddim_scalings` or
            :func:`simple_edm_scalings`, path and ``sigma_data`` bound.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.flow import Linear
        >>> scalings = partial(simple_edm_scalings, path=Linear(), sigma_data=0.5)
        >>> flow_map, one = preconditioned_flow_map(lambda z, t, s: z + 7, scalings=scalings), torch.ones(1)
        >>> flow_map(torch.ones(1, 2), one, one), flow_map(torch.ones(1, 2), one, 0 * one)
        (tensor([[1., 1.]]), tensor([[-4., -4.]]))
    """

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        z = full(z)
        c_skip, c_out, c_in = (expand_like(c, z) for c in scalings(t, s))
        return c_skip * z + c_out * full(like_states(network(c_in * z, t, s), z))

    return flow_map
