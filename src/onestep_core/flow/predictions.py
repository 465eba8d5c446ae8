"""Predictions: what a network says, translated.

On a path ``z = alpha data + sigma noise`` the four usual outputs carry the same information:

    noise    = (z - alpha data) / sigma
    velocity = alpha' data + sigma' noise
    score    = -noise / sigma          (of the density of z; data and noise are conditional means given z)

Every conversion goes through the data, so there are two functions a quantity. What is *not* implied: that a
conversion is well conditioned. Data from noise divides by ``alpha``, noise from data by ``sigma``; velocity
from either is as good as the path allows.

Functions of tensors convert values; ``denoiser_from_*`` and ``*_from_denoiser`` convert callables.
"""

from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, Path, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


def _at(path: Path, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = full(t)
    alpha, sigma = path.coefficients(t)
    alpha_rate, sigma_rate = path.rates(t)
    return (
        expand_like(alpha, like),
        expand_like(sigma, like),
        expand_like(alpha_rate, like),
        expand_like(sigma_rate, like),
    )


@typed
def data_from_noise(z: Sample, noise: Sample, t: Time, *, path: Path) -> Sample:
    """``(z - sigma noise) / alpha``. Not finite where ``alpha`` is zero.

    Args:
        z: states, ``[batch, *shape]``.
        noise: predicted noise, ``[batch, *shape]``.
        t: times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> data_from_noise(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[0.]])
    """
    alpha, sigma, _, _ = _at(path, t, z)
    return (full(z) - sigma * full(noise)) / alpha


@typed
def noise_from_data(z: Sample, data: Sample, t: Time, *, path: Path) -> Sample:
    """``(z - alpha data) / sigma``. Not finite where ``sigma`` is zero. Arguments as :func:`data_from_noise`.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> noise_from_data(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[2.]])
    """
    alpha, sigma, _, _ = _at(path, t, z)
    return (full(z) - alpha * full(data)) / sigma


@typed
def data_from_velocity(z: Sample, v: Sample, t: Time, *, path: Path) -> Sample:
    """``(sigma' z - sigma v) / (alpha sigma' - alpha' sigma)``. Arguments as :func:`data_from_noise`.

    On the linear path ``z - t v``.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> data_from_velocity(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[0.]])
    """
    alpha, sigma, alpha_rate, sigma_rate = _at(path, t, z)
    return (sigma_rate * full(z) - sigma * full(v)) / (alpha * sigma_rate - alpha_rate * sigma)


@typed
def velocity_from_data(z: Sample, data: Sample, t: Time, *, path: Path) -> Sample:
    """``alpha' data + sigma' (z - alpha data) / sigma``. Arguments as :func:`data_from_noise`.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> velocity_from_data(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[2.]])
    """
    alpha, sigma, alpha_rate, sigma_rate = _at(path, t, z)
    return alpha_rate * full(data) + sigma_rate * ((full(z) - alpha * full(data)) / sigma)


@typed
def score_from_data(z: Sample, data: Sample, t: Time, *, path: Path) -> Sample:
    """``(alpha data - z) / sigma^2``, Tweedie's formula. Arguments as :func:`data_from_noise`.

    Source: Efron, Tweedie's Formula and Selection Bias, eq. 1.4, https://doi.org/10.1198/jasa.2011.tm11181.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> score_from_data(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[-4.]])
    """
    alpha, sigma, _, _ = _at(path, t, z)
    return (alpha * full(data) - full(z)) / sigma.square()


@typed
def data_from_score(z: Sample, score: Sample, t: Time, *, path: Path) -> Sample:
    """``(z + sigma^2 score) / alpha``. Arguments as :func:`data_from_noise`.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> data_from_score(torch.tensor([[1.0]]), torch.tensor([[-4.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[0.]])
    """
    alpha, sigma, _, _ = _at(path, t, z)
    return (full(z) + sigma.square() * full(score)) / alpha


def denoiser_from_velocity(velocity: Velocity, *, path: Path) -> Denoiser:
    """A denoiser that asks ``velocity``: one evaluation a call.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> denoiser = denoiser_from_velocity(lambda z, t: z, path=Linear())
        >>> denoiser(torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor([[0.5000]])
    """

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return data_from_velocity(z, velocity(z, t), t, path=path)

    return denoiser


def velocity_from_denoiser(denoiser: Denoiser, *, path: Path) -> Velocity:
    """A velocity that asks ``denoiser``: one evaluation a call; not finite at a data end without noise.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> velocity = velocity_from_denoiser(lambda z, t: 0 * z, path=Linear())
        >>> velocity(torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor([[2.]])
    """

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return velocity_from_data(z, denoiser(z, t), t, path=path)

    return velocity


def denoiser_from_noise(noise_prediction: Denoiser, *, path: Path) -> Denoiser:
    """A denoiser that asks a noise-predicting network: one evaluation a call.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> denoiser = denoiser_from_noise(lambda z, t: z, path=Linear())
        >>> denoiser(torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor([[1.]])
    """

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return data_from_noise(z, noise_prediction(z, t), t, path=path)

    return denoiser


def clamped(denoiser: Denoiser, *, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose estimates lie in ``[low, high]``, the range of the data (``clip_denoised`` in released code).

    Serves a consistency function as well; samples are clamped by ``samples.clamp(low, high)``.

    Args:
        denoiser: ``(z, t) -> data``.
        low: smallest value of the data.
        high: largest.

    Raises:
        ConfigError: if ``low < high`` does not hold.

    Example:
        >>> import torch
        >>> clamped(lambda z, t: 3 * z)(torch.ones(1, 1), torch.ones(1))
        tensor([[1.]])
    """
    if not low < high:
        raise ConfigError(f"data between {low} and {high}: expected low < high")

    def function(z: Tensor, t: Tensor, /) -> Tensor:
        return full(denoiser(z, t)).clamp(low, high)

    return function
