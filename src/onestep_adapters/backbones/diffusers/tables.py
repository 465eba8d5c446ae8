"""Paths through the tables of discrete schedulers, with fractions of a step: what the core's closed forms lack."""

import math

import attrs
import torch
from torch import Tensor

from onestep_core.flow.paths import point_on_path, prior_state
from onestep_core.typing import Time, typed


def _between(values: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The piecewise linear function through ``values`` at 0, 1, ..., and its slope; continued beyond the ends."""
    values = values.to(device=t.device, dtype=t.dtype)
    left = t.detach().floor().long().clamp(0, len(values) - 2)
    slope = values[left + 1] - values[left]
    return values[left] + (t - left) * slope, slope


def _where(values: Tensor, highest: Tensor, value: Tensor) -> Tensor:
    """Where :func:`_between` has a value first; the nearer end where it never has.

    Args:
        values: as there.
        highest: the largest of the values up to each.
        value: ``[batch]``.
    """
    values, highest = (table.to(device=value.device, dtype=value.dtype) for table in (values, highest))
    # A count, because ONNX has no `searchsorted`.
    left = ((highest <= value.detach()[..., None]).sum(-1) - 1).clamp(0, len(values) - 2)
    return left + ((value - values[left]) / (values[left + 1] - values[left])).clamp(0, 1)


class _Table:
    """Times are the indices of a table."""

    values: Tensor

    __call__ = point_on_path
    prior = prior_state

    @property
    def data_time(self) -> float:
        """Time of the data: 0."""
        return 0.0

    @property
    def noise_time(self) -> float:
        """Time of the noise: the last index."""
        return float(len(self.values) - 1)


@attrs.frozen(eq=False)
class ZeroTerminalTable(_Table):
    """A variance-preserving path whose noise end has no signal at all: ``alpha = cos a``, ``sigma = sin a``.

    The angle ``a`` is linear between the steps. ``VariancePreserving.from_table`` interpolates ``log(alpha^2 /
    sigma^2)``, which is infinite at that end.

    Args:
        values: angles ``atan2(sigma, alpha)``, ``[steps]``, increasing, the last one pi / 2.
    """

    values: Tensor

    @classmethod
    def of(cls, alphas_cumprod: Tensor) -> "ZeroTerminalTable":
        """From ``alpha^2`` at each step."""
        alpha = alphas_cumprod.double()
        return cls(torch.atan2((1 - alpha).sqrt(), alpha.sqrt()))

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``cos a`` and ``sin a``."""
        angle, _ = _between(self.values, t)
        # The rounded pi / 2 has a cosine of -4e-8.
        alpha = torch.where(angle >= math.pi / 2 - 1e-7, 0.0, angle.cos())
        return alpha, angle.sin()

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``-a' sin a`` and ``a' cos a``."""
        angle, slope = _between(self.values, t)
        return -slope * angle.sin(), slope * angle.cos()

    @typed
    def time_at(self, ratio: Time) -> Time:
        """The time of a noise ratio ``sigma / alpha``, or the nearer end; without a derivative at an infinite ratio."""
        finite = ratio.isfinite()
        return _where(
            self.values, self.values, torch.where(finite, torch.where(finite, ratio, 0.0).atan(), math.pi / 2)
        )


@attrs.frozen(eq=False)
class NoiseLevelTable(_Table):
    """``z = data + sigma(t) noise`` with ``sigma`` between the values of a table: the states of Euler's schedulers.

    Args:
        values: ``sigma`` at each step, or its logarithm, ``[steps]``, increasing. With zero terminal SNR the last one
            is 4096 in diffusers, in place of infinity, and below some values before it.
        logarithms: the values are logarithms, and linear between the steps.
    """

    values: Tensor
    logarithms: bool = False
    highest: Tensor = attrs.field(init=False)

    @highest.default
    def _highest(self) -> Tensor:
        return self.values.cummax(0).values

    @typed
    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """``1`` and ``sigma``."""
        value, _ = _between(self.values, t)
        return torch.ones_like(t), value.exp() if self.logarithms else value

    @typed
    def rates(self, t: Time) -> tuple[Time, Time]:
        """``0`` and ``sigma'``."""
        value, slope = _between(self.values, t)
        return torch.zeros_like(t), slope * value.exp() if self.logarithms else slope

    @typed
    def time_at(self, ratio: Time) -> Time:
        """The time of a noise ratio, which is ``sigma``, or the nearer end."""
        finite = ratio.isfinite()
        known = torch.where(finite, ratio, 1.0)
        found = _where(self.values, self.highest, known.log() if self.logarithms else known)
        return torch.where(finite, found, self.noise_time)
