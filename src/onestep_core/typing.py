"""Shapes as types, and the decorator that checks them.

``@typed`` checks every argument and result against its jaxtyping annotation, named axes included, with
about 50 microseconds a call. While ``torch.compile`` traces, the check would break the graph: there only the shapes of
batches are compared, which leaves nothing in the graph. It builds the checker at the first call, so that importing
stays cheap.
``JAXTYPING_DISABLE=1`` in the environment switches the checks off.
"""

import functools
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, Union, cast, get_args, get_origin

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Float
from torch import Tensor

from onestep_core.arguments import refused_call, unusable
from onestep_core.errors import ArgumentError, ConfigError
from onestep_core.validators import require_call

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
    """Check arguments and result of ``function`` against its annotations.

    While compiling, only the shapes of arguments that are a :data:`Sample`, :data:`Time` or :data:`PerSample` are
    compared, so that nothing broadcasts there either.

    An argument that is a function of another kind, such as an average velocity in place of a velocity, is named when
    its call fails; a function that returns a function (a wrapper) names it at once.

    Raises:
        ArgumentError: at a call whose shapes, dtypes or types do not fit, naming the argument, what came, what was
            expected with the axes bound so far, and what to do; its cause is jaxtyping's report.
        ConfigError: for a function that cannot be called with the arguments of its kind.
        ConfigError: while compiling, if shapes disagree; torch.compile reports it as its own error.

    Example:
        >>> @typed
        ... def difference(p: Sample, q: Sample) -> Sample:
        ...     return p - q
        >>> difference(torch.ones(2, 3), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    checked: Callable[_P, _R] | None = None
    names, kinds = _batched_arguments(function)
    layouts = _layouts(function)
    calls, wraps = _called_arguments(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        nonlocal checked
        if torch.compiler.is_compiling():
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            _compare_shapes(kinds, given)
            _compare_axes(layouts, given)
            return function(*args, **kwargs)
        if checked is None:
            decorate = cast(Any, jaxtyping).jaxtyped(typechecker=_check)
            checked = cast(Callable[_P, _R], decorate(function))
        try:
            answer = checked(*args, **kwargs)
        except TypeError as error:
            ours = isinstance(error, ArgumentError)
            if not ours and (refused := refused_call(function, args, kwargs, error)) is not None:
                raise refused from error
            if not isinstance(error.__cause__ if ours else error, jaxtyping.TypeCheckError):
                _check_calls(function, calls, dict(zip(names, args, strict=False)) | kwargs, error)
            raise
        except (RuntimeError, OverflowError) as error:
            if (refused := unusable(function, dict(zip(names, args, strict=False)) | kwargs)) is not None:
                raise refused from error
            raise
        if wraps:
            _check_calls(function, calls, dict(zip(names, args, strict=False)) | kwargs, None)
        return answer

    return wrapper


class _Call(NamedTuple):
    """How an argument is called."""

    positional: tuple[str, ...]
    keywords: tuple[str, ...]


def _called_arguments(function: Callable[..., Any]) -> tuple[dict[str, _Call], bool]:
    """The arguments whose annotation is the protocol of a call, and whether the result is one, too."""
    signature = inspect.signature(function)
    calls: dict[str, _Call] = {}
    for name, parameter in signature.parameters.items():
        either = get_origin(parameter.annotation) in (Union, UnionType)
        for part in get_args(parameter.annotation) if either else (parameter.annotation,):
            if _is_call(part):
                own = list(inspect.signature(part.__call__).parameters.values())[1:]
                calls[name] = _Call(
                    tuple(p.name for p in own if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
                    tuple(p.name for p in own if p.kind == p.KEYWORD_ONLY),
                )
    return calls, _is_call(signature.return_annotation)


def _is_call(annotation: Any) -> bool:
    return (
        isinstance(annotation, type) and getattr(annotation, "_is_protocol", False) and "__call__" in vars(annotation)
    )


def _check_calls(
    function: Callable[..., Any], calls: dict[str, _Call], arguments: dict[str, Any], error: TypeError | None
) -> None:
    """Refuse an argument that cannot be called as its protocol says."""
    for name, call in calls.items():
        given = arguments.get(name)
        if given is None:
            continue
        try:
            require_call(f"{name} of {function.__name__}", given, call.positional, call.keywords)
        except ConfigError as found:
            raise found from error


def _batched_arguments(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, bool]]:
    """Names of the arguments in order, and of those with a batch axis whether they have the shape of a sample."""
    names: list[str] = []
    kinds: dict[str, bool] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        names.append(name)
        for part in (parameter.annotation, *get_args(parameter.annotation)):
            if part is Sample or part is Time or part is PerSample:
                kinds[name] = part is Sample
    return tuple(names), kinds


class _Layout(NamedTuple):
    """Names of the first axes and of the last ones, and whether there may be others between."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    more: bool


def _layouts(function: Callable[..., Any]) -> dict[str, _Layout]:
    """The layouts of the arguments that are other tensors than samples, times and numbers."""
    found: dict[str, _Layout] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        either = get_origin(parameter.annotation) in (Union, UnionType)
        parts = get_args(parameter.annotation) if either else (parameter.annotation,)
        arrays = [part for part in parts if hasattr(part, "dim_str")]
        if len(arrays) != 1 or arrays[0] in (Sample, Time, PerSample):
            continue
        axes = arrays[0].dim_str.split()
        more = next((k for k, axis in enumerate(axes) if axis.startswith("*") or axis == "..."), None)
        if more is None:
            found[name] = _Layout(tuple(axes), (), False)
        else:
            found[name] = _Layout(tuple(axes[:more]), tuple(axes[more + 1 :]), True)
    return found


def _compare_axes(layouts: dict[str, _Layout], arguments: dict[str, object]) -> None:
    """Axes of one name have one size."""
    sizes: dict[str, int] = {}
    for name, layout in layouts.items():
        given = arguments.get(name)
        if not isinstance(given, Tensor):
            continue
        least = len(layout.first) + len(layout.last)
        if given.ndim < least or (given.ndim > least and not layout.more):
            axes = ", ".join((*layout.first, *["..."] * layout.more, *layout.last))
            raise ConfigError(f"{name} of shape {tuple(given.shape)}: expected [{axes}]")
        pairs = [*zip(layout.first, given.shape[: len(layout.first)], strict=True)]
        pairs += zip(layout.last, given.shape[given.ndim - len(layout.last) :], strict=True)
        for axis, size in pairs:
            if axis.isidentifier() and sizes.setdefault(axis, size) != size:
                raise ConfigError(
                    f"{name} of shape {tuple(given.shape)}: expected {sizes[axis]} along its axis {axis}, as before it"
                )


def _compare_shapes(kinds: dict[str, bool], arguments: dict[str, object]) -> None:
    """Samples have one shape, times and numbers its first axis."""
    shape: torch.Size | None = None
    batch: int | None = None
    for name, whole in kinds.items():
        given = arguments.get(name)
        if not isinstance(given, Tensor):
            continue
        wrong = (
            (whole and shape is not None and given.shape != shape) or given.ndim < 1 or (not whole and given.ndim > 1)
        )
        if wrong or (batch is not None and given.shape[0] != batch):
            raise ConfigError(
                f"{name} of shape {tuple(given.shape)} beside {tuple(shape or (batch,))}: expected samples of one "
                "shape and one time per sample"
            )
        batch = given.shape[0]
        shape = given.shape if whole else shape
