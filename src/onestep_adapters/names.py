"""Look a name up in a table; the error for an unknown name lists the nearest ones."""

import difflib
from collections.abc import Iterable

from onestep_core.errors import ConfigError


def choose(name: str, known: Iterable[str], kind: str) -> str:
    """``name`` if it is known.

    Raises:
        ConfigError: if it is not, with the nearest names first and then all of them.

    Example:
        >>> choose("meanflow", ["drifting", "meanflow"], "method")
        'meanflow'
    """
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ConfigError(f"no {kind} is called {name!r}: {meant}known are {', '.join(names)}")
