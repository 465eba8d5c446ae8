"""One law: a name and a check that draws its own cases.

A law is called without arguments. It passes silently or raises :class:`LawError`, whose message begins with
the law's name and holds the numbers that broke it. The cases are drawn by hypothesis, the same in every run;
``ONESTEP_LAW_EXAMPLES`` sets how many.
"""

import os
from collections.abc import Callable
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from onestep_core.errors import ConfigError


class LawError(AssertionError):
    """A law that does not hold; the message names it and shows the numbers."""


@attrs.frozen
class Law:
    """A named claim: ``str(law)`` is the name, ``law()`` checks it.

    Raises:
        LawError: at the call, if the claim does not hold or the object under test raises.

    Example:
        >>> def check():
        ...     require(1 + 1 == 3, "1 + 1 is not 3")
        >>> try:
        ...     Law("arithmetic.addition", check)()
        ... except LawError as error:
        ...     print(error)
        arithmetic.addition: 1 + 1 is not 3
    """

    name: str
    check: Callable[[], None] = attrs.field(repr=False)

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Check the law on all its cases."""
        try:
            self.check()
        except Exception as error:
            kind = "" if isinstance(error, LawError) else f"{type(error).__name__}: "
            raise LawError(f"{self.name}: {kind}{error}") from error


def examples() -> int:
    """How many cases a law draws: ``ONESTEP_LAW_EXAMPLES``, 10 without it.

    Raises:
        ConfigError: if the variable is not a positive whole number.
    """
    text = os.environ.get("ONESTEP_LAW_EXAMPLES", "10")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"ONESTEP_LAW_EXAMPLES = {text!r}: expected a positive whole number")
    return int(text)


def drawn(name: str, body: Callable[..., None], *cases: st.SearchStrategy[Any], fraction: float = 1.0) -> Law:
    """The law that ``body(*case)`` raises for no case drawn from ``cases``.

    Args:
        name: what to call it, ``"group.claim"``.
        body: the check of one case.
        cases: a hypothesis strategy for each argument of ``body``.
        fraction: of the usual number of cases, above 0 and at most 1, for a slow check; one case at least.

    Raises:
        ConfigError: if ``fraction`` is no such share.

    Example:
        >>> drawn("numbers.positive", lambda n: require(n > 0, f"{n}"), st.integers(1, 9))()
    """

    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction = {fraction}: expected a share of the cases, above 0 and at most 1")

    def check() -> None:
        @settings(
            max_examples=max(1, round(examples() * fraction)),
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.tuples(*cases))
        def test(case: tuple[Any, ...]) -> None:
            body(*case)

        test()

    return Law(name, check)


def require(holds: bool, message: str) -> None:
    """Raise :class:`LawError` with ``message`` unless ``holds``."""
    if not holds:
        raise LawError(message)


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise :class:`LawError` unless two tensors agree to ``tolerance``, relative where values exceed one.

    Example:
        >>> close(torch.ones(2), torch.tensor([1.0, 1.5]), 0.1, "halves")
        Traceback (most recent call last):
        onestep_adapters.testing.law.LawError: halves: 1 where 1.5 was expected at (1,); largest error 0.5, ...
    """
    require(
        actual.shape == expected.shape,
        f"{what}: shape {tuple(actual.shape)} where {tuple(expected.shape)} was expected",
    )
    if actual.numel() == 0:
        return
    first, second = actual.detach().double(), expected.detach().double()
    error = (first - second).abs().nan_to_num(nan=torch.inf)
    error = torch.where((first == second) | (first.isnan() & second.isnan()), 0.0, error)
    scale = max(1.0, float(second.abs().nan_to_num(posinf=0.0, neginf=0.0).max()))
    if float(error.max()) <= tolerance * scale:
        return
    worst = int(error.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), first.shape))
    raise LawError(
        f"{what}: {float(first.flatten()[worst]):.6g} where {float(second.flatten()[worst]):.6g} was expected "
        f"at {place}; largest error {float(error.max()):.3g}, allowed {tolerance * scale:.3g}"
    )


def raises(call: Callable[[], Any], message: str) -> None:
    """Raise :class:`LawError` with ``message`` unless ``call`` raises something."""
    try:
        call()
    except Exception:
        return
    raise LawError(message)
