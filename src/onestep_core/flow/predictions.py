"""Predictions: conversions between what networks predict: data, noise, velocity, score.

On a path ``z = alpha data + sigma noise`` the four usual outputs carry the same information:

    noise    = (z - alpha data) / sigma
    velocity = alpha' data + sigma' noise
    score    = -noise / sigma          (of the density of z; data and noise are conditional means given z)

Every conversion goes through the data, so there are two functions for each quantity. A conversion need *not* be well
conditioned: data from noise divides by ``alpha``, noise from data by ``sigma``.

Functions of tensors convert values; ``denoiser_from_*`` and ``*_from_denoiser`` convert callables.
"""

from collections.abc import Callable

from torch import Tensor

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow.ratios import noise_ratio, time_at
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, Path, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed


def _at(path: Path, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    alpha_rate, sigma_rate = path.rates(full(t))
    return (*_scales(path, t, like), expand_like(alpha_rate, like), expand_like(sigma_rate, like))


def _scales(path: Path, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = path.coefficients(full(t))
    return expand_like(alpha, like), expand_like(sigma, like)


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
    alpha, sigma = _scales(path, t, z)
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
    alpha, sigma = _scales(path, t, z)
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
    alpha, sigma = _scales(path, t, z)
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
    alpha, sigma = _scales(path, t, z)
    return (full(z) + sigma.square() * full(score)) / alpha


@typed
def data_from_v_prediction(z: Sample, v: Sample, t: Time, *, path: Path) -> Sample:
    """``(alpha z - sigma v) / (alpha^2 + sigma^2)`` for ``v = alpha noise - sigma data``. Divides by no small number.

    This ``v``, of "v-prediction", is the velocity in the angle ``atan(sigma / alpha)`` and not in the path's time:
    the two agree on the trigonometric path with ``sigma_data = 1``. Arguments as :func:`data_from_noise`.

    Source: Salimans and Ho, Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> data_from_v_prediction(torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[0.]])
    """
    alpha, sigma = _scales(path, t, z)
    return (alpha * full(z) - sigma * full(v)) / (alpha.square() + sigma.square())


@typed
def v_prediction_from_data(z: Sample, data: Sample, t: Time, *, path: Path) -> Sample:
    """``alpha noise - sigma data`` with the noise that ``z`` and ``data`` imply. Not finite where ``sigma`` is zero.

    Arguments as :func:`data_from_noise`; see :func:`data_from_v_prediction`.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> v_prediction_from_data(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([0.5]), path=Linear())
        tensor([[1.]])
    """
    alpha, sigma = _scales(path, t, z)
    return alpha * ((full(z) - alpha * full(data)) / sigma) - sigma * full(data)


@typed
def data_from_both(z: Sample, data: Sample, noise: Sample, t: Time, *, path: Path) -> Sample:
    """``(sigma^2 data + alpha (z - sigma noise)) / (alpha^2 + sigma^2)``: two predictions, each where it is accurate.

    A mean of the predicted data and of the data that the predicted noise implies, in which the second counts by
    ``alpha^2``: it is trusted where there is signal, and nothing is divided by ``alpha``.

    Args:
        z: states, ``[batch, *shape]``.
        data: predicted data, ``[batch, *shape]``.
        noise: predicted noise, ``[batch, *shape]``.
        t: times, ``[batch]``.
        path: gives ``alpha`` and ``sigma``.

    Source: Salimans and Ho, Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512 (there on
    variance-preserving paths, where the denominator is 1).

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> z, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> data_from_both(z, zero, zero, torch.tensor([0.5]), path=Linear())
        tensor([[1.]])
    """
    alpha, sigma = _scales(path, t, z)
    total = alpha.square() + sigma.square()
    return (sigma.square() * full(data) + alpha * (full(z) - sigma * full(noise))) / total


@typed
def denoiser_from_velocity(velocity: Velocity, *, path: Path) -> Denoiser:
    """A denoiser that evaluates ``velocity``, once a call.

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


@typed
def velocity_from_denoiser(denoiser: Denoiser, *, path: Path) -> Velocity:
    """A velocity that evaluates ``denoiser``, once a call; not finite at a data end without noise.

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


@typed
def velocity_on_path(velocity: Velocity, *, source: Path, target: Path) -> Velocity:
    """A velocity learnt on ``source``, as that of ``target``: one evaluation a call, and nothing to train.

    States of one noise ratio ``sigma / alpha`` differ by a factor and expect the same data and noise. With the
    source's time ``r`` of the ratio at ``t`` and ``y = z |(alpha, sigma)_source(r)| / |(alpha, sigma)_target(t)|``,
    the answer at ``(y, r)`` gives both, and ``v = alpha' data + sigma' noise`` on the target: nothing is divided by
    ``alpha`` or ``sigma``. So a flow-matching teacher on the linear path starts, or teaches, a student of
    continuous-time consistency on the trigonometric one.

    Args:
        velocity: ``(z, t) -> dz/dt`` on ``source``.
        source: the path on which it was learnt.
        target: the path of the result. Beyond the source's ends it is evaluated at its end; a source whose noise end is
            infinite has no answer at the noise end of a path that has one.

    Raises:
        ConfigError: if ``velocity`` answers in another shape than its states.

    Source: the two scales of time and state are those of Karras et al., appendix B, https://arxiv.org/abs/2206.00364.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear, Trigonometric
        >>> pair = velocity_on_path(lambda z, t: torch.ones_like(z), source=Linear(), target=Trigonometric())
        >>> pair(torch.zeros(1, 1), torch.zeros(1))  # data 0, noise 1: cos(0) times the noise
        tensor([[1.]])
    """

    def on_target(z: Tensor, t: Tensor, /) -> Tensor:
        z, t = full(z), full(t)
        low, high = sorted((source.data_time, source.noise_time))
        r = time_at(noise_ratio(t, path=target), path=source).clamp(low, high)
        alpha, sigma, alpha_rate, sigma_rate = _at(target, t, z)
        a, b, a_rate, b_rate = _at(source, r, z)
        # Not `hypot`, which ONNX does not have.
        y = z * ((a.square() + b.square()) / (alpha.square() + sigma.square())).sqrt()
        of_state, of_answer = alpha_rate * b_rate - sigma_rate * a_rate, sigma_rate * a - alpha_rate * b
        u = full(like_states(velocity(y, r), y))
        return (of_state * y + of_answer * u) / (a * b_rate - a_rate * b)

    return on_target


@typed
def denoiser_from_noise(noise_prediction: Denoiser, *, path: Path) -> Denoiser:
    """A denoiser that evaluates a noise-predicting network, once a call.

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


@typed
def denoiser_from_v_prediction(network: Denoiser, *, path: Path) -> Denoiser:
    """A denoiser that evaluates a network of ``v = alpha noise - sigma data``, once a call.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> denoiser = denoiser_from_v_prediction(lambda z, t: 0 * z, path=Linear())
        >>> denoiser(torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor([[1.]])
    """

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return data_from_v_prediction(z, network(z, t), t, path=path)

    return denoiser


@typed
def denoiser_from_both(network: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], *, path: Path) -> Denoiser:
    """A denoiser that evaluates a network of ``(data, noise)``, once a call; see :func:`data_from_both`.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> denoiser = denoiser_from_both(lambda z, t: (0 * z, 0 * z), path=Linear())
        >>> denoiser(torch.tensor([[1.0]]), torch.tensor([0.5]))
        tensor([[1.]])
    """

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        data, noise = network(z, t)
        return data_from_both(z, data, noise, t, path=path)

    return denoiser


@typed
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
        return full(like_states(denoiser(z, t), z)).clamp(low, high)

    return function
