"""Paths from data to noise in closed form: ``z = alpha(t) data + sigma(t) noise``.

The data lie at ``data_time``, where ``sigma`` is zero or smallest; the noise at ``noise_time``. ``alpha`` need not
vanish at the noise end: variance-exploding paths keep the data under much noise. The state from which sampling starts
is ``path.prior(noise) = sigma(noise_time) * noise``.

Configuration is checked when a path is made. Times are never checked by value: that would break compiled graphs and
make a GPU wait.
"""

import math

import attrs
import torch

from onestep_core.errors import ConfigError
from onestep_core.flow.paths.point import point_on_path, prior_state
from onestep_core.typing import Time, typed
from onestep_core.validators import at_least_and_below, not_negative, positive


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
