"""``onestep``: train, sample, evaluate, compare, export, show data, and the demo. Only parsing and printing is here."""

import sys
from importlib.metadata import version


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status (2 for a mistake in the call, 1 for a failure, 130 for Ctrl-C).

    Example:
        >>> main(["--help"]).bit_length()  # doctest: +ELLIPSIS
        onestep: train one-step generators, draw samples and evaluate them.
        ...
        0
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--version"]:
        print(f"onestep {version('onestep')}")
        return 0
    try:
        # Loading torch takes a second or two, in which Ctrl-C is an interruption like any other.
        from onestep_core.errors import MissingExtraError

        try:
            # The command line is an extra: without it one line says what is missing.
            from onestep_adapters.cli.app import run
        except MissingExtraError as error:
            print(f"onestep: {error}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("onestep: interrupted before the command began", file=sys.stderr)
        return 130
    return run(words)
