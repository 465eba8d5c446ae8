"""Options of the command line from attrs classes, by tyro. The docstring under a field is its help."""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import attrs

from onestep_core.errors import MissingExtraError

try:
    import tyro
    from tyro.conf import Positional as Positional
except ImportError as error:
    raise MissingExtraError("the command line needs tyro and rich: pip install 'onestep[cli]'") from error

T = TypeVar("T")


def options(kind: type[T] | Any, arguments: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Options of an attrs class from the command line; ``--help`` prints them and exits.

    Nested options have short names, ``--steps``. Those of a teacher have long ones, ``--teacher.training.steps``.
    """
    extra: dict[str, Any] = {} if default is None else {"default": _as_shown(default)}
    return _as_given(tyro.cli(_shown(kind), args=list(arguments), prog=prog, description=description, **extra), kind)


@cache
def _shown(kind: type, short: bool = True) -> type:
    """A subclass whose annotations tell tyro the help of the options, and that nested ones have ``short`` names.

    A field with the metadata ``fixed`` is no option.
    """
    hints, told = get_type_hints(kind, include_extras=True), _field_docstrings(kind)
    annotations: dict[str, Any] = {}
    for field in attrs.fields(kind):
        hint, nested = hints[field.name], _nested(hints[field.name])
        if field.metadata.get("fixed"):
            annotations[field.name] = tyro.conf.Suppress[hint]
            continue
        if nested is None:
            annotations[field.name] = Annotated[hint, tyro.conf.arg(help=told.get(field.name))]
            continue
        plain = short and field.name != "teacher"
        inner: Any = _shown(nested, plain)
        if type(None) in get_args(hint):
            inner = inner | None
        annotations[field.name] = tyro.conf.OmitArgPrefixes[inner] if plain else inner
    return type(kind.__name__, (kind,), {"__annotations__": annotations, "__doc__": kind.__doc__})


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
