"""A report: rows of methods beside reference rows, a verdict on each threshold, costs, notes.

One class for every kind of data; what differs by kind (metrics, thresholds, meanings) is in
:mod:`onestep_adapters.evaluation.criteria`; how one is written, in :mod:`onestep_adapters.evaluation.writing`.
"""

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import torch

from onestep_adapters.evaluation.criteria import Criteria, criteria_of
from onestep_adapters.evaluation.image_criteria import encoder_columns
from onestep_adapters.evaluation.point_criteria import BASELINE_TRAINED
from onestep_adapters.evaluation.rows import Comparison, Kind, Metric, References, Row, Verdict
from onestep_core.errors import ConfigError


@attrs.frozen
class Report:
    """Everything that a report prints; made by :func:`make_report`.

    Attributes:
        title: the first line.
        kind: ``"points"`` or ``"images"``; chooses the criteria.
        data: name of the data set.
        description: of the data, for readers.
        comparison: what all samples are compared with.
        references: the reference rows.
        rows: methods, the baseline among them.
        verdicts: by label of a row, one for each threshold; empty where a row is not judged.
        baseline: label of the row to match, or ``None``.
        environment: versions and hardware.
        date: ``YYYY-MM-DD``.
        notes: printed under the title.
    """

    title: str
    kind: Kind
    data: str
    description: str
    comparison: Comparison
    references: References
    rows: tuple[Row, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]]
    baseline: str | None
    environment: Mapping[str, str | int]
    date: str
    notes: str = ""

    @property
    def criteria(self) -> Criteria:
        """The metrics, thresholds and meanings of this kind of data."""
        return criteria_of(self.kind)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Heading and meaning of each metric, in the order of the table; with an encoder, those in its features too."""
        found, encoder = self.criteria.metrics, self.comparison.encoder
        return {**found, **encoder_columns(encoder)} if encoder else found

    @property
    def sound(self) -> bool:
        """Whether the baseline passes its own thresholds; true without a baseline."""
        return self.baseline is None or not self.missed(self.baseline)

    def missed(self, label: str) -> list[str]:
        """Names of the thresholds that a row misses."""
        return [verdict.name for verdict in self.verdicts.get(label, ()) if not verdict.passed]

    def overall(self, label: str) -> str:
        """The verdict on a row: ``"pass"``, ``"miss"``, ``"baseline not trained"``, or why there is none."""
        missed = self.missed(label)
        if BASELINE_TRAINED in missed:
            return "baseline not trained"
        if missed:
            return "miss"
        if not self.verdicts.get(label):
            return "no baseline given"
        return "pass" if self.sound else "pass, but the baseline itself misses a threshold"


def make_report(
    rows: Sequence[Row],
    *,
    kind: Kind,
    data: str,
    comparison: Comparison,
    references: References,
    baseline: str | None = None,
    description: str = "",
    title: str | None = None,
    notes: str = "",
) -> Report:
    """Judge every row and gather what the report prints.

    Args:
        rows: methods, the baseline among them.
        kind: ``"points"`` or ``"images"``.
        data: name of the data set.
        comparison: what all samples were compared with.
        references: the reference rows.
        baseline: label of the row to match. ``None``: images are compared with the floor, points are not judged.
        description: of the data, for readers; the name by default.
        title: the first line; "One-step generation of DATA" by default.
        notes: printed under the title.

    Raises:
        ConfigError: for two rows with one label, or a baseline that is not among the rows.

    Example:
        >>> from onestep_adapters.evaluation.point_criteria import point_references
        >>> from onestep_adapters.metrics import Estimate
        >>> report = make_report(
        ...     [Row("flow-matching", {"score": Estimate(0.01, 0.001)}, draws=5)],
        ...     kind="points",
        ...     data="8gaussians",
        ...     comparison=Comparison("fresh draws", 10_000),
        ...     references=point_references(0.0, 0.1),
        ...     baseline="flow-matching",
        ... )
        >>> report.overall("flow-matching")
        'pass'
    """
    labels = [row.label for row in (*references.rows, *rows)]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise ConfigError(f"two rows are called {doubled[0]!r}: give each a variant of its own")
    if baseline is not None and baseline not in [row.label for row in rows]:
        raise ConfigError(f"the baseline {baseline!r} is not among the rows {[row.label for row in rows]}")
    return Report(
        title=f"One-step generation of {data}" if title is None else title,
        kind=kind,
        data=data,
        description=description or data,
        comparison=comparison,
        references=references,
        rows=tuple(rows),
        verdicts=judged(rows, kind=kind, baseline=baseline, references=references, comparison=comparison),
        baseline=baseline,
        environment=environment(),
        date=time.strftime("%Y-%m-%d"),
        notes=notes,
    )


def judged(
    rows: Iterable[Row], *, kind: Kind, baseline: str | None, references: References, comparison: Comparison
) -> dict[str, tuple[Verdict, ...]]:
    """The verdicts on every row by its label, reference rows first where the criteria judge them; rows
    without a verdict are left out.
    """
    criteria, rows = criteria_of(kind), list(rows)
    peer = next((row for row in rows if row.label == baseline), None)
    chosen = [row for row in references.rows if row is not references.floor] if criteria.judges_references else []
    found = {row.label: criteria.verdicts(row, peer, references, comparison) for row in (*chosen, *rows)}
    return {label: verdicts for label, verdicts in found.items() if verdicts}


def with_rows(report: Report, rows: Sequence[Row], *, baseline: str | None) -> Report:
    """The report with other rows, judged anew by its own references.

    Raises:
        ConfigError: as :func:`make_report`.
    """
    made = make_report(
        rows,
        kind=report.kind,
        data=report.data,
        comparison=report.comparison,
        references=report.references,
        baseline=baseline,
    )
    return attrs.evolve(report, rows=made.rows, baseline=baseline, verdicts=made.verdicts)


def environment() -> dict[str, str | int]:
    """Versions and hardware, without the name of the host or of any folder.

    Example:
        >>> sorted(environment())
        ['cpu', 'cuda', 'python', 'system', 'threads', 'torch']
    """
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
