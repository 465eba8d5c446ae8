"""Euclidean distances between two clouds, with a gradient that is zero where two points coincide.

Distances between near-duplicates need care: the expansion ``|x|^2 + |y|^2 - 2 x.y`` loses them. Few channels, few
points and many points of float64 are subtracted directly; other clouds are expanded in float64 about a common centre,
so that what is lost is far below the resolution of float32. Of very large clouds of float64 (more than 2^25 differences
of coordinates) distances below 1e-8 of the radius are lost, except in fields on a CPU outside transforms, which compute
again what cancels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.precision import full, no_autocast
from onestep_core.typing import typed

DIRECT_CHANNELS = 8
_DIRECT_ELEMENTS = {torch.float32: 2**21, torch.float64: 2**25}
"""Largest number of differences of coordinates that are computed directly, by precision: an expansion keeps float32's
digits, but not those of float64."""


@typed
def squared_distances(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"]
) -> Float[Tensor, "*groups n m"]:
    """``|x_i - y_j|^2``, never negative, in at least float32.

    Args:
        x: points, ``[.., n, channel]``.
        y: points, ``[.., m, channel]``, with the same leading axes.

    Raises:
        ArgumentError: if channels or leading axes differ.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    x, y = full(x), full(y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    if x.shape[-1] <= DIRECT_CHANNELS or math.prod(x.shape) * y.shape[-2] <= _DIRECT_ELEMENTS[dtype]:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    centre = y.detach().double().mean(-2, keepdim=True)
    a, b = x.double() - centre, y.double() - centre
    with no_autocast(x):
        products = a @ b.mT
    squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * products
    return squares.clamp(min=0.0).to(dtype)


def subtracted_pairs(x: Tensor) -> int:
    """Largest number of pairs of points like ``x`` that are subtracted directly."""
    return _DIRECT_ELEMENTS[x.dtype] // x.shape[-1]


@typed
def distances(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"]
) -> Float[Tensor, "*groups n m"]:
    """``|x_i - y_j|`` with gradient zero where the points coincide. Arguments as :func:`squared_distances`.

    Example:
        >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    return rooted(squared_distances(x, y))


def rooted(squares: Tensor) -> Tensor:
    """The square root, with gradient zero at zero."""
    # Compared with zero, so that NaN stays NaN.
    same = squares == 0
    return torch.where(same, 0.0, torch.where(same, 1.0, squares).sqrt())
