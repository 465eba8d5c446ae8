"""Preconditioned networks: a raw network as a denoiser, a consistency function or a flow map.

``f(z, sigma) = c_skip z + c_out F(c_in z, sigma)`` on the variance-exploding path. The choice of ``c_skip`` and
``c_out`` decides what is true before training. EDM's keep input and target at unit variance. The consistency form
makes ``f(z, sigma_min) = z`` for *every* network, which excludes the constant solution. Both take the same raw
network, so one may train with EDM's scalings and sample with the consistency form, as the released ECT does
(``edm(network)`` in training, ``consistency(network, sigma_min=0.003)`` in evaluation: two different functions, which
agree to ``O(sigma_min)``). :func:`unwrap` gives the raw network back where only the wrapped one is available.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.flow.preconditioning.scalings import Scalings, consistency_scalings, edm_scalings
from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction, Denoiser, FlowMap, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, typed
from onestep_core.validators import positive_sigma_data, require_finite, require_not_negative


@typed
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
    """``(data - c_skip z) / c_out``: the output of the raw network with which ``f(z)`` is ``data``.

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


@typed
def edm(network: Velocity, *, sigma_data: float = 0.5) -> Denoiser:
    """A raw network ``F(scaled state, sigma)`` as EDM's denoiser; the network does its own noise conditioning.

    Args:
        network: any callable ``(state, sigma) -> state``.
        sigma_data: standard deviation of the data.

    Source: Karras et al., eq. 7, https://arxiv.org/abs/2206.00364.

    Example:
        >>> denoiser = edm(lambda z, sigma: 0 * z)
        >>> denoiser(torch.ones(1, 2), torch.zeros(1))
        tensor([[1., 1.]])
    """
    positive_sigma_data(sigma_data)

    def denoiser(z: Tensor, sigma: Tensor, /) -> Tensor:
        return _scaled(network, edm_scalings(sigma, sigma_data=sigma_data), z, sigma)

    return denoiser


@typed
def consistency(network: Velocity, *, sigma_data: float = 0.5, sigma_min: float = 0.002) -> ConsistencyFunction:
    """A raw network as a consistency function: ``f(z, sigma_min) = z`` for every network.

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
    positive_sigma_data(sigma_data)
    require_not_negative("sigma_min", sigma_min)

    def function(z: Tensor, sigma: Tensor, /) -> Tensor:
        scalings = consistency_scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
        return _scaled(network, scalings, z, sigma)

    return function


@typed
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


@typed
def truncated(late: ConsistencyFunction, early: ConsistencyFunction, *, transition: float) -> ConsistencyFunction:
    """``late`` where ``t >= transition``, ``early`` below: a consistency function in two stages.

    ``early``, a consistency function trained before and frozen, is the boundary condition of ``late``, which then
    spends no capacity on small noise. Both are evaluated on the whole batch and chosen by rows, so that it compiles; on
    the rows of the other, each gets the transition time. Where all times are late,
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
    require_finite("transition", transition)

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        second = full(like_states(late(z, t.clamp(min=transition)), z))
        first = full(like_states(early(z, t.clamp(max=transition)), z))
        return torch.where(expand_like(t >= transition, z), second, first)

    return function


@typed
def preconditioned_flow_map(network: FlowMap, *, scalings: Callable[[Tensor, Tensor], Scalings]) -> FlowMap:
    """``f(z, t, s) = c_skip z + c_out F(c_in z, t, s)``, the scalings being functions of the two times.

    Args:
        network: any callable ``(scaled state, t, s) -> state``; it does its own time conditioning.
        scalings: ``(t, s) -> Scalings``: :func:`euler_scalings`, :func:`ddim_scalings` or
            :func:`simple_edm_scalings`, path and ``sigma_data`` bound.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.flow import Linear, simple_edm_scalings
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
