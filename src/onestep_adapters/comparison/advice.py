"""Verdict and recommendation: which method is nearest to the data, by what one has, and where the order turns."""

from collections.abc import Callable, Iterator, Sequence

from onestep_adapters.comparison.lines import NEAR, Line, ranked
from onestep_adapters.comparison.plan import BASELINE, EVALUATIONS, Plan
from onestep_adapters.evaluation.pages import Column, Page, Section, Table, Value
from onestep_adapters.evaluation.rows import counted, number

_HAVE: tuple[tuple[str, Callable[[Line], bool]], ...] = (
    ("data alone", lambda line: not line.declared["needs"]),
    ("a teacher, no pairs", lambda line: "teacher" in line.declared["needs"] and "pairs" not in line.declared["needs"]),
    ("a teacher that makes pairs", lambda line: "pairs" in line.declared["needs"]),
    ("an encoder", lambda line: "encoder" in line.declared["needs"]),
    ("a network without tangents (forward-mode derivatives)", lambda line: not line.declared["derivative"]),
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
        for have, fitting in _by_need(lines, data):
            if fitting:
                turn = next(_turns(fitting[0], fitting[1:]), "")
                found.append(f"**{data}, {have}**: {fitting[0].method} ({_ratios(fitting[0])}).{turn}")
        for count in EVALUATIONS[1:]:
            if several := ranked(lines, data, count):
                told = f"{several[0].method} ({number(several[0].over_floor(count))} times the floor)"
                found.append(f"**{data}, {count} evaluations per sample**: {told}.")
    return found


def advice_page(plan: Plan, lines: Sequence[Line]) -> Page:
    """Which method for what one has and for which budget, on each data set."""
    budgets = "; ".join(f"{data} {budget:,}" for data, budget in plan.budgets.items())
    return Page(
        title="Which method for my data and my budget?",
        opening=f"Written by `onestep compare` from its results: {counted(len(plan.methods), 'method')}, "
        f"{counted(plan.seeds, 'seed')} each, budget of a training in network evaluations: {budgets}. In brackets: the "
        "distance over the floor, the distance of real data to real data.",
        verdict=verdict(plan, lines),
        sections=[
            Section(
                data,
                tables=[_needs_table(lines, data), _budget_table(plan, lines, data), _evaluations_table(lines, data)],
            )
            for data in plan.data
            if ranked(lines, data)
        ],
    )


def _needs_table(lines: Sequence[Line], data: str) -> Table:
    columns = [
        Column("you have", "what the methods of the row use beside data, or what they do without"),
        Column("nearest", "the method whose samples in one evaluation are nearest to the data"),
        Column("× floor", "its distance over that of real data to real data"),
        Column("× baseline", f"its distance over that of {BASELINE} in its own 100 evaluations"),
        Column("next", "the second of those methods"),
        Column("when it turns", "the budgets below which another of those methods is nearer"),
    ]
    rows = []
    for have, fitting in _by_need(lines, data):
        if not fitting:
            rows.append([Value(have), Value("none compared"), *(Value("–") for _ in columns[2:])])
            continue
        first, at = fitting[0], fitting[0].fewest or 1
        told = [*(_brief(line, line.over_floor(line.fewest or 1)) for line in fitting[1:2]), "–"][0]
        turn = next(_turns(first, fitting[1:]), "–").strip()
        ratios = (first.over_floor(at), first.over_baseline(at))
        rows.append(
            [
                Value(have),
                Value(first.method),
                *(Value("–") if ratio is None else Value(number(ratio), ratio) for ratio in ratios),
                Value(told),
                Value(turn),
            ]
        )
    return Table(columns, rows, title=f"By what you have, on {data}")


def _budget_table(plan: Plan, lines: Sequence[Line], data: str) -> Table:
    """The nearest method after parts of the budget; a method counts with its last measurement until then."""
    sets = [(have, [line for line in fitting if line.curve]) for have, fitting in _by_need(lines, data)]
    sets = [(have, fitting) for have, fitting in sets if fitting]
    rows = []
    for part in (8, 4, 2, 1):
        budget = plan.budgets[data] // part
        row = [Value(f"{budget:,}", budget)]
        for _, fitting in sets:
            known = [(there[-1], line) for line in fitting if (there := [v for at, v in line.curve if at <= budget])]
            value, line = min(known, key=lambda pair: pair[0], default=(0.0, None))
            row.append(Value(_brief(line, value / line.floor if line.floor else None), value) if line else Value("–"))
        rows.append(row)
    columns = [Column("budget", "network evaluations in training, teacher and pairs included")]
    return Table([*columns, *(Column(have) for have, _ in sets)], rows, title=f"By budget, on {data}")


def _evaluations_table(lines: Sequence[Line], data: str) -> Table:
    columns = [Column("evaluations per sample"), Column("nearest, then the next two")]
    rows = []
    for count in EVALUATIONS:
        best = ranked(lines, data, count)[:3]
        told = ", ".join(_brief(line, line.over_floor(count)) for line in best)
        rows.append([Value(str(count), count), Value(told or "–")])
    return Table(columns, rows, title=f"By evaluations per sample, on {data}")


def _by_need(lines: Sequence[Line], data: str) -> Iterator[tuple[str, list[Line]]]:
    """The ranked methods for each thing that one may have."""
    best = ranked(lines, data)
    for have, fits in _HAVE:
        yield have, [line for line in best if fits(line)]


def _brief(line: Line, ratio: float | None) -> str:
    return line.method if ratio is None else f"{line.method} ({number(ratio)})"


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
