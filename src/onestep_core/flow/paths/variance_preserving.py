"""Variance-preserving paths: ``alpha^2 + sigma^2 = 1``, given by their signal-to-noise ratio."""

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives import with_graph
from onestep_core.flow.paths.point import point_on_path, prior_state
from onestep_core.flow.ratios import time_of_noise_ratio
from onestep_core.typing import Time, typed


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
        if math.isnan(self.data_time) or math.isnan(self.noise_time):
            raise ConfigError(f"data_time = {self.data_time!r}, noise_time = {self.noise_time!r}: expected numbers")
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

    @typed
    def time_at(self, ratio: Time) -> Time:
        """The time of a noise ratio ``sigma / alpha``, or the nearer end; in closed form for a table."""
        if isinstance(self.log_snr, _Interpolated):
            low, high = sorted((self.data_time, self.noise_time))
            return self.log_snr.inverse(-2 * ratio.log()).clamp(low, high)
        return time_of_noise_ratio(ratio, path=self)

    @classmethod
    def cosine(cls, *, log_snr_min: float = -20.0, log_snr_max: float = 20.0) -> "VariancePreserving":
        """``log_snr(t) = -2 log tan(a t + b)``, from ``log_snr_max`` at ``t = 0`` to ``log_snr_min`` at ``t = 1``.

        The cosine schedule with its ends cut off: ``alpha = cos(a t + b)``, ``sigma = sin(a t + b)``. Near the noise
        end the tangent amplifies rounding by ``exp(-log_snr_min / 2)``: half of float32's digits with the default.

        Args:
            log_snr_min: value at the noise end.
            log_snr_max: value at the data end, above ``log_snr_min``.

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

    def inverse(self, value: Tensor) -> Tensor:
        """Where the function has a value; the values decrease."""
        values = self._values.to(device=value.device, dtype=value.dtype)
        # A count, because ONNX has no `searchsorted`.
        left = ((values > value.detach()[..., None]).sum(-1) - 1).clamp(0, len(values) - 2)
        return left + (value - values[left]) / (values[left + 1] - values[left])
