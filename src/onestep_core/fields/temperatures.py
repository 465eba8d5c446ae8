"""Several temperatures: fields summed over them, and temperatures that fall as the training goes on.

At a small temperature only near points have an influence. A sum over temperatures has both near and far ones; a
schedule from coarse to fine has them one after the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.attraction_repulsion import drift_field, drift_fields, summed_fields
from onestep_core.fields.clouds import Clouds, checked_clouds
from onestep_core.fields.mean_shift import mean_shift_field, mean_shift_fields
from onestep_core.protocols import Drift, Field, checked_drift
from onestep_core.typing import typed
from onestep_core.validators import require_call, require_finite, require_length


@typed
def multi_temperature(field: Callable[[float], Field], temperatures: Sequence[float], *, normalize: bool) -> Field:
    """The sum of one field at several temperatures, each brought to unit root mean square first or not.

    Fields that are partials of :func:`onestep_core.fields.drift_field` or
    :func:`onestep_core.fields.mean_shift_field` and differ in nothing but their kernel share the distances.

    Args:
        field: from a temperature to a field.
        temperatures: positive, at least one.
        normalize: divide each displacement by its root mean square over the whole call (at least 1e-4). The sum
            then shows nothing of the progress; ``force_norms``, one mean square a temperature, does.

    Returns:
        A field with the same arguments.

    Raises:
        ConfigError: without a temperature, or with one that is not positive.

    Source: Deng et al., Generative Modeling via Drifting, appendix A.6, https://arxiv.org/abs/2602.04770.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import laplace, mean_shift_field
        >>> field = multi_temperature(
        ...     lambda t: partial(mean_shift_field, kernel=partial(laplace, temperature=t)), (0.1, 1.0), normalize=True
        ... )
        >>> field(torch.zeros(2, 1), torch.ones(3, 1)).force_norms.shape
        torch.Size([2])
    """
    _all_positive(*temperatures)
    require_call("field of multi_temperature", field, ("temperature",))
    fields = [field(t) for t in temperatures]
    together = _together(fields)

    def summed(
        samples: Tensor, positives: Tensor, negatives: Tensor | None = None, /, *rest: Any, **keywords: Any
    ) -> Drift:
        if together is not None and not rest and "kernel" not in keywords:
            drifts = together(samples, positives, negatives, **keywords)
        else:
            drifts = [checked_drift(f(samples, positives, negatives, *rest, **keywords)) for f in fields]
        total = summed_fields(drifts, normalize=normalize)
        return drifts[0]._replace(field=total, force_norms=torch.cat([d.force_norms for d in drifts]))

    return summed


def _together(fields: Sequence[Field]) -> Callable[..., list[Drift]] | None:
    """One function for fields that differ in their kernel alone; ``None`` for others."""
    first = fields[0]
    if not isinstance(first, partial):
        return None
    several = next((several for function, several in _SHARING.items() if function is first.func), None)
    if several is None:
        return None
    shared = {name: value for name, value in first.keywords.items() if name != "kernel"}
    kernels: list[Any] = []
    for other in fields:
        if not isinstance(other, partial) or other.func is not first.func or other.args or first.args:
            return None
        theirs = {name: value for name, value in other.keywords.items() if name != "kernel"}
        if "kernel" not in other.keywords or theirs.keys() != shared.keys():
            return None
        if any(theirs[name] is not value for name, value in shared.items()):
            return None
        kernels.append(other.keywords["kernel"])
    evaluate = several

    def together(samples: Tensor, positives: Tensor, negatives: Tensor | None, **keywords: Any) -> list[Drift]:
        every = {**shared, **keywords}
        sets = {name: every.pop(name) for name in Clouds._fields if name in every}
        return evaluate(checked_clouds(samples, positives, negatives, **sets), kernels=kernels, **every)

    return together


_SHARING: dict[Any, Callable[..., list[Drift]]] = {drift_field: drift_fields, mean_shift_field: mean_shift_fields}


def geometric_temperature(progress: float, *, start: float, end: float) -> float:
    """``start (end / start)^progress``: the same factor in every share of the training, coarse to fine.

    Args:
        progress: share of the training that is over; clamped to 0..1.
        start: temperature at 0, positive.
        end: temperature at 1, positive.

    Raises:
        ConfigError: if a temperature is not positive.

    Source: Drifting is secretly score matching, on annealing the bandwidth exponentially,
    https://arxiv.org/abs/2603.09936.

    Example:
        >>> [round(geometric_temperature(p, start=1.0, end=0.01), 3) for p in (0, 0.5, 1)]
        [1.0, 0.1, 0.01]
    """
    require_finite("progress", progress)
    _all_positive(start, end)
    return start * (end / start) ** min(max(progress, 0.0), 1.0)


def stepped_temperature(progress: float, *, temperatures: Sequence[float]) -> float:
    """The temperatures one after the other, each for an equal share of the training.

    Args:
        progress: share of the training that is over; clamped to 0..1.
        temperatures: positive, at least one, coarse to fine.

    Raises:
        ConfigError: without a temperature, or with one that is not positive.

    Example:
        >>> [stepped_temperature(p, temperatures=(1.0, 0.3, 0.1)) for p in (0, 0.4, 1)]
        [1.0, 0.3, 0.1]
    """
    _all_positive(*temperatures)
    require_finite("progress", progress)
    return temperatures[min(int(max(progress, 0.0) * len(temperatures)), len(temperatures) - 1)]


def _all_positive(*temperatures: float) -> None:
    if not temperatures:
        raise ConfigError("no temperature: expected at least one")
    for temperature in temperatures:
        require_length("temperature", temperature)
