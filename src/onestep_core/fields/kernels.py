"""Kernels: how alike two points are, as logarithms.

A kernel takes two clouds ``x [.., n, channel]`` and ``y [.., m, channel]`` and returns ``log k(x_i, y_j)``,
``[.., n, m]``. Logarithms, because a drift at a small temperature lives where ``exp`` underflows.

All four depend on the Euclidean distance alone. Its value and gradient are safe at zero (the gradient there is
zero). A kernel on features is composed, ``k(phi(x), phi(y))``: fields take ``keys=phi`` for it.

Distances between near-duplicates need care in float32: the expansion ``|x|^2 + |y|^2 - 2 x.y`` loses them. Few
channels are subtracted directly; many are expanded in float64 about a common centre, so that what is lost
is far below the resolution of the inputs.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full, no_autocast
from onestep_core.typing import typed

_DIRECT_CHANNELS = 8
_DIRECT_ELEMENTS = 2**21


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} = {value}: expected a positive number")


@typed
def squared_distances(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"]
) -> Float[Tensor, "*groups n m"]:
    """``|x_i - y_j|^2``, never negative, in at least float32.

    Args:
        x: points, ``[.., n, channel]``.
        y: points, ``[.., m, channel]``, with the same leading axes.

    Raises:
        jaxtyping.TypeCheckError: if channels or leading axes differ.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    x, y = full(x), full(y)
    channels = x.shape[-1]
    if channels <= _DIRECT_CHANNELS or math.prod(x.shape) * y.shape[-2] <= _DIRECT_ELEMENTS:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    centre = y.detach().mean(-2, keepdim=True)
    a, b = (x - centre).double(), (y - centre).double()
    with no_autocast(x):
        products = a @ b.mT
    squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * products
    return squares.clamp(min=0.0).to(x.dtype)


@typed
def distances(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"]
) -> Float[Tensor, "*groups n m"]:
    """``|x_i - y_j|`` with gradient zero where the points coincide. Arguments as :func:`squared_distances`.

    Example:
        >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    squares = squared_distances(x, y)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


@typed
def laplace(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"], *, temperature: float
) -> Float[Tensor, "*groups n m"]:
    """``log k = -|x - y| / temperature``: the kernel of drifting models.

    Args:
        x: points, ``[.., n, channel]``.
        y: points, ``[.., m, channel]``.
        temperature: length at which affinity falls by ``e``, in units of the points, positive.

    Raises:
        ConfigError: if ``temperature`` is not positive.

    Source: Deng et al., Generative Modeling via Drifting, section 3, https://arxiv.org/abs/2602.04770.

    Example:
        >>> laplace(torch.tensor([[0.0]]), torch.tensor([[1.0]]), temperature=0.5)
        tensor([[-2.]])
    """
    _positive("temperature", temperature)
    return -distances(x, y) / temperature


@typed
def gaussian(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"], *, bandwidth: float
) -> Float[Tensor, "*groups n m"]:
    """``log k = -|x - y|^2 / (2 bandwidth^2)``. Arguments and errors as :func:`laplace`.

    The mean-shift field of this kernel is ``bandwidth^2`` times a difference of smoothed scores.

    Example:
        >>> gaussian(torch.tensor([[0.0]]), torch.tensor([[1.0]]), bandwidth=0.5)
        tensor([[-2.]])
    """
    _positive("bandwidth", bandwidth)
    return squared_distances(x, y) / (-2 * bandwidth**2)


@typed
def matern(
    x: Float[Tensor, "*groups n channel"],
    y: Float[Tensor, "*groups m channel"],
    *,
    smoothness: float,
    lengthscale: float,
) -> Float[Tensor, "*groups n m"]:
    """Matern kernels in closed form, with ``r = sqrt(2 smoothness) |x - y| / lengthscale``.

    ``exp(-r)``, ``(1 + r) exp(-r)``, ``(1 + r + r^2 / 3) exp(-r)`` for smoothness 1/2, 3/2, 5/2; 1/2 is Laplace's.

    Args:
        x: points, ``[.., n, channel]``.
        y: points, ``[.., m, channel]``.
        smoothness: 0.5, 1.5 or 2.5.
        lengthscale: in units of the points, positive.

    Raises:
        ConfigError: if the smoothness is another, or the length is not positive.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 4.16-4.17,
    https://gaussianprocess.org/gpml.

    Example:
        >>> matern(torch.tensor([[0.0]]), torch.tensor([[1.0]]), smoothness=0.5, lengthscale=0.5)
        tensor([[-2.]])
    """
    _positive("lengthscale", lengthscale)
    if smoothness not in (0.5, 1.5, 2.5):
        raise ConfigError(f"smoothness = {smoothness}: expected 0.5, 1.5 or 2.5, the cases with a closed form")
    r = math.sqrt(2 * smoothness) * distances(x, y) / lengthscale
    if smoothness == 0.5:
        return -r
    polynomial = r if smoothness == 1.5 else r + r.square() / 3
    return polynomial.log1p() - r


@typed
def inverse_multiquadric(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"], *, scale: float
) -> Float[Tensor, "*groups n m"]:
    """``log k = -log(1 + |x - y|^2 / scale^2) / 2``: heavy tails. Arguments and errors as :func:`laplace`.

    Example:
        >>> inverse_multiquadric(torch.tensor([[0.0]]), torch.tensor([[0.0]]), scale=0.5).abs()
        tensor([[0.]])
    """
    _positive("scale", scale)
    return -(squared_distances(x, y) / scale**2).log1p() / 2
