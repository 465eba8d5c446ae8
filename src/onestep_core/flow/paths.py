"""Paths from data to noise: ``z = alpha(t) data + sigma(t) noise``.

A path fixes two functions of time and nothing else; the velocity of a pair is its derivative,
``v = alpha'(t) data + sigma'(t) noise``. The data lie at ``data_time`` (``sigma`` is zero or smallest), the
noise at ``noise_time``. That ``alpha`` vanishes at the noise end is *not* implied: variance-exploding paths
keep the data under much noise, and the state to start sampling from is ``path.prior(noise) =
sigma(noise_time) * noise``.

Configuration is checked when a path is made; times are never checked by value, which would break compiled
graphs and synchronise a GPU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives import with_graph
from onestep_core.flow.ratios import time_at
from onestep_core.precision import full
from onestep_core.protocols import Path
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import at_least_and_below, not_negative, positive


class PathPoint(NamedTuple):
    """State and instantaneous velocity of one pair at one time, both ``[batch, *shape]``."""

    z: Tensor
    v: Tensor


@typed
def point_on_path(path: Path, data: Sample, noise: Sample, t: Time) -> PathPoint:
    """``z = alpha data + sigma noise`` and ``v = alpha' data + sigma' noise`` at ``t``; what ``path(...)`` calls.

    Raises:
        jaxtyping.TypeCheckError: if data and noise differ in shape, or ``t`` is not ``[batch]``.
    """
    data, noise, t = full(data), full(noise), full(t)
    alpha, sigma = (expand_like(c, data) for c in path.coefficients(t))
    alpha_rate, sigma_rate = (expand_like(c, data) for c in path.rates(t))
    return PathPoint(alpha * data + sigma * noise, alpha_rate * data + sigma_rate * noise)


@typed
def prior_state(path: Path, noise: Sample) -> Sample:
    """``sigma(noise_time) * noise``, ``[batch, *shape]``: where sampling starts; what ``path.prior(...)`` calls."""
    end = torch.full((1,), path.noise_time, dtype=full(noise).dtype, device=noise.device)
    return path.coefficients(end)[1] * full(noise)


@attrs.frozen
class Linear:
    """``z = (1 - t) data + (noise_floor + (1 - noise_floor) t) noise``, t in [0, 1]; rectified flow's path.

    Args:
        noise_floor: standard deviation of the noise left at the data end, in [0, 1).

    Raises:
        ConfigError: if ``noise_floor`` is outside [0, 1).

    Source: Lipman et al., Flow Matching, section 4.1 (their time runs from noise to data),
    https://arxiv.org/abs/2210.02747; Liu et al., Rectified Flow, https://arxiv.org/abs/2209.03003.

    Example:
        >>> z, v = Linear()(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.0, 0.5]))
        >>> z[:, 0], v[:, 0]
        (tensor([0.0000, 0.5000]), tensor([1., 1.]))
    """

    noise_floor: float = attrs.field(default=0.0, validator=at_least_and_below(0.0, 1.0))

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """Time of the data: 0."""
        return 0.0

    @property
    def noise_time(self) -> float:
        """Time of the noise: 1."""
        return 1.0

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``1 - t`` and ``noise_floor + (1 - noise_floor) t``."""
        return 1 - t, self.noise_floor + (1 - self.noise_floor) * t

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``-1`` and ``1 - noise_floor``."""
        return -torch.ones_like(t), torch.full_like(t, 1 - self.noise_floor)

    @typed
    def time_at(self, ratio: Time) -> Time:
        """``x / (1 + x)`` with ``x = ratio - noise_floor``: the time with ``sigma = ratio alpha``."""
        return 1 / (1 + 1 / (ratio - self.noise_floor))


@attrs.frozen
class Trigonometric:
    """``z = cos(t) data + sin(t) sigma_data noise``, t in [0, pi/2]; TrigFlow.

    With data of standard deviation ``sigma_data`` the state keeps it at every time. ``noise`` has unit
    variance here; the paper's already carries ``sigma_data``.

    Args:
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Lu and Song, Simplifying, Stabilizing and Scaling Continuous-time Consistency Models, section 3,
    https://arxiv.org/abs/2410.11081.

    Example:
        >>> z, v = Trigonometric()(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1))
        >>> z, bool((v == 0).all())
        (tensor([[1., 1.]]), True)
    """

    sigma_data: float = attrs.field(default=1.0, validator=positive)

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """Time of the data: 0."""
        return 0.0

    @property
    def noise_time(self) -> float:
        """Time of the noise: pi/2."""
        return math.pi / 2

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``cos t`` and ``sigma_data sin t``."""
        return t.cos(), self.sigma_data * t.sin()

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``-sin t`` and ``sigma_data cos t``."""
        return -t.sin(), self.sigma_data * t.cos()

    @typed
    def time_at(self, ratio: Time) -> Time:
        """``arctan(ratio / sigma_data)``, the time with ``sigma = ratio alpha``."""
        return (ratio / self.sigma_data).atan()


@attrs.frozen
class VariancePreserving:
    """``alpha^2 = sigmoid(log_snr(t))``, ``sigma^2 = sigmoid(-log_snr(t))``: their squares sum to one.

    Args:
        log_snr: decreasing function of time, elementwise and differentiable, ``[batch] -> [batch]``.
        data_time: time of the data.
        noise_time: time of the noise.

    Raises:
        ConfigError: if the two times are equal or ``log_snr`` cannot be called.

    Source: Kingma et al., Variational Diffusion Models, section 3, https://arxiv.org/abs/2107.00630.

    Example:
        A cosine schedule, cut off short of its ends, where its logarithm is infinite:

        >>> path = VariancePreserving(lambda t: -2 * torch.log(torch.tan(0.5 * torch.pi * t)), 1e-3, 1 - 1e-3)
        >>> alpha, sigma = path.coefficients(torch.tensor([0.5]))
        >>> torch.allclose(alpha, sigma)
        True
    """

    log_snr: Callable[[Tensor], Tensor] = attrs.field()
    data_time: float = attrs.field(default=0.0)
    noise_time: float = attrs.field(default=1.0)

    def __attrs_post_init__(self) -> None:
        if not callable(self.log_snr):
            raise ConfigError(
                f"log_snr is a {type(self.log_snr).__name__}: expected a function of time, [batch] -> [batch]; "
                "for a table of cumulative alphas use VariancePreserving.from_table"
            )
        if self.noise_time == self.data_time:
            raise ConfigError(f"data_time and noise_time are both {self.data_time!r}: they must differ")

    __call__ = point_on_path
    prior = prior_state

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``sqrt(sigmoid(log_snr))`` and ``sqrt(sigmoid(-log_snr))``."""
        log_snr = self.log_snr(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``alpha sigma^2 log_snr' / 2`` and ``-sigma alpha^2 log_snr' / 2``."""
        log_snr, slope = with_graph(self.log_snr, (t,), (torch.ones_like(t),))
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        return alpha * sigma.square() * slope / 2, -sigma * alpha.square() * slope / 2

    @classmethod
    def cosine(cls, *, log_snr_min: float = -20.0, log_snr_max: float = 20.0) -> "VariancePreserving":
        """``log_snr(t) = -2 log tan(a t + b)``, from ``log_snr_max`` at ``t = 0`` to ``log_snr_min`` at ``t = 1``.

        The cosine schedule with its ends cut off: ``alpha = cos(a t + b)``, ``sigma = sin(a t + b)``. Near the noise
        end the tangent amplifies rounding by ``exp(-log_snr_min / 2)``: half of float32's digits with the default.

        Args:
            log_snr_min: at the noise end.
            log_snr_max: at the data end, above ``log_snr_min``.

        Raises:
            ConfigError: unless ``log_snr_min < log_snr_max``, both finite.

        Source: Salimans and Ho, Progressive Distillation, https://arxiv.org/abs/2202.00512, and its released
        ``schedules.py`` (google-research/diffusion_distillation), which gives the two ends.

        Example:
            >>> path = VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0)
            >>> path.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
            tensor([ 10.0000, -10.0000], dtype=torch.float64)
        """
        if not (math.isfinite(log_snr_min) and math.isfinite(log_snr_max) and log_snr_min < log_snr_max):
            raise ConfigError(
                f"a cosine schedule from log_snr_max = {log_snr_max} to log_snr_min = {log_snr_min}: expected finite "
                "numbers, log_snr_min below log_snr_max"
            )
        first, last = (math.atan(math.exp(-0.5 * end)) for end in (log_snr_max, log_snr_min))
        return cls(_Cosine(last - first, first))

    @classmethod
    def from_table(cls, alphas_cumprod: Tensor) -> "VariancePreserving":
        """The path through a discrete table of ``alpha_bar = alpha^2``, for networks trained on integer steps.

        Times are table indices, ``0`` to ``len - 1``, fractions included; ``log_snr`` is linear between them.

        Args:
            alphas_cumprod: ``[steps]``, strictly decreasing, strictly inside (0, 1), at least two.

        Raises:
            ConfigError: if the table has another shape, order or range.

        Source: Ho et al., Denoising Diffusion Probabilistic Models, section 2, https://arxiv.org/abs/2006.11239.

        Example:
            >>> path = VariancePreserving.from_table(torch.tensor([0.9, 0.5, 0.1]))
            >>> path.coefficients(torch.tensor([1.0]))[0] ** 2
            tensor([0.5000])
        """
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        inside = table.ndim == 1 and len(table) > 1 and bool(((table > 0) & (table < 1)).all())
        if not inside or bool((table.diff() >= 0).any()):
            raise ConfigError(
                f"alphas_cumprod of shape {tuple(table.shape)}: expected at least two strictly decreasing "
                "numbers strictly between 0 and 1, the squared signal coefficients of steps 0, 1, ..."
            )
        log_snr = torch.logit(table)
        return cls(_Interpolated(log_snr), data_time=0.0, noise_time=float(len(table) - 1))


@attrs.frozen
class _Cosine:
    """``-2 log tan(slope t + start)``."""

    slope: float
    start: float

    def __call__(self, t: Tensor) -> Tensor:
        return -2 * (self.slope * t + self.start).tan().log()


class _Interpolated:
    """Piecewise linear function through ``values`` at 0, 1, ...; continued beyond the ends."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __call__(self, t: Tensor) -> Tensor:
        values = self._values.to(device=t.device, dtype=t.dtype)
        left = t.detach().floor().long().clamp(0, len(values) - 2)
        return values[left] + (t - left) * (values[left + 1] - values[left])


