"""Drift fields by name: from a temperature of the Laplace kernel to a field, and several temperatures as one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from onestep_core import (
    drift_field,
    feature_normalized,
    laplace,
    mean_shift_field,
    multi_temperature,
    released_drift,
    sinkhorn,
    softmax_both,
)
from onestep_core.protocols import Drift, Field

RELEASED = "released"
"""The algorithm of the released ImageNet code; it has its own units and normalisation."""


def _mean_shift(temperature: float) -> Field:
    return partial(mean_shift_field, kernel=partial(laplace, temperature=temperature))


def _attraction_repulsion(temperature: float) -> Field:
    return partial(drift_field, kernel=partial(laplace, temperature=temperature), coupling=softmax_both)


def _sinkhorn(temperature: float) -> Field:
    # Three steps: further ones add noise at small temperatures.
    return partial(
        drift_field, kernel=partial(laplace, temperature=temperature), coupling=partial(sinkhorn, iterations=3)
    )


FIELDS: dict[str, Callable[[float], Field]] = {
    "mean-shift": _mean_shift,
    "attraction-repulsion": _attraction_repulsion,
    "sinkhorn": _sinkhorn,
}
"""Fields by name, each a function of the temperature; :data:`RELEASED` is not among them."""


def named_field(
    name: str,
    temperatures: Sequence[float],
    *,
    relative: bool,
    scale: float,
    attraction: float = 1.0,
    repulsion: float = 1.0,
) -> Field:
    """The mean over ``temperatures`` of a field, times ``scale``; for :data:`RELEASED` the sum of the released code.

    Args:
        name: key of :data:`FIELDS`, or :data:`RELEASED`.
        temperatures: positive.
        relative: to the mean distance, in whose units the field then is; always so for :data:`RELEASED`.
        scale: factor of the displacement.
        attraction: factor of the part towards the positives.
        repulsion: factor of the part away from the negatives.

    Example:
        >>> import torch
        >>> field = named_field("mean-shift", (0.1, 1.0), relative=True, scale=1.0)
        >>> field(torch.randn(4, 2), torch.randn(5, 2)).force_norms.shape
        torch.Size([2])
    """
    if name == RELEASED:
        released = partial(released_drift, temperatures=tuple(temperatures))
        return _scaled(partial(released, attraction=attraction, repulsion=repulsion), scale)

    def weighted(temperature: float) -> Field:
        return partial(FIELDS[name](temperature), attraction=attraction, repulsion=repulsion)

    def summed(length: float) -> Field:
        return multi_temperature(weighted, [length * t for t in temperatures], normalize=False)

    return _scaled(feature_normalized(summed) if relative else summed(1.0), scale / len(temperatures))


def _scaled(field: Field, factor: float) -> Field:
    if factor == 1:
        return field

    def scaled(
        samples: Tensor, positives: Tensor, negatives: Tensor | None = None, /, *rest: Any, **keywords: Any
    ) -> Drift:
        drift = field(samples, positives, negatives, *rest, **keywords)
        return drift._replace(field=drift.field * factor)

    return scaled
