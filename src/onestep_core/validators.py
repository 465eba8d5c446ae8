"""Checks of one number: attrs validators for frozen configuration, and checks of function arguments.

    @attrs.frozen
    class Options:
        std: float = attrs.field(default=1.0, validator=positive)
        pairs: int = attrs.field(default=100, validator=positive_count)

A validator that refuses a value raises :class:`~onestep_core.errors.ConfigError` with the field's name, the value and
what was expected. A field that may be ``None`` takes ``attrs.validators.optional(positive)``.
"""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import attrs
import torch
from torch import Tensor

from onestep_core.errors import ConfigError

_LARGEST = sys.float_info.max
"""A whole number beyond it is infinite as a float."""


def positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a finite number above zero.

    Raises:
        ConfigError: for any other value.

    Example:
        >>> options = attrs.make_class("Options", {"std": attrs.field(validator=positive)})
        >>> options(0.0)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: std = 0.0: expected a positive, finite number
    """
    if not isinstance(value, Real) or not 0 < value <= _LARGEST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a positive, finite number")


def not_negative(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a finite number of zero or more.

    Raises:
        ConfigError: for any other value.
    """
    if not isinstance(value, Real) or not 0 <= value <= _LARGEST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected zero or more, and finite")


def finite(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: neither infinite nor NaN.

    Raises:
        ConfigError: for any other value.
    """
    if not isinstance(value, Real) or not -_LARGEST <= value <= _LARGEST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a finite number")


def count(_: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    """An attrs validator: a whole number of zero or more and below 2^63, so that it also serves as a seed.

    Raises:
        ConfigError: for any other value, ``True`` and ``1.0`` included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a whole number, zero or more and below 2^63")


def positive_count(_: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    """An attrs validator: a whole number of at least one and below 2^63.

    Raises:
        ConfigError: for any other value, ``True`` and ``1.0`` included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a whole number, at least 1 and below 2^63")


def share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a number from zero to one, both included.

    Raises:
        ConfigError: for any other value.
    """
    if not isinstance(value, Real) or not 0 <= value <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a share between 0 and 1")


def open_share(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """An attrs validator: a number strictly between zero and one.

    Raises:
        ConfigError: for any other value.
    """
    if not isinstance(value, Real) or not 0 < value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{attribute.name} = {value!r}: expected a share strictly between 0 and 1")


def at_least_and_below(low: float, high: float) -> Callable[[object, "attrs.Attribute[Any]", float], None]:
    """An attrs validator: ``low <= value < high``.

    Args:
        low: smallest value that is accepted.
        high: smallest value that is not.

    Example:
        >>> options = attrs.make_class("Options", {"floor": attrs.field(validator=at_least_and_below(0.0, 1.0))})
        >>> options(1.0)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: floor = 1.0: expected 0.0 <= floor < 1.0
    """

    def check(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
        if not isinstance(value, Real) or not low <= value < high:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{attribute.name} = {value!r}: expected {low} <= {attribute.name} < {high}")

    return check


LARGEST_COUNT = 2**40
"""No memory holds as many numbers: a larger count of draws, steps or samples is a mistake."""


def require_count(name: str, value: object, *, least: int = 0, below: int = LARGEST_COUNT) -> None:
    """Refuse what is no whole number, below ``least``, or not below ``below``.

    Raises:
        ConfigError: for such a value, ``True`` and ``1.0`` included.

    Example:
        >>> require_count("steps", 2.5, least=1)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: steps = 2.5: expected a whole number, at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} = {value!r}: expected a whole number, at least {least}")
    if (number := int(value)) >= below:
        raise ConfigError(f"{equation(name, number)}: expected a whole number below 2^{below.bit_length() - 1}")


def require_call(name: str, value: object, arguments: Sequence[str], keywords: Sequence[str] = ()) -> None:
    """Refuse what is no function, or one that cannot be called with these arguments; its result is not looked at.

    Args:
        name: of the argument, for the message.
        value: a function, a module, or any object that can be called.
        arguments: names of the positional arguments.
        keywords: names of the keyword arguments.

    Raises:
        ConfigError: with the arguments that it takes.

    Example:
        >>> require_call("velocity", lambda z, t, s: z, ("z", "t"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: velocity takes (z, t, s), and it is called with (z, t): wrap it ...
    """
    names = ", ".join((*arguments, *(f"{keyword}=" for keyword in keywords)))
    if not callable(value):
        raise ConfigError(f"{name} is a {type(value).__name__}: expected a function of ({names})")
    if torch.compiler.is_compiling():
        # Signatures cannot be traced.
        return
    inside = getattr(value, "forward", None)
    try:
        signature = inspect.signature(inside if callable(inside) else value)
    except (TypeError, ValueError):
        # Functions in C do not say what they take.
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ConfigError(
            f"{name} takes {names_of(signature)}, and it is called with ({names}): wrap it in a function of these; "
            "functools.partial binds further arguments"
        ) from error


def names_of(signature: inspect.Signature) -> str:
    """The arguments of a function without their types and defaults.

    Example:
        >>> names_of(inspect.signature(require_share))
        '(name, value)'
    """
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def equation(name: str, value: int) -> str:
    """``name = value``; the size alone of a number with more digits than a line holds.

    Example:
        >>> equation("steps", -3), equation("steps", 10**400)
        ('steps = -3', 'steps is about 2^1328')
    """
    bits = abs(value).bit_length()
    return f"{name} = {value}" if bits <= 128 else f"{name} is about {'-' * (value < 0)}2^{bits - 1}"


def whole_numbers(values: Tensor) -> bool:
    """Whether a tensor is of an integer type, as labels are; truth values are no numbers.

    Example:
        >>> whole_numbers(torch.tensor([0, 2])), whole_numbers(torch.tensor([True]))
        (True, False)
    """
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def untraced() -> bool:
    """Whether tensors are computed now: outside of compiled functions, ``torch.func`` and tracing modes."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore
        return False
    # Not `is_in_torch_dispatch_mode`, a flag that stays set after an error inside of a mode.
    return torch._C._len_torch_dispatch_stack() == 0  # pyright: ignore


def readable(*tensors: Tensor) -> bool:
    """Whether the values of these tensors can be read at once: computed now, on the CPU."""
    return untraced() and all(tensor.device.type == "cpu" for tensor in tensors)


_NO_NUMBERS = (str, bytes, list, tuple, dict, type(None))


def _require_number(name: str, value: object) -> None:
    if isinstance(value, _NO_NUMBERS):
        raise ConfigError(f"{name} = {value!r}: expected a number")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise ConfigError(f"{equation(name, value)}: expected a number that a float can hold")


def require_positive(name: str, value: float) -> None:
    """Refuse an argument that is not above zero.

    Args:
        name: name of the argument, for the message.
        value: the argument; infinity is accepted.

    Raises:
        ConfigError: if ``value`` is zero, negative or NaN.

    Example:
        >>> require_positive("temperature", 0.05)
    """
    _require_number(name, value)
    if not value > 0:
        raise ConfigError(f"{name} = {value}: expected a positive number")


def require_not_negative(name: str, value: object) -> None:
    """Refuse a number below zero, infinite or NaN; a tensor is not looked into.

    Raises:
        ConfigError: for such a number.

    Example:
        >>> require_not_negative("power", 0.5)
    """
    _require_number(name, value)
    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
        raise ConfigError(f"{name} = {value}: expected zero or more, and finite")


def require_finite(name: str, value: object) -> None:
    """Refuse a number that is infinite or NaN; a tensor is not looked into.

    Raises:
        ConfigError: for such a number.

    Example:
        >>> require_finite("scale", 3.0)
    """
    _require_number(name, value)
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: expected a finite number")


def require_share(name: str, value: object) -> None:
    """Refuse a number outside [0, 1]; a tensor is not looked into.

    Raises:
        ConfigError: for such a number.

    Example:
        >>> require_share("share", 0.5)
    """
    _require_number(name, value)
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        raise ConfigError(f"{name} = {value}: expected a share between 0 and 1")


SMALLEST_LENGTH = 1e-12
"""A kernel's length below it is far below the difference of two float32 numbers near 1: a mistake."""


def require_length(name: str, value: float) -> None:
    """Refuse the length of a kernel that is not positive, or below :data:`SMALLEST_LENGTH`; infinity is accepted.

    Raises:
        ConfigError: for such a length.

    Example:
        >>> require_length("temperature", 0.05)
    """
    _require_number(name, value)
    if not value >= SMALLEST_LENGTH:
        raise ConfigError(
            f"{name} = {value}: expected a positive length in units of the data, at least {SMALLEST_LENGTH:g}"
        )


def positive_sigma_data(sigma_data: float) -> float:
    """The standard deviation of the data as given.

    Raises:
        ConfigError: if it is not positive.

    Example:
        >>> positive_sigma_data(0.5)
        0.5
    """
    _require_number("sigma_data", sigma_data)
    if not sigma_data > 0:
        raise ConfigError(f"sigma_data = {sigma_data}: expected the standard deviation of the data, a positive number")
    return sigma_data