@attrs.frozen
class VarianceExploding:
    """``z = data + t noise``, time is the noise level, t in [sigma_min, sigma_max]; EDM's path.

    Args:
        sigma_min: smallest noise level, not negative.
        sigma_max: largest, above ``sigma_min``; may be infinite, where no prior state exists.

    Raises:
        ConfigError: if ``0 <= sigma_min < sigma_max`` does not hold.

    Source: Karras et al., Elucidating the Design Space, table 1, https://arxiv.org/abs/2206.00364.

    Example:
        >>> VarianceExploding(0.002, 80.0).prior(torch.ones(1, 1))
        tensor([[80.]])
    """

    sigma_min: float = attrs.field(default=0.002, validator=not_negative)
    sigma_max: float = attrs.field(default=80.0)

    def __attrs_post_init__(self) -> None:
        if not self.sigma_max > self.sigma_min:
            raise ConfigError(f"sigma_max = {self.sigma_max!r}: expected more than sigma_min = {self.sigma_min!r}")

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """Time of the (nearly clean) data: ``sigma_min``."""
        return self.sigma_min

    @property
    def noise_time(self) -> float:
        """Time of the noise: ``sigma_max``."""
        return self.sigma_max

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``1`` and ``t``."""
        return torch.ones_like(t), t

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``0`` and ``1``."""
        return torch.zeros_like(t), torch.ones_like(t)

    @typed
    def time_at(self, ratio: Time) -> Time:
        """``ratio``: the time is the noise ratio, also beyond the ends."""
        return ratio


