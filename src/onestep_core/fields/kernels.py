"""Kernels: how alike two points are, as logarithms.

A kernel takes two clouds ``x [.., n, channel]`` and ``y [.., m, channel]`` and returns ``log k(x_i, y_j)``,
``[.., n, m]``. Logarithms, because a drift at a small temperature lives where ``exp`` underflows.

All four depend on the Euclidean distance alone, through a profile. Value and gradient are safe at zero (the gradient
there is zero), so a field that needs the gradient of a kernel takes it by differentiation. A kernel on features is
composed, ``k(phi(x), phi(y))``: fields take ``keys=phi`` for it. A kernel of your own in the form of :class:`Radial`
shares one matrix of distances with others, as those here do.

Distances between near-duplicates need care: the expansion ``|x|^2 + |y|^2 - 2 x.y`` loses them. Few channels, few
points and many points of float64 are subtracted directly; else clouds are expanded in float64 about a common centre, so
that what is lost is far below the resolution of float32. Of very large clouds of float64 (more than 2^25 differences of
coordinates) distances below 1e-8 of the radius are lost, except in fields on a processor outside transforms, which form
anew what cancels.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full, no_autocast
from onestep_core.protocols import Kernel
from onestep_core.typing import typed

_DIRECT_CHANNELS = 8
_DIRECT_ELEMENTS = {torch.float32: 2**21, torch.float64: 2**25}
"""Up to so many differences of coordinates are formed, by precision: an expansion keeps float32's digits, not those of
float64."""
CANCELLED = 0.02
"""Share of ``|x|^2 + |y|^2`` below which a squared distance is computed by subtraction."""
_DEAR = 128
"""How many pairs of a product cost as much as one by subtraction."""
_PAIRS = 2**12

Profile: TypeAlias = Callable[[Tensor], Tensor]
"""``log k`` from distances, element by element; it may overwrite them."""
Written: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``log2 k`` from distances, which it leaves as they are, written to a second tensor."""
LOG2_E = 1 / math.log(2)
"""Of the bits in a unit of a natural logarithm."""


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
    dtype = torch.promote_types(x.dtype, y.dtype)
    if x.shape[-1] <= _DIRECT_CHANNELS or math.prod(x.shape) * y.shape[-2] <= _DIRECT_ELEMENTS[dtype]:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    centre = y.detach().double().mean(-2, keepdim=True)
    a, b = x.double() - centre, y.double() - centre
    with no_autocast(x):
        products = a @ b.mT
    squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * products
    return squares.clamp(min=0.0).to(dtype)


def subtracted_pairs(x: Tensor) -> int:
    """How many pairs of points like ``x`` are subtracted directly, at most."""
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
    return _rooted(squared_distances(x, y))


def _rooted(squares: Tensor) -> Tensor:
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


class Radial(NamedTuple):
    """A kernel that is a function of the Euclidean distance: fields evaluate the distances once for several.

    Args:
        profile: ``log k`` from distances, element by element. It may work in place: each call gets distances of
            its own.
        form: the same as one of the kernels here, where it is one: what a CUDA device's kernels evaluate, and what is
            evaluated under transforms, in the place of ``profile``. ``None``: ``profile`` everywhere.

    Example:
        >>> rational = Radial(lambda r: -r.square().log1p())
        >>> rational(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        tensor([[-0.6931]])
    """

    profile: Profile
    form: "Form | None" = None

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """``log k(x_i, y_j)``, ``[.., n, m]``."""
        return cast(Profile, from_squares(self))(squared_distances(x, y))


class Form(NamedTuple):
    """A kernel of this file as three values, on distances that are at hand.

    Args:
        shape: which function of ``r = |x - y| / length``.
        length: temperature, bandwidth, lengthscale or scale; a number or 0-d.
        smallest: distances below it count as it.
    """

    shape: Literal["laplace", "gaussian", "matern-1.5", "matern-2.5", "inverse-multiquadric"]
    length: float | Tensor
    smallest: float = 0.0


