"""Why a call was refused, in one line.

jaxtyping reports a wrong argument with every argument and every annotation of the function. Here the first argument
that does not fit is looked for again, and named with what came, what was expected, and what to do. Nothing of this
runs while calls are right.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeGuard, Union, get_args, get_origin

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray
from torch import Tensor

from onestep_core.errors import ArgumentError
from onestep_core.validators import equation, names_of

_KINDS = {"Float": "floating-point", "Int": "integer", "Bool": "bool"}
_DTYPES = {
    "Float": "times, states and data are floating point; {name}.float() converts it",
    "Int": "{name}.long() converts it",
    "Bool": "a comparison such as {name} > 0 gives one",
}
_CONF = BeartypeConf(is_pep484_tower=True)


class _Axis(NamedTuple):
    """The size of a named axis, or of several, and the argument that gave it."""

    size: int | tuple[int, ...]
    argument: str


def refused_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], cause: TypeError
) -> ArgumentError | None:
    """The error of a call whose arguments do not fit the annotations; ``None`` if the cause lies elsewhere.

    Args:
        function: the function as it was written.
        args: what it was given.
        kwargs: what it was given by name.
        cause: the error of the check.
    """
    where = f"{function.__module__}.{function.__qualname__}"
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        return ArgumentError(f"{function.__qualname__}: {error}; its arguments are {names_of(signature)}")
    if f"return value of {where}." in str(cause):
        return ArgumentError(
            f"{function.__qualname__} computed {_line(cause, 'Actual value: ')}, expected "
            f"{_line(cause, 'Expected type: ')}: a function that was given to it answered in another shape or dtype"
        )
    if f"parameters of {where}." not in str(cause):
        return None
    axes: dict[str, _Axis] = {}
    for name, value, annotation in _one_by_one(signature, bound):
        if fault := _fault(name, value, annotation, axes):
            remedy = fault.remedy or f"its arguments are {names_of(signature)}, in this order"
            return ArgumentError(
                f"{function.__qualname__}: {name} is {_said(value)}, expected {fault.expected}: {remedy}"
            )
    return ArgumentError(
        f"{function.__qualname__}: {_line(cause, 'The problem arose whilst typechecking ')} is "
        f"{_line(cause, 'Actual value: ')}, expected {_line(cause, 'Expected type: ')}; its arguments are "
        f"{names_of(signature)}"
    )


def unusable(function: Callable[..., Any], arguments: dict[str, Any]) -> ArgumentError | None:
    """The error of a call that failed inside of torch because of its arguments; ``None`` if nothing is wrong with them.

    Tensors that are sparse, nested or quantised, whole numbers beyond 64 bits, tensors on several devices.
    """
    for name, value in arguments.items():
        if isinstance(value, Tensor) and (kind := _kind(value)) is not None:
            return ArgumentError(
                f"{function.__qualname__}: {name} is a {kind.name} tensor, expected a dense one: {kind.remedy}".format(
                    name=name
                )
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return ArgumentError(f"{function.__qualname__}: {equation(name, value)}, expected a number below 2^63")
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    first = next(iter(tensors), "")
    for name, value in tensors.items():
        if value.device != tensors[first].device and value.ndim > 0:
            return ArgumentError(
                f"{function.__qualname__}: {name} is on {value.device} and {first} on {tensors[first].device}: "
                f"expected one device; {name}.to({first}.device) moves it"
            )
    return None


class _Kind(NamedTuple):
    """What a tensor is that is not dense, and what makes it so."""

    name: str
    remedy: str


def _kind(value: Tensor) -> _Kind | None:
    """``None`` for a dense tensor."""
    if value.is_quantized:
        return _Kind("quantised", "{name}.dequantize() makes one of it")
    if value.is_nested:
        return _Kind("nested", "{name}.to_padded_tensor(0.0) makes one of it, or call this once for each part")
    if value.layout != torch.strided:
        name = "sparse" if "sparse" in str(value.layout) else str(value.layout)
        return _Kind(name, "{name}.to_dense() makes one of it")
    return None


class _Fault(NamedTuple):
    """What was expected, and what to do; ``None`` if all that can be said is how the function is called."""

    expected: str
    remedy: str | None


def _fault(name: str, value: Any, annotation: Any, axes: dict[str, _Axis]) -> _Fault | None:
    """What is wrong with one argument; the axes of one that fits are added to those that are known."""
    parts = _parts(annotation)
    arrays = [part for part in parts if _is_array(part)]
    if not isinstance(value, Tensor) or not arrays:
        if annotation is inspect.Parameter.empty or is_bearable(value, annotation, conf=_CONF):
            return None
        return _Fault(" or ".join(_wanted(part, axes) for part in parts), _conversion(name, value, arrays, axes))
    for part in arrays:
        kind = part.dtype.__name__
        if (other := _kind(value)) is not None:
            return _Fault(_wanted(part, axes), other.remedy.format(name=name))
        if not isinstance(value, part.dtype[Tensor, "..."]):
            remedy = _DTYPES.get(kind, "{name}.to(dtype) converts it")
            if kind == "Float" and value.dtype == torch.uint8:
                remedy = "images of bytes become data by {name}.float() / 127.5 - 1"
            elif value.is_complex():
                remedy = "torch.view_as_real({name}) gives it a last axis of real and imaginary part"
            return _Fault(_wanted(part, axes), remedy.format(name=name))
        found = _match(part.dim_str.split(), tuple(value.shape))
        if found is not None and all(axes[axis].size == size for axis, size in found if axis in axes):
            axes.update({axis: _Axis(size, name) for axis, size in found if axis not in axes})
            return None
    part = arrays[0]
    return _Fault(_wanted(part, axes) + _sources(part, axes), _reshaping(name, value, part, axes))


def _match(names: Sequence[str], shape: tuple[int, ...]) -> list[tuple[str, int | tuple[int, ...]]] | None:
    """Sizes of the named axes; ``None`` if the number of axes or a fixed size is another one."""
    several = [at for at, name in enumerate(names) if name.startswith("*") or name == "..."]
    after = len(names) - several[0] - 1 if several else 0
    if (len(shape) < len(names) - 1) if several else (len(shape) != len(names)):
        return None
    pairs: list[tuple[str, int | tuple[int, ...]]]
    if several:
        first, last = several[0], len(shape) - after
        pairs = [
            *zip(names[:first], shape[:first], strict=True),
            (names[first], shape[first:last]),
            *zip(names[first + 1 :], shape[last:], strict=True),
        ]
    else:
        pairs = list(zip(names, shape, strict=True))
    if any(name.isdecimal() and int(name) != size for name, size in pairs):
        return None
    found: dict[str, int | tuple[int, ...]] = {}
    for name, size in pairs:
        if name.lstrip("*").isidentifier() and found.setdefault(name, size) != size:
            return None
    return list(found.items())


def _is_array(part: Any) -> TypeGuard[Any]:
    return isinstance(part, type) and issubclass(part, AbstractArray)


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _one_by_one(signature: inspect.Signature, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and annotation of every argument; those of ``*times`` are ``times[0]`` and so on."""
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from ((f"{name}[{k}]", part, parameter.annotation) for k, part in enumerate(value))
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield from ((key, part, parameter.annotation) for key, part in value.items())
        else:
            yield name, value, parameter.annotation