@attrs.frozen
class Reversed:
    """``original`` with time running the other way: ``t -> data_time + noise_time - t``. Made by :func:`reverse`."""

    original: Path

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """The original's ``noise_time``."""
        return self.original.noise_time

    @property
    def noise_time(self) -> float:
        """The original's ``data_time``."""
        return self.original.data_time

    def _mirrored(self, t: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return self.original.data_time + self.original.noise_time - t

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """The original's coefficients at the mirrored time."""
        return self.original.coefficients(self._mirrored(t))

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """The original's rates at the mirrored time, negated."""
        alpha_rate, sigma_rate = self.original.rates(self._mirrored(t))
        return -alpha_rate, -sigma_rate

    @typed
    def time_at(self, ratio: Time) -> Time:
        """The mirrored time of the original's."""
        return self._mirrored(time_at(ratio, path=self.original))


def reverse(path: Path) -> Path:
    """The same path with noise where the data were in time: ``reverse(Linear())`` has noise at 0 and data at 1.

    Velocities change sign; a jump ``z + (s - t) a`` serves both directions.

    Raises:
        ConfigError: if an end of the path is infinite.

    Example:
        >>> path = reverse(Linear())
        >>> path.noise_time, path.data_time
        (0.0, 1.0)
    """
    if not (math.isfinite(path.data_time) and math.isfinite(path.noise_time)):
        raise ConfigError(
            f"a path from {path.data_time} to {path.noise_time} cannot be reversed: both ends must be finite; "
            "give it a finite sigma_max"
        )
    return path.original if isinstance(path, Reversed) else Reversed(path)


@attrs.frozen
class NoiseScaled:
    """``original`` with noise of standard deviation ``noise_std``: ``z = alpha data + noise_std sigma noise``.

    Inductive moment matching and TrigFlow give the noise the spread of the data, so that the state keeps it on the
    cosine path; ``Trigonometric(sigma_data)`` is one such path. The prior is scaled with it.

    Args:
        original: any path.
        noise_std: positive; the standard deviation of the data in those methods.

    Raises:
        ConfigError: if ``noise_std`` is not positive.

    Example:
        >>> NoiseScaled(Linear(), 0.5).prior(torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    original: Path
    noise_std: float = attrs.field(validator=positive)

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """The original's."""
        return self.original.data_time

    @property
    def noise_time(self) -> float:
        """The original's."""
        return self.original.noise_time

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """The original's ``alpha``, and its ``sigma`` times ``noise_std``."""
        alpha, sigma = self.original.coefficients(t)
        return alpha, self.noise_std * sigma

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """The original's rates, the second times ``noise_std``."""
        alpha_rate, sigma_rate = self.original.rates(t)
        return alpha_rate, self.noise_std * sigma_rate

    @typed
    def time_at(self, ratio: Time) -> Time:
        """The original's time of ``ratio / noise_std``."""
        return time_at(ratio / self.noise_std, path=self.original)