def form(kernel: Kernel) -> Form | None:
    """Of a :class:`Radial` kernel that has one, or of a kernel of this file with its numbers bound; else ``None``."""
    if isinstance(kernel, Radial):
        return kernel.form
    if not isinstance(kernel, partial) or kernel.args:
        return None
    # By identity: a kernel of one's own need not be hashable.
    known = next((known for function, known in _FORMS.items() if function is kernel.func), None)
    if known is None:
        return None
    numbers = dict(kernel.keywords)
    if numbers.keys() != inspect.signature(known).parameters.keys() or not all(
        isinstance(value, int | float) for value in numbers.values()
    ):
        # Whatever the kernel says of them.
        kernel(torch.zeros(1, 1), torch.zeros(1, 1))
    return known(**numbers)


def profile(kernel: Kernel) -> Written | None:
    """``log2 k`` of a :class:`Radial` kernel, or of one of this file with its numbers bound; else ``None``."""
    if isinstance(kernel, Radial):
        return partial(_written, kernel.profile)
    known = form(kernel)
    return None if known is None else partial(_write, known)


def from_squares(kernel: Kernel) -> Profile | None:
    """``log k`` of the same kernels from squared distances, which it leaves as they are: differentiable."""
    known = form(kernel)
    if known is None and isinstance(kernel, Radial):
        return lambda squares: kernel.profile(_rooted(squares))
    return None if known is None else partial(_log_kernel, known)


def _log_kernel(form: Form, squares: Tensor) -> Tensor:
    shape, length, smallest = form
    if smallest > 0:
        squares = squares.clamp(min=smallest**2)
    if shape == "gaussian":
        return squares / (-2 * length**2)
    if shape == "inverse-multiquadric":
        return -(squares / length**2).log1p() / 2
    if shape == "laplace":
        return -_rooted(squares) / length
    r = math.sqrt(3 if shape == "matern-1.5" else 5) * _rooted(squares) / length
    return (r if shape == "matern-1.5" else r + r.square() / 3).log1p() - r


def _write(form: Form, r: Tensor, out: Tensor) -> Tensor:
    shape, length, _ = form
    if shape == "laplace":
        return torch.mul(r, -LOG2_E / length, out=out)
    if shape == "gaussian":
        return torch.mul(r, r, out=out).mul_(-0.5 * LOG2_E / length**2)
    if shape == "inverse-multiquadric":
        return torch.mul(r, r, out=out).div_(length**2).log1p_().mul_(-LOG2_E / 2)
    torch.mul(r, math.sqrt(3 if shape == "matern-1.5" else 5) / length, out=out)
    polynomial = out.clone() if shape == "matern-1.5" else out.square().div_(3).add_(out)
    return torch.sub(polynomial.log1p_(), out, out=out).mul_(LOG2_E)


def _laplace_form(*, temperature: float) -> Form:
    _positive("temperature", temperature)
    return Form("laplace", temperature)


def _gaussian_form(*, bandwidth: float) -> Form:
    _positive("bandwidth", bandwidth)
    return Form("gaussian", bandwidth)


def _matern_form(*, smoothness: float, lengthscale: float) -> Form:
    _positive("lengthscale", lengthscale)
    if smoothness == 0.5:
        return Form("laplace", lengthscale)
    if smoothness == 1.5:
        return Form("matern-1.5", lengthscale)
    if smoothness == 2.5:
        return Form("matern-2.5", lengthscale)
    raise ConfigError(f"smoothness = {smoothness}: expected 0.5, 1.5 or 2.5, the cases with a closed form")


def _inverse_multiquadric_form(*, scale: float) -> Form:
    _positive("scale", scale)
    return Form("inverse-multiquadric", scale)


def _written(profile: Profile, r: Tensor, out: Tensor) -> Tensor:
    log_k = profile(out.copy_(r))
    return (log_k if log_k is out else out.copy_(log_k)).mul_(LOG2_E)


def squared_lengths(x: Tensor) -> Tensor:
    """``|x_i|^2``, without a copy of the points."""
    return cast(Tensor, cast(Any, torch.linalg).vector_norm(x, dim=-1)).square()


