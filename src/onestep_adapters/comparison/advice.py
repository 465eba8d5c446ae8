"""Verdict and recommendation: which method is nearest to the data, by what one has, and where the order turns."""

from collections.abc import Callable, Iterator, Sequence

from onestep_adapters.comparison.lines import NEAR, Line, ranked
from onestep_adapters.comparison.plan import BASELINE, EVALUATIONS, Plan
from onestep_adapters.evaluation.rows import counted, number

_HAVE: tuple[tuple[str, Callable[[Line], bool]], ...] = (
    ("data alone", lambda line: not line.declared["needs"]),
    ("a teacher, no pairs", lambda line: "teacher" in line.declared["needs"] and "pairs" not in line.declared["needs"]),
    ("a teacher that makes pairs", lambda line: "pairs" in line.declared["needs"]),
    ("no ODE", lambda line: line.declared["ode"] == "no"),
)


def verdict(plan: Plan, lines: Sequence[Line]) -> list[str]:
    """About ten lines: the nearest methods on each data set, what failed, and what was not compared."""
    found = []
    for data in plan.data:
        best = ranked(lines, data)
        if not best:
            found.append(f"**{data}**: no method finished.")
            continue
        first, near = best[0], [line for line in best if (line.over_floor(line.fewest or 1) or NEAR + 1) <= NEAR]
        found.append(
            f"**{data}**: in one evaluation {first.method} is nearest, {_ratios(first)}"
            + (f"; then {', '.join(line.method for line in best[1:3])}." if best[1:] else ".")
        )
        found.append(
            f"{data}: {len(near)} of {counted(len(best), 'method')} end within twice the floor; furthest: "
            f"{best[-1].method}, {_ratios(best[-1])}."
        )
    totals = [line.spent["total"] / plan.budgets[line.data] for line in lines if line.spent]
    if totals:
        found.append(
            f"Budgets: every training used {100 * min(totals):.2f} to {100 * max(totals):.2f} % of its budget of "
            "network evaluations, the teacher's training and its pairs included."
        )
    broken = [line for line in lines if line.failed]
    for line in broken[:3]:
        found.append(f"**Failed**: {line.method} on {line.data}: {line.failed[0]['reason']}")
    if len(broken) > 3:
        found.append(f"{len(broken) - 3} more failed; their rows have the reasons.")
    spiky = [line for line in lines if line.spikes]
    if spiky:
        told = ", ".join(f"{line.method} on {line.data} ({line.spikes})" for line in spiky[:4])
        found.append(f"Gradient spikes: {told}{f', and {len(spiky) - 4} more' if len(spiky) > 4 else ''}.")
    if plan.left_out:
        found.append(f"Not in this comparison: {', '.join(plan.left_out)}.")
    if plan.seeds == 1:
        found.append("One seed: differences between methods that are close say little.")
    return found


def recommendations(plan: Plan, lines: Sequence[Line]) -> list[str]:
    """By what one has: the nearest method of those that need no more, with its numbers, and when another one leads."""
    found = []
    for data in plan.data:
        best = ranked(lines, data)
        for have, fits in _HAVE:
            fitting = [line for line in best if fits(line)]
            if fitting:
                turn = next(_turns(fitting[0], fitting[1:]), "")
                found.append(f"**{data}, {have}**: {fitting[0].method} ({_ratios(fitting[0])}).{turn}")
        for count in EVALUATIONS[1:]:
            if several := ranked(lines, data, count):
                told = f"{several[0].method} ({number(several[0].over_floor(count))} times the floor)"
                found.append(f"**{data}, {count} evaluations per sample**: {told}.")
    return found


def _turns(first: Line, others: Sequence[Line]) -> Iterator[str]:
    """Where another method leads earlier in the training."""
    for other in others:
        for made, value in first.curve:
            theirs = [there for at, there in other.curve if at <= made]
            if theirs and theirs[-1] < value:
                yield f" With a budget below about {number(round(made))} evaluations, {other.method} is nearer."
                break


def _ratios(line: Line) -> str:
    at = line.fewest or 1
    told = f"{number(line.over_floor(at))} times the floor"
    ratio = line.over_baseline(at)
    return told if ratio is None else f"{told}, {number(ratio)} times {BASELINE}"
