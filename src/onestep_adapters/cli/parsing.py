"""Options of the command line from attrs classes, by tyro. The docstring under a field is its help."""

import ast
import contextlib
import inspect
import io
import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import attrs

from onestep_adapters.cli.terminal import filled
from onestep_core.errors import ConfigError, MissingExtraError

try:
    import tyro
    from tyro.conf import Positional as Positional
except ImportError as error:
    raise MissingExtraError("the command line needs tyro and rich: pip install 'onestep[cli]'") from error

T = TypeVar("T")


def options(kind: type[T] | Any, arguments: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Options of an attrs class from the command line; ``--help`` prints them and exits.

    Nested options have short names, ``--steps``. Those of a teacher have long ones, ``--teacher.training.steps``.

    Raises:
        ConfigError: for an unknown option or a value that does not fit, in one line.
    """
    _refuse_empty(kind, arguments)
    extra: dict[str, Any] = {} if default is None else {"default": _as_shown(default)}
    # tyro keeps line breaks in a description only before an indented line.
    about = filled(description, "    ", first="")
    parse = partial(tyro.cli, _shown(kind), args=list(arguments), prog=prog, description=about, **extra)
    if {"-h", "--help"} & set(arguments):
        return _as_given(parse(), kind)
    told = io.StringIO()
    try:
        with _wide(), contextlib.redirect_stderr(told), warnings.catch_warnings():
            # tyro warns of its own defaults while it looks for options that are similar to a wrong one.
            warnings.simplefilter("ignore")
            found = parse()
    except SystemExit as ended:
        if not ended.code:
            raise
        raise ConfigError(f"{_in_one_line(told.getvalue())} (see {prog} --help)") from None
    return _as_given(found, kind)


def _refuse_empty(kind: type, arguments: Sequence[str]) -> None:
    """Refuse an empty word, unless it is the value of an option of words: as a path it would be the current folder."""
    for before, word in pairwise(["", *arguments]):
        option, equals, value = word.partition("=")
        if word == "" and before.startswith("--"):
            option = before
        elif not (word == "" or (option.startswith("--") and equals and value == "")):
            continue
        if not option or _kind_of(kind, option) is not str:
            raise ConfigError(f"{option or 'an argument'} is empty: give a value, or leave it out")


def _kind_of(kind: type, option: str) -> Any:
    """The type of an option such as ``--teacher.training.steps`` or ``--steps``; ``None`` for an unknown one."""
    hints, name = get_type_hints(kind), option.rpartition(".")[2].lstrip("-").replace("-", "_")
    nested = [inner for hint in hints.values() if (inner := _nested(hint)) is not None]
    return hints.get(name) or next((found for inner in nested if (found := _kind_of(inner, option))), None)


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Inside, the terminal is so wide that no message is broken into lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "9999"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _in_one_line(told: str) -> str:
    """What tyro printed as a box, in one line: the error, and options with similar names."""
    rows = [row.strip(" │") for row in told.splitlines() if not row.startswith(("╭", "╰"))]
    sections = [list(rows) for ruler, rows in groupby(rows, _is_ruler) if not ruler]
    if "╭" not in told:
        # Without box characters, the title is a section.
        del sections[:1]
    if not sections:
        return " ".join(told.split())
    error = " ".join(" ".join(sections[0]).split()).rstrip(".")
    if refused := re.match(r"Error parsing (\S+): (.*)", error):
        option, reason = refused.groups()
        # tyro says which function failed; the values and what the option takes are more useful.
        takes = next((rows[1] for rows in sections if rows[0].startswith("Argument helptext")), "").partition(" ")[2]
        values = re.findall(r"'([^']*)'", reason.partition(". Got errors")[0])
        error = f"{option} {' '.join(values)}: expected {_KINDS.get(takes, takes)}" if takes else reason
    similar = [
        row.split()[0] for above, row in pairwise(rows) if re.match("Arguments similar|Perhaps you meant", above)
    ]
    return f"{error}; did you mean {' or '.join(similar)}?" if similar else error


_KINDS = {"INT": "a whole number", "FLOAT": "a number", "{None}|FLOAT": "a number"}


def _is_ruler(row: str) -> bool:
    return len(row) > 1 and set(row) <= {"─", "-"}


@cache
def _shown(kind: type, short: bool = True) -> type:
    """A subclass whose annotations tell tyro the help of the options, and that nested ones have ``short`` names.

    The defaults of nested options are of such classes too. A field with the metadata ``fixed`` is no option.
    """
    hints, told = get_type_hints(kind, include_extras=True), _field_docstrings(kind)
    annotations: dict[str, Any] = {}
    known = attrs.fields(kind)
    shown = {field.name: field for field in known}
    for field in attrs.fields(kind):
        hint, nested = hints[field.name], _nested(hints[field.name])
        if field.metadata.get("fixed"):
            annotations[field.name] = tyro.conf.Suppress[hint]
            continue
        if nested is None:
            annotations[field.name] = Annotated[hint, tyro.conf.arg(help=told.get(field.name), **_words(field, hint))]
            continue
        plain = short and field.name != "teacher"
        inner: Any = _shown(nested, plain)
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type,union-attr]
        if attrs.has(type(default)):
            shown[field.name] = field.evolve(default=_as_shown(default, plain))
        if type(None) in get_args(hint):
            inner = inner | None
        annotations[field.name] = tyro.conf.OmitArgPrefixes[inner] if plain else inner
    members = {"__annotations__": annotations, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**members, "__attrs_attrs__": type(known)(shown.values())})


_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def _words(field: "attrs.Attribute[Any]", hint: Any) -> dict[str, Any]:
    """Placeholder and hint of an option: those of its metadata; one that may be left out names no None."""
    words = {name: field.metadata[name] for name in ("metavar", "help_behavior_hint") if name in field.metadata}
    one = next((kind for kind in get_args(hint) if kind in _PLACEHOLDERS), None)
    if type(None) in get_args(hint) and one is not None and field.default is None:
        words = {
            "metavar": _PLACEHOLDERS[one],
            "help_behavior_hint": lambda value: "" if value == "None" else f"(default: {value})",
            **words,
        }
    return words


def _nested(hint: Any) -> type | None:
    """The attrs class in an annotation, if it is one, or one or ``None``."""
    return next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and attrs.has(part)), None)


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string under each field, on one line; a subclass overrides its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not attrs.has(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, told in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant):
                found[field.target.id] = " ".join(str(told.value.value).split())  # type: ignore[union-attr]
    return {field.name: found[field.name] for field in attrs.fields(kind) if field.name in found}


def _as_shown(instance: Any, short: bool = True) -> Any:
    """The same values in the class that tyro is shown."""
    values: dict[str, Any] = {}
    for field in attrs.fields(type(instance)):
        value = getattr(instance, field.name)
        nested = attrs.has(type(value))
        values[field.name] = _as_shown(value, short and field.name != "teacher") if nested else value
    return _shown(type(instance), short)(**values)


def _as_given(instance: Any, kind: type[T]) -> T:
    """The values in the class that the caller gave, nested classes included."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in attrs.fields(kind):  # type: ignore[arg-type]
        value, nested = getattr(instance, field.name), _nested(hints[field.name])
        values[field.name] = _as_given(value, nested) if nested is not None and value is not None else value
    return kind(**values)
