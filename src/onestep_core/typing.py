"""Shapes as types, and the decorator that checks them.

``@typed`` checks every argument and result against its jaxtyping annotation, named axes included, with
about 50 microseconds a call. It steps aside while ``torch.compile`` traces, where the check would break
the graph, and it builds the checker at the first call, so that importing stays cheap.
``JAXTYPING_DISABLE=1`` in the environment switches the checks off.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Float
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

Sample: TypeAlias = Float[Tensor, "batch *shape"]
"""A batch of states, data, noise, velocities: floating point, ``[batch, *shape]``."""

Time: TypeAlias = Float[Tensor, "batch"]
"""One time per sample, ``[batch]``; a 0-d time would promote tangents to float64."""

PerSample: TypeAlias = Float[Tensor, "batch"]
"""One number per sample: an unreduced loss or a weight, ``[batch]``."""

Particles: TypeAlias = Float[Tensor, "*groups n channel"]
"""Clouds of points: ``n`` points with ``channel`` coordinates, in any number of leading groups."""

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check arguments and result of ``function`` against its annotations, except while compiling.

    Raises:
        jaxtyping.TypeCheckError: at a call whose shapes, dtypes or types do not fit, naming the argument
            and the axes bound so far.

    Example:
        >>> @typed
        ... def difference(p: Sample, q: Sample) -> Sample:
        ...     return p - q
        >>> difference(torch.ones(2, 3), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    checked: Callable[_P, _R] | None = None

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        nonlocal checked
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if checked is None:
            decorate = cast(Any, jaxtyping).jaxtyped(typechecker=_check)
            checked = cast(Callable[_P, _R], decorate(function))
        return checked(*args, **kwargs)

    return wrapper
