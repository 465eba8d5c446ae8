"""What both formats share: the error, and the form of a program that can be called."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from onestep_core.errors import OneStepError

Run: TypeAlias = Callable[..., Tensor]
"""``(noise[, labels]) -> samples``."""


class ExportError(OneStepError):
    """A generator cannot be exported, or the file does not compute what the generator does."""


def first_line(error: BaseException) -> str:
    """The first line of the message of an error's first cause, or its class.

    Example:
        >>> first_line(ValueError("one line\\nanother"))
        'one line'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
