"""What a report page holds, whatever it is about: a verdict, sections of text, pictures and tables, and definitions.

A page is written as HTML by :mod:`onestep_adapters.evaluation.pages.html` and as Markdown by :func:`to_text`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import attrs


class Value(NamedTuple):
    """A cell of a table: what is printed, and the number by which the column is sorted."""

    text: str
    order: float | None = None


class Column(NamedTuple):
    """A column of a table: its heading, and what it means for a tooltip and the appendix."""

    heading: str
    meaning: str = ""


class Picture(NamedTuple):
    """A picture: what it shows, the name of its file beside the report, and its bytes (PNG)."""

    caption: str
    file: str
    content: bytes


@attrs.frozen
class Table:
    """Rows under headings; the first column names the row.

    Attributes:
        columns: headings.
        rows: as many values as columns each.
        title: above the table.
        note: below the table.
        folded: whether the reader has to open it.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    title: str = ""
    note: str = ""
    folded: bool = False


@attrs.frozen
class Section:
    """A heading with text, pictures and tables, in this order.

    Attributes:
        title: the heading.
        text: paragraphs.
        lines: a list.
        pictures: shown in the width of the page.
        tables: sortable.
        folded: whether the reader has to open it.
    """

    title: str
    text: Sequence[str] = ()
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    folded: bool = False


@attrs.frozen
class Page:
    """A report.

    Attributes:
        title: the first line.
        opening: one sentence below it.
        verdict: what came out, in about ten lines.
        sections: the rest.
        environment: hardware and versions.
    """

    title: str
    opening: str
    verdict: Sequence[str]
    sections: Sequence[Section]
    environment: Mapping[str, str | int] = attrs.field(factory=dict)

    @property
    def definitions(self) -> dict[str, str]:
        """The meaning of every heading that has one."""
        columns = (column for section in self.sections for table in section.tables for column in table.columns)
        return {column.heading: column.meaning for column in columns if column.meaning}


def to_text(page: Page) -> str:
    """The page as Markdown, with its pictures as files beside it.

    Example:
        >>> table = Table([Column("method"), Column("distance")], [[Value("meanflow"), Value("0.1", 0.1)]])
        >>> print(to_text(Page("Title", "Opening.", ["a wins"], [Section("Numbers", tables=[table])])))
        # Title
        <BLANKLINE>
        Opening.
        <BLANKLINE>
        - a wins
        <BLANKLINE>
        ## Numbers
        <BLANKLINE>
        | method | distance |
        | --- | ---: |
        | meanflow | 0.1 |
    """
    parts = [f"# {page.title}", page.opening, _list(page.verdict)]
    for section in page.sections:
        parts += [f"## {section.title}", *section.text, _list(section.lines)]
        parts += [f"![{picture.caption}]({picture.file})\n\n*{picture.caption}*" for picture in section.pictures]
        for table in section.tables:
            parts += [f"### {table.title}" if table.title else "", _table(table), table.note]
    if page.definitions:
        parts += ["## What the columns mean", _list(f"**{name}**: {told}" for name, told in page.definitions.items())]
    if page.environment:
        parts += ["## Where it ran", ", ".join(f"{name} {value}" for name, value in page.environment.items()) + "."]
    return "\n\n".join(part for part in parts if part)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: Table) -> str:
    head = [column.heading for column in table.columns]
    lines = [head, ["---", *("---:" for _ in head[1:])], *([value.text for value in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
