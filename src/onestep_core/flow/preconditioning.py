"""Preconditioning: a raw network as a denoiser or a consistency function.

``f(z, sigma) = c_skip z + c_out F(c_in z, sigma)`` on the variance-exploding path. The choice of ``c_skip`` and
``c_out`` decides what is true before training: EDM's keep input and target at unit variance; the consistency
form makes ``f(z, sigma_min) = z`` for *every* network, which is what rules the constant solution out.
"""

from typing import NamedTuple

from torch import Tensor

from onestep_core.precision import full
from onestep_core.protocols import ConsistencyFunction, Denoiser, Velocity
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

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> import torch
        >>> edm_scalings(torch.tensor([0.0]), sigma_data=0.5)
        Scalings(c_skip=tensor([1.]), c_out=tensor([0.]), c_in=tensor([2.]))
    """
    sigma = full(sigma)
    total = sigma.square() + sigma_data**2
    return Scalings(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt())


@typed
def consistency_scalings(sigma: Time, *, sigma_data: float, sigma_min: float) -> Scalings:
    """``sd^2 / ((s - s_min)^2 + sd^2)``, ``(s - s_min) sd / sqrt(s^2 + sd^2)``, ``1 / sqrt(s^2 + sd^2)``.

    At ``sigma_min`` exactly 1 and 0. As in the released code, the root in ``c_out`` holds the unshifted level.

    Args:
        sigma: noise levels, ``[batch]``, at least ``sigma_min``.
        sigma_data: standard deviation of the data, positive.
        sigma_min: the level at which the function is the identity.

    Source: Song et al., Consistency Models, appendix C, https://arxiv.org/abs/2303.01469.

    Example:
        >>> import torch
        >>> consistency_scalings(torch.tensor([0.5]), sigma_data=0.5, sigma_min=0.5)[:2]
        (tensor([1.]), tensor([0.]))
    """
    sigma = full(sigma)
    total = sigma.square() + sigma_data**2
    shifted = sigma - sigma_min
    return Scalings(
        sigma_data**2 / (shifted.square() + sigma_data**2),
        shifted * sigma_data * total.rsqrt(),
        total.rsqrt(),
    )


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
    return c_skip * z + c_out * full(network(c_in * z, sigma))


def edm(network: Velocity, *, sigma_data: float = 0.5) -> Denoiser:
    """A raw network ``F(scaled state, sigma)`` as EDM's denoiser; noise conditioning is the network's matter.

    Args:
        network: any callable ``(state, sigma) -> state``.
        sigma_data: standard deviation of the data.

    Source: Karras et al., eq. 7, https://arxiv.org/abs/2206.00364.

    Example:
        >>> import torch
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
        >>> import torch
        >>> f = consistency(lambda z, sigma: z + 7, sigma_min=0.5)
        >>> f(torch.ones(1, 2), torch.tensor([0.5]))
        tensor([[1., 1.]])
    """

    def function(z: Tensor, sigma: Tensor, /) -> Tensor:
        scalings = consistency_scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
        return _scaled(network, scalings, z, sigma)

    return function
