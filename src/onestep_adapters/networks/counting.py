"""Count network evaluations."""

from collections.abc import Callable
from typing import Any


class Counted:
    """A callable that counts its calls; :func:`count_calls` makes one.

    Attributes:
        calls: number of calls so far, for any batch size. Assign 0 to count from the beginning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Increase ``calls`` by one, then call the function."""
        self.calls += 1
        return self._function(*args, **kwargs)


def count_calls(function: Callable[..., Any]) -> Counted:
    """Wrap ``function``; the attribute ``.calls`` is the number of network evaluations.

    One call is one evaluation of the whole batch. A call inside ``torch.func.jvp`` counts as one, although it takes
    about the time of two.

    Example:
        >>> import torch
        >>> network = count_calls(lambda z: z + 1)
        >>> _ = network(torch.zeros(1)), network(torch.zeros(1))
        >>> network.calls
        2
    """
    return Counted(function)
