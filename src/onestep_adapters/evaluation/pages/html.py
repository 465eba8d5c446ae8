"""A report page as one HTML file: style, sorting and pictures are inside. Needs jinja2, an extra."""

import base64
import os
from pathlib import Path

from onestep_adapters.evaluation.pages.page import Page
from onestep_adapters.files import make_folder, write_whole
from onestep_core.errors import MissingExtraError

try:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape
except ImportError as error:
    raise MissingExtraError("HTML reports need jinja2: pip install 'onestep[plots]'") from error

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def to_html(page: Page) -> str:
    """The page as HTML.

    Example:
        >>> to_html(Page("A & B", "Opening.", [], [])).count("A &amp; B")
        2
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inline"] = _inline
    environment.filters["told"] = _told
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(page=page)


def write_html(folder: str | os.PathLike[str], page: Page, name: str = "report.html") -> Path:
    """Write the page into a folder, whole or not at all."""
    file = make_folder(folder) / name
    write_whole(file, to_html(page))
    return file


def _inline(content: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _told(text: str) -> Markup:
    """Text in which ``**words**`` are bold and nothing else is markup."""
    parts = str(escape(text)).split("**")
    return Markup("".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts)))