def near(x: Tensor, y: Tensor, y_squares: Tensor, *, own: int | None, out: Tensor) -> Tensor:
    """``|x_i - y_j|`` of ``[group, n, channel]`` and ``[group, m, channel]``, written to ``out [group, n, m]``.

    Eager, without gradient. The expansion in the points' own precision, and anew by subtraction wherever it cancels, so
    that every pair is as exact as one of distant points; where many of float32 cancel, the whole is expanded in
    float64. ``own``: ``x`` is ``y[:, own : own + n]``, at distance zero from itself. ``y_squares``: ``|y_j|^2``.
    """
    if x.shape[-1] <= _DIRECT_CHANNELS:
        torch.sub(x[..., :1], y[..., 0].unsqueeze(-2), out=out).square_()
        for channel in range(1, x.shape[-1]):
            difference = x[..., channel : channel + 1] - y[..., channel].unsqueeze(-2)
            out.addcmul_(difference, difference)
        return out.sqrt_()
    x_squares = squared_lengths(x)
    _expanded(x, y, y_squares * (1 - CANCELLED), out)
    itself = None if own is None else out.diagonal(own, -2, -1)
    if itself is not None:
        itself.fill_(torch.inf)
    group, row = (out.amin(-1) < x_squares * (CANCELLED - 1)).nonzero(as_tuple=True)
    out.add_(x_squares.unsqueeze(-1)).add_((y_squares * CANCELLED).unsqueeze(-2))
    if len(row):
        bound = CANCELLED * (x_squares[group, row].unsqueeze(-1) + y_squares[group])
        suspect, column = (out[group, row] < bound).nonzero(as_tuple=True)
        if len(suspect) * _DEAR > out.numel() and out.dtype != torch.float64:
            a, b = x.double(), y.double()
            exact = _expanded(a, b, b.square().sum(-1), torch.empty_like(out, dtype=torch.float64))
            out.copy_(exact.add_(a.square().sum(-1).unsqueeze(-1)))
        else:
            group, row = group[suspect], row[suspect]
            for start in range(0, len(row), _PAIRS):
                g, i, j = (index[start : start + _PAIRS] for index in (group, row, column))
                out[g, i, j] = (x[g, i] - y[g, j]).square().sum(-1)
    if itself is not None:
        itself.zero_()
    return out.clamp_(min=0.0).sqrt_()


def _expanded(x: Tensor, y: Tensor, squares: Tensor, out: Tensor) -> Tensor:
    """``squares_j - 2 x_i . y_j``, written to ``out``."""
    with no_autocast(x):
        if len(x) == 1:
            torch.addmm(squares[0], x[0], y[0].mT, alpha=-2, out=out[0])
        else:
            torch.baddbmm(squares.unsqueeze(-2), x, y.mT, alpha=-2, out=out)
    return out


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
    return _log_kernel(_laplace_form(temperature=temperature), squared_distances(x, y))


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
    return _log_kernel(_gaussian_form(bandwidth=bandwidth), squared_distances(x, y))


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
    return _log_kernel(_matern_form(smoothness=smoothness, lengthscale=lengthscale), squared_distances(x, y))


@typed
def inverse_multiquadric(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"], *, scale: float
) -> Float[Tensor, "*groups n m"]:
    """``log k = -log(1 + |x - y|^2 / scale^2) / 2``: heavy tails. Arguments and errors as :func:`laplace`.

    Example:
        >>> inverse_multiquadric(torch.tensor([[0.0]]), torch.tensor([[0.0]]), scale=0.5).abs()
        tensor([[0.]])
    """
    return _log_kernel(_inverse_multiquadric_form(scale=scale), squared_distances(x, y))


_FORMS: dict[Any, Callable[..., Form]] = {
    laplace: _laplace_form,
    gaussian: _gaussian_form,
    matern: _matern_form,
    inverse_multiquadric: _inverse_multiquadric_form,
}
"""The same kernels on distances that are at hand."""
