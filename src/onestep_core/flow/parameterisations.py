"""Parameterisations of a flow map: how a network's output and the state make a map that is the identity at ``s = t``.

An average velocity makes every network the identity at ``s = t`` (``flow/maps``). On the variance-exploding path the
published maps mix the state with the network instead,

    X(z, t, s) = skip(t, s) z + out(t, s) g(z, t, s),      skip(t, t) = 1,  out(t, t) = 0,

and a *form* is such a pair of factors. In the limit ``s -> t`` the map has a velocity, and that velocity a denoiser,

    D(z, t) = (1 - t skip') z - t out' g(z, t, t),      skip', out': derivatives in s at s = t,

so that one network learns to jump by a consistency loss and to denoise by an ordinary one. Each form gives the two
factors of its limit in closed form, in which nothing large cancels.

============================  ==============================  ====================================================
form                          skip                            the network ``g``
============================  ==============================  ====================================================
:class:`EulerForm`            ``s / t``                       a denoiser; the map is a DDIM step, an average velocity
:class:`VarianceForm`         ratio of standard deviations    what is missing from a state of the right variance
:class:`EulerVarianceForm`    the two, mixed by ``1/(t+1)``   the one at large noise levels, the other at small ones
:class:`SkipForm`             ``sd^2 / ((t-s)^2 + sd^2)``     raw, as in consistency models
============================  ==============================  ====================================================

CTM scales ``g`` further, by EDM's factors, by those of consistency models, or not at all: ``preconditioned`` with
``edm_scalings``, ``consistency_scalings``, ``input_scalings``.
"""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.precision import full
from onestep_core.protocols import AverageVelocity, Denoiser, Factors, FlowMap, FlowMapForm
from onestep_core.shapes import expand_like
from onestep_core.typing import Time, typed
from onestep_core.validators import not_negative, positive


def _variance(t: Tensor, form: "VarianceForm | EulerVarianceForm") -> Tensor:
    return (t - form.sigma_min).square() + form.sigma_data**2


def _ratio(s: Tensor, t: Tensor) -> Tensor:
    """``s/t``, 1 where both are zero: from the data end to itself nothing moves."""
    s, t = full(s), full(t)
    arrived = (s == 0) & (t == 0)
    return torch.where(arrived, 1.0, s / torch.where(arrived, 1.0, t))


def _remainder(t: Tensor, form: "VarianceForm | EulerVarianceForm") -> Tensor:
    """``1 - t (t - sigma_min) / V(t)`` without the difference of large numbers."""
    return (form.sigma_min**2 + form.sigma_data**2 - form.sigma_min * t) / _variance(t, form)


@attrs.frozen
class EulerForm:
    """``X = (s/t) z + (1 - s/t) g``; the denoiser in the limit is ``g(z, t, t)``.

    Source: Kim et al., Consistency Trajectory Models, section 3, https://arxiv.org/abs/2310.02279; sony/ctm,
    ``outer_parametrization="euler"``, its default.

    Example:
        >>> EulerForm().factors(torch.tensor([2.0]), torch.tensor([0.5]))
        Factors(skip=tensor([0.2500]), out=tensor([0.7500]))
    """

    @typed
    def factors(self, t: Time, s: Time) -> Factors:
        """``s/t`` and ``1 - s/t``."""
        ratio = _ratio(s, t)
        return Factors(ratio, 1 - ratio)

    @typed
    def limit(self, t: Time) -> Factors:
        """0 and 1."""
        t = full(t)
        return Factors(torch.zeros_like(t), torch.ones_like(t))


@attrs.frozen
class VarianceForm:
    """``X = sqrt(V(s)/V(t)) z + (1 - s/t) g`` with ``V(t) = (t - sigma_min)^2 + sigma_data^2``.

    Args:
        sigma_data: standard deviation of the data, positive.
        sigma_min: the data end of the path, not negative.

    Raises:
        ConfigError: if a number is outside its range.

    Source: Kim et al., section 3, https://arxiv.org/abs/2310.02279; sony/ctm, ``outer_parametrization="variance"``.

    Example:
        >>> VarianceForm(sigma_data=0.5).factors(torch.tensor([2.0]), torch.tensor([2.0]))
        Factors(skip=tensor([1.]), out=tensor([0.]))
    """

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    sigma_min: float = attrs.field(default=0.002, validator=not_negative)

    @typed
    def factors(self, t: Time, s: Time) -> Factors:
        """``sqrt(V(s)/V(t))`` and ``1 - s/t``."""
        t, s = full(t), full(s)
        return Factors((_variance(s, self) / _variance(t, self)).sqrt(), 1 - _ratio(s, t))

    @typed
    def limit(self, t: Time) -> Factors:
        """``(sigma_min^2 + sigma_data^2 - sigma_min t) / V(t)`` and 1."""
        t = full(t)
        return Factors(_remainder(t, self), torch.ones_like(t))


