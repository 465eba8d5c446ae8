"""Reports as files: Markdown for readers, strict JSON for programs, and reading the latter."""

import json
import os
from collections.abc import Mapping
from typing import Any

import attrs

from onestep_adapters.evaluation.criteria import criteria_of
from onestep_adapters.evaluation.markdown import to_markdown
from onestep_adapters.evaluation.report import Report
from onestep_adapters.evaluation.rows import Comparison, Cost, References, Row, Verdict
from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.metrics import Estimate
from onestep_core.errors import ConfigError


def write_report(folder: str | os.PathLike[str], report: Report, pictures: Mapping[str, str] | None = None) -> str:
    """Write ``report.json`` and ``report.md`` into ``folder``, each whole or not at all; returns the Markdown.

    ``pictures`` are files in the folder by what they show, see :func:`to_markdown`.
    """
    place, text = make_folder(folder), to_markdown(report, pictures)
    write_whole(place / "report.json", to_json(report))
    write_whole(place / "report.md", text)
    return text


def to_json(report: Report) -> str:
    """The report as strict JSON: no NaN, no infinity, keys in a fixed order.

    Raises:
        ConfigError: if a number is not finite.
    """
    try:
        return json.dumps(attrs.asdict(report, filter=_kept), allow_nan=False, indent=1, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise ConfigError(f"a report holds finite numbers only; None says that one is missing ({error})") from error


def _kept(attribute: "attrs.Attribute[Any]", value: Any) -> bool:
    """Options are left out of a row that has none, such as a reference row; the encoder, where none measures."""
    return attribute.name not in ("options", "encoder") or bool(value)


def from_json(text: str) -> Report:
    """The report that :func:`to_json` wrote.

    Raises:
        ConfigError: if the text is no such report.
    """

    def row(content: dict[str, Any] | None) -> Row | None:
        if content is None:
            return None
        metrics, cost = content["metrics"], content["cost"]
        return Row(
            **{
                **content,
                "metrics": None if metrics is None else {name: Estimate(**found) for name, found in metrics.items()},
                "breakdown": tuple(content["breakdown"]),
                "cost": None if cost is None else Cost(**cost),
            }
        )

    try:
        content = json.loads(text)
        compared = content["comparison"]
        references = References(**{name: row(found) for name, found in content["references"].items()})  # type: ignore[arg-type]
        rows = tuple(row(found) for found in content["rows"])
        verdicts = {label: tuple(Verdict(**v) for v in found) for label, found in content["verdicts"].items()}
        comparison = Comparison(**{**compared, "breakdown": tuple(compared["breakdown"])})
        criteria_of(content["kind"])
        return Report(
            **{**content, "comparison": comparison, "references": references, "rows": rows, "verdicts": verdicts}
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"expected a report written by to_json, of this version: {error!r}") from error
