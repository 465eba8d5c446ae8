"""Forms: the kernels of this library as a name and two numbers, evaluated on distances that are already computed."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.euclidean import rooted
from onestep_core.validators import require_length

LOG2_E = 1 / math.log(2)
"""Bits in one unit of a natural logarithm."""


class KernelForm(NamedTuple):
    """A kernel of :mod:`onestep_core.fields.kernels` as three values.

    Args:
        shape: name of the function of ``r = |x - y| / length``.
        length: temperature, bandwidth, lengthscale or scale; a number or 0-d.
        smallest: distances below it count as it.
    """

    shape: Literal["laplace", "gaussian", "matern-1.5", "matern-2.5", "inverse-multiquadric"]
    length: float | Tensor
    smallest: float = 0.0


def log_kernel(form: KernelForm, squares: Tensor) -> Tensor:
    """``log k`` from squared distances: differentiable."""
    shape, length, smallest = form
    if smallest > 0:
        squares = squares.clamp(min=smallest**2)
    if shape == "gaussian":
        return squares / (-2 * length**2)
    if shape == "inverse-multiquadric":
        return -(squares / length**2).log1p() / 2
    if shape == "laplace":
        return -rooted(squares) / length
    r = math.sqrt(3 if shape == "matern-1.5" else 5) * rooted(squares) / length
    return (r if shape == "matern-1.5" else r + r.square() / 3).log1p() - r


def write_log2_kernel(form: KernelForm, r: Tensor, out: Tensor) -> Tensor:
    """``log2 k`` from distances, written to ``out``; the distances stay as they are."""
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


def laplace_form(*, temperature: float) -> KernelForm:
    """The form of :func:`~onestep_core.fields.laplace`; arguments and errors as there."""
    require_length("temperature", temperature)
    return KernelForm("laplace", temperature)


def gaussian_form(*, bandwidth: float) -> KernelForm:
    """The form of :func:`~onestep_core.fields.gaussian`; arguments and errors as there."""
    require_length("bandwidth", bandwidth)
    return KernelForm("gaussian", bandwidth)


def matern_form(*, smoothness: float, lengthscale: float) -> KernelForm:
    """The form of :func:`~onestep_core.fields.matern`; arguments and errors as there."""
    require_length("lengthscale", lengthscale)
    if smoothness == 0.5:
        return KernelForm("laplace", lengthscale)
    if smoothness == 1.5:
        return KernelForm("matern-1.5", lengthscale)
    if smoothness == 2.5:
        return KernelForm("matern-2.5", lengthscale)
    raise ConfigError(f"smoothness = {smoothness}: expected 0.5, 1.5 or 2.5, the cases with a closed form")


def inverse_multiquadric_form(*, scale: float) -> KernelForm:
    """The form of :func:`~onestep_core.fields.inverse_multiquadric`; arguments and errors as there."""
    require_length("scale", scale)
    return KernelForm("inverse-multiquadric", scale)
