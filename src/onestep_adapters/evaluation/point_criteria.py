"""How reports on points (2-D toys) judge: metrics, thresholds and what they mean.

The score is explained in :mod:`onestep_adapters.metrics.toys`: 0 for the distribution itself, 1 for a Gaussian with its
mean and covariance. The *baseline* is a many-step sampler with the same network.
"""

from onestep_adapters.evaluation.rows import Comparison, Metric, References, Row, Verdict, allowance, verdict
from onestep_adapters.metrics import Estimate, ToyScore

TRAINED = 0.03
"""Largest score of a baseline that counts as trained."""

MASS_TOLERANCE = 0.05
"""Largest total variation of the mode masses."""

SPREAD_TOLERANCE = 0.2
"""Largest distance from 1 of the ratio of a mode's standard deviation to the real one."""

BASELINE_TRAINED = "baseline trained"
"""Name of the verdict on the baseline itself."""

METRICS: dict[str, Metric] = {
    "score": Metric(
        "score",
        "squared energy distance to fresh draws, scaled: 0 for the distribution itself, 1 for a Gaussian with its mean "
        "and covariance. **Threshold.**",
    ),
    "mass_error": Metric(
        "mode masses",
        "total variation between the masses of the modes and the real ones, where modes are known. **Threshold.**",
    ),
    "narrowest_mode": Metric(
        "narrowest mode",
        "smallest ratio of a mode's standard deviation to the real one, where modes are known; 0 where no sample came. "
        "**Threshold.**",
    ),
    "widest_mode": Metric("widest mode", "largest such ratio. **Threshold.**"),
}
"""Heading and meaning of every metric that a table shows, in its order; the JSON has ``energy`` besides."""


def point_metrics(score: ToyScore) -> dict[str, Estimate]:
    """The metrics of a row: those of :data:`METRICS` that are known, and the squared energy distance ``energy``.

    Example:
        >>> list(point_metrics(ToyScore(0.1, 0.01, 1.0, 0.0, 10.0)))
        ['score', 'energy']
    """
    found = {"score": Estimate(score.score, score.se), "energy": Estimate(score.energy)}
    if score.mass_error is not None:
        found["mass_error"] = Estimate(score.mass_error)
    if score.spreads:
        found["narrowest_mode"] = Estimate(min(score.spreads))
        found["widest_mode"] = Estimate(max(score.spreads))
    return found


def point_references(floor: float, moments: float) -> References:
    """The two rows that give the score its scale, from their mean squared energy distances."""
    rows = (("floor", 0.0, floor, "real against real"), ("moments", 1.0, moments, "one Gaussian"))
    return References(
        *(Row(name, {"score": Estimate(at), "energy": Estimate(energy)}, what) for name, at, energy, what in rows)
    )


def point_verdicts(
    row: Row, baseline: Row | None, references: References, comparison: Comparison
) -> tuple[Verdict, ...]:
    """The verdicts on all thresholds; none without a baseline.

    ::

        score             <=  max(2 baseline, 0.03) + 2 se        se of the row's own score
        mode masses       <=  0.05                                total variation, where modes are known
        mode widths       <=  0.2                                 largest |ratio - 1|, where modes are known
        baseline trained  <=  0.03                                the baseline's own score

    Args:
        row: the method.
        baseline: what it has to match. If its own score is above 0.03, or was not measured, no row passes.
        references: not used; the score contains them.
        comparison: not used.

    Example:
        >>> good, bad = (Row("a", {"score": Estimate(score, 0.001)}) for score in (0.01, 0.5))
        >>> references, comparison = point_references(0.0, 1.0), Comparison("fresh draws", 10_000)
        >>> [v.passed for v in point_verdicts(bad, good, references, comparison)]
        [False, True]
    """
    if baseline is None:
        return ()
    mine = row.metrics or {}
    own = mine.get("score")
    peer = (baseline.metrics or {}).get("score")
    known = 0.0 if peer is None else peer.mean
    limit = max(2 * known, TRAINED) + 2 * ((own and own.se) or 0.0)
    score = "twice the baseline's score" + ("" if peer is None else f" ({peer.mean:.4f})")
    score += f", but at least {TRAINED}, {allowance(own)}"
    found = [verdict("score", own and own.mean, "<=", limit, score)]
    if "mass_error" in mine:
        masses = f"{MASS_TOLERANCE}: total variation between the masses of the modes and the real ones"
        found.append(verdict("mode masses", mine["mass_error"].mean, "<=", MASS_TOLERANCE, masses))
    if row.breakdown:
        worst = max(row.breakdown, key=lambda ratio: abs(ratio - 1))
        widths = (
            f"{SPREAD_TOLERANCE}: largest distance from 1 of the ratio of a mode's standard deviation to the real one"
        )
        found.append(verdict("mode widths", abs(worst - 1), "<=", SPREAD_TOLERANCE, widths))
    trained = f"{TRAINED}: score of the baseline itself; if it is larger, train the baseline longer"
    found.append(verdict(BASELINE_TRAINED, peer and peer.mean, "<=", TRAINED, trained))
    return tuple(found)


def point_opening(comparison: Comparison, draws: int) -> str:
    """The first sentence of a report."""
    times = "once" if draws == 1 else f"{draws} times"
    error = "one draw gives no standard error" if draws == 1 else "± one standard error"
    return (
        f"Score: squared energy distance between {comparison.count:,} samples and {comparison.count:,} "
        f"{comparison.split}, {times}, scaled so that 0 is the distribution itself and 1 a Gaussian with its "
        f"mean and covariance; {error}."
    )


def point_meanings(comparison: Comparison, references: References) -> str:
    """What the reference rows are."""
    return (
        "*floor* compares two sets of draws of the distribution, *moments* a Gaussian with its mean and covariance; "
        "the score is 0 at the first and 1 at the second, by definition."
    )
