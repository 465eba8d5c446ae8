"""Counting of network evaluations."""

from collections.abc import Callable
from typing import Any


class Counted:
    """A callable that counts its calls; also made by :func:`count_calls`.

    Attributes:
        calls: number of calls so far, whatever their batch; assign 0 to start again.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Count, then call."""
        self.calls += 1
        return self._function(*args, **kwargs)


def count_calls(function: Callable[..., Any]) -> Counted:
    """``function`` with a number of network evaluations, ``.calls``.

    A call is one evaluation of the whole batch. A call inside ``torch.func.jvp`` counts once, although it
    costs about two.

    Example:
        >>> network = count_calls(lambda z: z + 1)
        >>> _ = network(torch.zeros(1)), network(torch.zeros(1))
        >>> network.calls
        2
    """
    return Counted(function)
