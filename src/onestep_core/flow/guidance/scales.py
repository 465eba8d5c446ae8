"""Draws for guidance in training: scales and intervals, one a sample.

The transforms take numbers that the caller drew; the sampler draws with its own ``generator``.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.flow.times.draws import Device, drawn_on, uniform_times
from onestep_core.typing import Time, typed
from onestep_core.validators import require_count, require_finite, untraced


class Interval(NamedTuple):
    """Ends of a range of times, one range a sample, each ``[batch]``.

    Raises:
        ConfigError: if ``low <= high`` does not hold. Only what is known at once is compared: numbers, and tensors on
            the CPU outside of compiled functions and ``torch.func``.

    Example:
        >>> Interval(1, 0)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: 1 of 1 intervals end before they begin, from 1 to 0: expected low <= high
    """

    low: Tensor
    high: Tensor


def _checked(cls: type[Interval], low: Tensor, high: Tensor) -> Interval:
    if untraced():
        _compare(low, high)
    return cls._make((low, high))


def _compare(low: object, high: object) -> None:
    """Refuse a larger ``low``; ends that are no numbers, as in a pytree of something else, pass."""
    one, other = _number(low), _number(high)
    if one is None or other is None:
        return
    wrong = ~(one <= other)
    if bool(wrong.any()):
        first, last = (float(end.expand_as(wrong)[wrong][0]) for end in (one, other))
        raise ConfigError(
            f"{int(wrong.sum())} of {wrong.numel()} intervals end before they begin, from {first:g} to {last:g}: "
            "expected low <= high"
        )


def _number(end: object) -> Tensor | None:
    """As a tensor, if it can be read without waiting for another device."""
    if isinstance(end, int | float):
        return torch.tensor(float(end), dtype=torch.float64)
    return end if isinstance(end, Tensor) and end.device.type == "cpu" else None


# A NamedTuple cannot define it in its body, and a subclass of one is no pytree in older versions of torch.
Interval.__new__ = _checked  # type: ignore[assignment,method-assign]


@typed
def power_law(uniform: Time, *, low: float, high: float, power: float) -> Time:
    """Numbers in ``[low, high]`` with density proportional to ``x^-power``, from ``u ~ U(0, 1)``, ``[batch]``.

    ``(low^q + u (high^q - low^q))^(1/q)`` with ``q = 1 - power``; ``low (high / low)^u`` at ``power = 1``.
    Drifting models draw their guidance scales from it.

    Raises:
        ConfigError: if ``0 < low <= high`` does not hold.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``train.py`` (low 1, high 4, power 1 by default, 5 in the released configuration).

    Example:
        >>> power_law(torch.tensor([0.0, 1.0]), low=1.0, high=4.0, power=3.0).round(decimals=4)
        tensor([1., 4.])
    """
    require_finite("power", power)
    if not 0 < low <= high:
        raise ConfigError(f"a power law between {low} and {high}: expected 0 < low <= high")
    q = 1 - power
    if abs(q) < 1e-6:
        return low * (high / low) ** uniform
    return (low**q + uniform * (high**q - low**q)) ** (1 / q)


@typed
def guidance_scales(
    uniform: Time, chance: Time, *, low: float = 1.0, high: float = 4.0, power: float = 3.0, plain: float = 0.0
) -> Time:
    """Guidance scales in training: 1 where ``chance < plain``, elsewhere :func:`power_law` of ``uniform``, ``[batch]``.

    A generator that takes the scale as an input is trained with one a class and update; most should be small, and some
    exactly 1, which is no guidance.

    Args:
        uniform: draws of the scale, from ``U(0, 1)``, ``[batch]``.
        chance: draws of whether there is guidance, from ``U(0, 1)``, ``[batch]``.
        low: smallest scale, positive; 1 is no guidance.
        high: largest scale.
        power: of the density ``alpha^-power``; 3 or 5 in the paper.
        plain: share of the scales that are 1; a half in the paper's largest model.

    Raises:
        ConfigError: if ``0 < low <= high`` or ``0 <= plain <= 1`` does not hold.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``train.py`` (``no_cfg_frac`` is the plain share).

    Example:
        >>> guidance_scales(torch.tensor([1.0, 1.0]), torch.tensor([0.3, 0.7]), plain=0.5).round(decimals=4)
        tensor([1., 4.])
    """
    require_finite("power", power)
    if not 0 <= plain <= 1:
        raise ConfigError(f"plain = {plain}: expected a share between 0 and 1")
    return torch.where(chance < plain, 1.0, power_law(uniform, low=low, high=high, power=power))


@typed
def interval_around(
    below: Time, above: Time, *, middle: float = 0.5, everywhere: Bool[Tensor, "batch"] | None = None
) -> Interval:
    """``[middle u, middle + (1 - middle) u']``: a random interval of guidance around ``middle``, one a sample.

    Args:
        below: draws ``u ~ U(0, 1)``, ``[batch]``.
        above: draws ``u' ~ U(0, 1)``, ``[batch]``.
        middle: a time inside every interval, in [0, 1].
        everywhere: which samples get ``[0, 1]``, ``[batch]``, boolean; none by default.

    Raises:
        ConfigError: if ``middle`` is outside [0, 1].

    Source: Lyy-iiis/imeanflow, ``sample_cfg_interval``; there the pairs with ``s = t`` get ``[0, 1]``.

    Example:
        >>> interval_around(torch.tensor([0.5]), torch.tensor([0.5]))
        Interval(low=tensor([0.2500]), high=tensor([0.7500]))
    """
    if not 0 <= middle <= 1:
        raise ConfigError(f"middle = {middle}: expected a time between 0 and 1")
    low = uniform_times(below, low=0.0, high=middle)
    high = uniform_times(above, low=middle, high=1.0)
    if everywhere is None:
        return Interval(low, high)
    return Interval(torch.where(everywhere, 0.0, low), torch.where(everywhere, 1.0, high))


@typed
def sample_guidance_scales(
    count: int,
    *,
    low: float = 1.0,
    high: float = 4.0,
    power: float = 3.0,
    plain: float = 0.0,
    generator: torch.Generator | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw ``count`` scales by :func:`guidance_scales`. Otherwise as :func:`sample_uniform`.

    Raises:
        ConfigError: as :func:`guidance_scales`.

    Example:
        >>> bool((sample_guidance_scales(100) <= 4).all())
        True
    """
    require_count("count", count)
    uniform, chance = torch.rand(2, count, generator=generator, device=drawn_on(device, generator), dtype=dtype)
    return guidance_scales(uniform, chance, low=low, high=high, power=power, plain=plain)
