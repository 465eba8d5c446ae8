"""Paths made of other paths: with time reversed, or with noise of another standard deviation."""

import math

import attrs
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.paths.point import point_on_path, prior_state
from onestep_core.flow.ratios import time_at
from onestep_core.protocols import Path
from onestep_core.typing import Time, typed
from onestep_core.validators import positive


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


@typed
def reverse(path: Path) -> Path:
    """The same path with noise where the data were in time: ``reverse(Linear())`` has noise at 0 and data at 1.

    Velocities change sign; a jump ``z + (s - t) a`` serves both directions.

    Raises:
        ConfigError: if an end of the path is infinite.

    Example:
        >>> from onestep_core.flow import Linear
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
        >>> import torch
        >>> from onestep_core.flow import Linear
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