def _line(cause: TypeError, start: str) -> str:
    """What follows ``start`` in jaxtyping's message."""
    return next(
        (line.removeprefix(start).rstrip(".") for line in str(cause).splitlines() if line.startswith(start)), ""
    )


def _said(value: Any) -> str:
    """What came."""
    if isinstance(value, Tensor):
        if (kind := _kind(value)) is not None:
            return f"a {kind.name} tensor"
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__} of {len(repr(value))} characters"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = f"a {type(value).__name__}"
    return f"{kind} of shape {list(value.shape)}" if hasattr(value, "shape") and hasattr(value, "dtype") else kind


def _wanted(part: Any, axes: dict[str, _Axis]) -> str:
    """One alternative of an annotation, in words."""
    if _is_array(part):
        kind = _KINDS.get(part.dtype.__name__, "a tensor")
        names = part.dim_str.split()
        text = f"{kind} [{', '.join(names)}]"
        sizes = [_size(axes[name].size) if name in axes else name for name in names]
        return f"{text} = [{', '.join(size for size in sizes if size)}]" if any(n in axes for n in names) else text
    if part is NoneType:
        return "None"
    if isinstance(part, type) and getattr(part, "_is_protocol", False):
        if "__call__" not in vars(part):
            return f"a {part.__name__}"
        own = list(inspect.signature(vars(part)["__call__"]).parameters)[1:]
        return f"a function ({', '.join(own)})"
    if callable(part) and get_origin(part) is None:
        return getattr(part, "__name__", str(part))
    return "a function" if get_origin(part) is Callable else inspect.formatannotation(part)


def _size(size: int | tuple[int, ...]) -> str:
    return str(size) if isinstance(size, int) else ", ".join(map(str, size))


def _sources(part: Any, axes: dict[str, _Axis]) -> str:
    """Which argument gave which axis."""
    given: dict[str, list[str]] = {}
    for name in part.dim_str.split():
        if name in axes:
            given.setdefault(axes[name].argument, []).append(name.lstrip("*"))
    texts = [f"{' and '.join(names)} as in {argument}" for argument, names in given.items()]
    return f" ({', '.join(texts)})" if texts else ""


def _conversion(name: str, value: Any, arrays: Sequence[Any], axes: dict[str, _Axis]) -> str | None:
    """What makes a tensor of a value; ``None`` where an argument seems to stand in the place of another one."""
    if not arrays:
        return None
    if isinstance(value, (bool, int, float)) and len(arrays[0].dim_str.split()) == 1:
        axis = arrays[0].dim_str
        size = _size(axes[axis].size) if axis in axes else axis
        return f"one number per sample, such as torch.full(({size},), {float(value)})"
    if isinstance(value, (list, tuple)) or (hasattr(value, "dtype") and not isinstance(value, type)):
        return f"torch.as_tensor({name}) converts it"
    return None


def _reshaping(name: str, value: Tensor, part: Any, axes: dict[str, _Axis]) -> str:
    """What gives a tensor the shape that was expected."""
    names = part.dim_str.split()
    if len(names) == 1 and names[0] in axes and isinstance(size := axes[names[0]].size, int):
        if value.numel() == 1:
            return f"{name}.reshape(1).expand({size}) gives every sample the same"
        if value.numel() == size:
            return f"{name}.flatten() has this shape"
        return f"one number per sample is needed, {size} in all"
    if any(axis in axes for axis in names):
        others = sorted({axes[axis].argument for axis in names if axis in axes})
        return f"nothing is broadcast here; bring {name} and {' and '.join(others)} to shapes that agree"
    fixed = len(names) - sum(axis.startswith("*") or axis == "..." for axis in names)
    if value.ndim == len(names):
        return f"reshape {name} to these sizes"
    return f"it has {value.ndim} axes, and {'at least ' if fixed < len(names) else ''}{fixed} are needed"
