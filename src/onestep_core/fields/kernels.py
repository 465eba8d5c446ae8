"""Kernels: how alike two points are, as logarithms.

A kernel takes two clouds ``x [.., n, channel]`` and ``y [.., m, channel]`` and returns ``log k(x_i, y_j)``,
``[.., n, m]``: logarithms, because at a small temperature ``exp`` underflows.

All four depend on the Euclidean distance alone, through a profile. Value and gradient are finite at distance zero (the
gradient there is zero), so a field that needs the gradient of a kernel takes it by differentiation. A kernel on
features is ``k(phi(x), phi(y))``: fields take ``keys=phi`` for it. A kernel of your own that is a :class:`Radial`
shares one matrix of distances with others, as those here do.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.fields.euclidean import rooted, squared_distances
from onestep_core.fields.kernel_forms import (
    LOG2_E,
    KernelForm,
    gaussian_form,
    inverse_multiquadric_form,
    laplace_form,
    log_kernel,
    matern_form,
    write_log2_kernel,
)
from onestep_core.protocols import Kernel
from onestep_core.typing import typed

Profile: TypeAlias = Callable[[Tensor], Tensor]
"""``log k`` from distances, element by element; it may overwrite them."""
Written: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``log2 k`` from distances, which it leaves as they are, written to a second tensor."""


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
    form: "KernelForm | None" = None

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """``log k(x_i, y_j)``, ``[.., n, m]``."""
        return cast(Profile, from_squares(self))(squared_distances(x, y))


def form_of(kernel: Kernel) -> KernelForm | None:
    """The form of a :class:`Radial` kernel that has one, or of a kernel of this file with its numbers bound; else
    ``None``."""
    if isinstance(kernel, Radial):
        return kernel.form
    if not isinstance(kernel, partial) or kernel.args:
        return None
    # By identity: a kernel of the user's own need not be hashable.
    known = next((known for function, known in _FORMS.items() if function is kernel.func), None)
    if known is None:
        return None
    numbers = dict(kernel.keywords)
    if numbers.keys() != inspect.signature(known).parameters.keys() or not all(
        isinstance(value, int | float) for value in numbers.values()
    ):
        # The kernel raises its own error for them.
        kernel(torch.zeros(1, 1), torch.zeros(1, 1))
    return known(**numbers)


def profile(kernel: Kernel) -> Written | None:
    """``log2 k`` of a :class:`Radial` kernel, or of one of this file with its numbers bound; else ``None``."""
    if isinstance(kernel, Radial):
        return partial(_written, kernel.profile)
    known = form_of(kernel)
    return None if known is None else partial(write_log2_kernel, known)


def from_squares(kernel: Kernel) -> Profile | None:
    """``log k`` of the same kernels from squared distances, which it leaves as they are: differentiable."""
    known = form_of(kernel)
    if known is None and isinstance(kernel, Radial):
        return lambda squares: kernel.profile(rooted(squares))
    return None if known is None else partial(log_kernel, known)


def _written(profile: Profile, r: Tensor, out: Tensor) -> Tensor:
    log_k = profile(out.copy_(r))
    return (log_k if log_k is out else out.copy_(log_k)).mul_(LOG2_E)


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
    return log_kernel(laplace_form(temperature=temperature), squared_distances(x, y))


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
    return log_kernel(gaussian_form(bandwidth=bandwidth), squared_distances(x, y))


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
    return log_kernel(matern_form(smoothness=smoothness, lengthscale=lengthscale), squared_distances(x, y))


@typed
def inverse_multiquadric(
    x: Float[Tensor, "*groups n channel"], y: Float[Tensor, "*groups m channel"], *, scale: float
) -> Float[Tensor, "*groups n m"]:
    """``log k = -log(1 + |x - y|^2 / scale^2) / 2``: heavy tails. Arguments and errors as :func:`laplace`.

    Example:
        >>> inverse_multiquadric(torch.tensor([[0.0]]), torch.tensor([[0.0]]), scale=0.5).abs()
        tensor([[0.]])
    """
    return log_kernel(inverse_multiquadric_form(scale=scale), squared_distances(x, y))


_FORMS: dict[Any, Callable[..., KernelForm]] = {
    laplace: laplace_form,
    gaussian: gaussian_form,
    matern: matern_form,
    inverse_multiquadric: inverse_multiquadric_form,
}
"""The forms of the kernels above."""