@attrs.frozen
class EulerVarianceForm:
    """``X = (s + sqrt(V(s)/V(t))) / (t + 1) z + (1 - s/t) g``, ``V`` as in :class:`VarianceForm`.

    Args:
        sigma_data: standard deviation of the data, positive.
        sigma_min: the data end of the path, not negative.

    Raises:
        ConfigError: if a number is outside its range.

    Source: sony/ctm, ``outer_parametrization="euler_variance_mixed"``.

    Example:
        >>> EulerVarianceForm(sigma_data=0.5).factors(torch.tensor([2.0]), torch.tensor([2.0]))
        Factors(skip=tensor([1.]), out=tensor([0.]))
    """

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    sigma_min: float = attrs.field(default=0.002, validator=not_negative)

    @typed
    def factors(self, t: Time, s: Time) -> Factors:
        """``(s + sqrt(V(s)/V(t))) / (t + 1)`` and ``1 - s/t``."""
        t, s = full(t), full(s)
        ratio = (_variance(s, self) / _variance(t, self)).sqrt()
        return Factors((s + ratio) / (t + 1), 1 - _ratio(s, t))

    @typed
    def limit(self, t: Time) -> Factors:
        """``(sigma_min^2 + sigma_data^2 - sigma_min t) / (V(t) (t + 1))`` and 1."""
        t = full(t)
        return Factors(_remainder(t, self) / (t + 1), torch.ones_like(t))


@attrs.frozen
class SkipForm:
    """Consistency models' skip scaling with a free end: ``skip = sd^2 / ((t-s)^2 + sd^2)``.

    ``out = (t - s) sd / sqrt(t^2 + sd^2)``. At ``s = sigma_min`` these are
    :func:`~onestep_core.flow.consistency_scalings`, whose shifted level is the distance to the end.

    Args:
        sigma_data: standard deviation of the data, positive.

    Raises:
        ConfigError: if ``sigma_data`` is not positive.

    Source: Song et al., Consistency Models, appendix C, https://arxiv.org/abs/2303.01469 (the end fixed).

    Example:
        >>> SkipForm(sigma_data=0.5).factors(torch.tensor([0.5]), torch.tensor([0.0])).skip
        tensor([0.5000])
    """

    sigma_data: float = attrs.field(default=0.5, validator=positive)

    @typed
    def factors(self, t: Time, s: Time) -> Factors:
        """``sd^2 / ((t-s)^2 + sd^2)`` and ``(t - s) sd / sqrt(t^2 + sd^2)``."""
        t, duration = full(t), full(t) - full(s)
        variance = self.sigma_data**2
        return Factors(
            variance / (duration.square() + variance), duration * self.sigma_data * (t.square() + variance).rsqrt()
        )

    @typed
    def limit(self, t: Time) -> Factors:
        """1 and ``t sd / sqrt(t^2 + sd^2)``."""
        t = full(t)
        return Factors(torch.ones_like(t), t * self.sigma_data * (t.square() + self.sigma_data**2).rsqrt())


def _mixed(factors: Factors, z: Tensor, out: Tensor) -> Tensor:
    return expand_like(factors.skip, z) * full(z) + expand_like(factors.out, z) * full(out)


@typed
def flow_map_from_network(network: Callable[..., Tensor], *, form: FlowMapForm) -> FlowMap:
    """``X(z, t, s) = skip(t, s) z + out(t, s) g(z, t, s)``; the identity at ``s = t`` for every network.

    Args:
        network: ``g(z, t, s)``, with its own scaling of the input, see :func:`~onestep_core.flow.preconditioned`.
        form: gives ``skip`` and ``out``.

    Example:
        >>> jump = flow_map_from_network(lambda z, t, s: 0 * z, form=EulerForm())
        >>> jump(torch.ones(1, 1), torch.tensor([2.0]), torch.tensor([0.5]))
        tensor([[0.2500]])
    """

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return _mixed(form.factors(t, s), z, like_states(network(z, t, s), z))

    return flow_map


@typed
def denoiser_from_network(network: Callable[..., Tensor], *, form: FlowMapForm) -> Denoiser:
    """The denoiser that :func:`flow_map_from_network` implies at ``s = t``, from one call ``g(z, t, t)``.

    CTM's denoising term is ``denoising_regression`` of it. Arguments as :func:`flow_map_from_network`.

    Source: Kim et al., section 3, https://arxiv.org/abs/2310.02279; sony/ctm, ``get_denoised``.

    Example:
        >>> denoiser = denoiser_from_network(lambda z, t, s: 0.5 * z, form=EulerForm())
        >>> denoiser(torch.ones(1, 1), torch.tensor([2.0]))
        tensor([[0.5000]])
    """

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return _mixed(form.limit(t), z, like_states(network(z, t, t), z))

    return denoiser


@typed
def average_velocity_from_network(network: Callable[..., Tensor]) -> AverageVelocity:
    """``a = (z - g(z, t, s)) / t``: the map of :class:`EulerForm` as an average velocity, also at ``s = t``.

    Args:
        network: ``g(z, t, s)``, a denoiser that takes the target time; ``t`` is positive.

    Example:
        >>> a = average_velocity_from_network(lambda z, t, s: 0 * z)
        >>> a(torch.ones(1, 1), torch.tensor([2.0]), torch.tensor([2.0]))
        tensor([[0.5000]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return (full(z) - full(like_states(network(z, t, s), z))) / expand_like(full(t), z)

    return average_velocity
