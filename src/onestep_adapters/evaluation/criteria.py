"""How reports judge, by kind of data."""

from collections.abc import Callable, Mapping

import attrs

from onestep_adapters.evaluation import image_criteria, point_criteria
from onestep_adapters.evaluation.rows import Comparison, Kind, Metric, References, Row, Verdict
from onestep_adapters.names import choose

Verdicts = Callable[[Row, Row | None, References, Comparison], tuple[Verdict, ...]]
"""``(row, baseline, references, comparison)`` to the verdicts on all thresholds."""


@attrs.frozen
class Criteria:
    """What differs between the reports on points and those on images.

    Attributes:
        metrics: heading and meaning of each metric that a table shows, in its order.
        verdicts: the thresholds.
        opening: ``(comparison, draws)`` to the first sentence of a report.
        meanings: ``(comparison, references)`` to the text on the reference rows.
        breakdown: heading of :attr:`Row.breakdown`, and what its numbers are; ``None`` shows none.
        judges_references: whether reference rows get verdicts too.
    """

    metrics: Mapping[str, Metric]
    verdicts: Verdicts
    opening: Callable[[Comparison, int], str]
    meanings: Callable[[Comparison, References], str]
    breakdown: tuple[str, str] | None
    judges_references: bool


_CRITERIA: dict[Kind, Criteria] = {
    "points": Criteria(
        point_criteria.METRICS,
        point_criteria.point_verdicts,
        point_criteria.point_opening,
        point_criteria.point_meanings,
        breakdown=None,
        judges_references=False,
    ),
    "images": Criteria(
        image_criteria.METRICS,
        image_criteria.image_verdicts,
        image_criteria.image_opening,
        image_criteria.image_meanings,
        breakdown=("Classes", "Share of each class as the classifier predicts it, in per cent."),
        judges_references=True,
    ),
}


def criteria_of(kind: str) -> Criteria:
    """The criteria for a kind of data.

    Args:
        kind: ``"points"`` or ``"images"``.

    Raises:
        ConfigError: for another kind.

    Example:
        >>> list(criteria_of("points").metrics)
        ['score', 'mass_error', 'narrowest_mode', 'widest_mode']
    """
    return _CRITERIA[choose(kind, _CRITERIA, "kind of data")]  # type: ignore[index]
