"""Measuring runs: from trained runs to a report, and what a run cost."""

from collections.abc import Sequence

from onestep_adapters.evaluation.judges import judge_of
from onestep_adapters.evaluation.report import Report, make_report
from onestep_adapters.evaluation.rows import Cost, Row
from onestep_adapters.methods import METHODS, FlowMatching
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.names import choose
from onestep_adapters.runs import Run
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count


def evaluate_runs(
    runs: Sequence[Run], baseline: Run | None = None, *, split: str = "test", repeats: int = 5, seed: int = 0
) -> Report:
    """Measure runs of one data set.

    Args:
        runs: at least one.
        baseline: the many-step run to match; by default the first flow-matching run among ``runs``, if there is one.
        split: of images: ``"test"`` or ``"validation"``.
        repeats: independent draws of samples, at least one; for points at least two are made, for the standard error.
        seed: of samples and references.

    Raises:
        ConfigError: if the runs are of different data sets, or there is none; if ``repeats`` is below 1.
    """
    require_count("repeats", repeats, least=1)
    choose(split, ("test", "validation"), "split")
    for run in runs:
        if not isinstance(run, Run):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a {type(run).__name__} as run: expected one of open_run(folder) or start_run(...)")
    if baseline is None:
        baseline = next((run for run in runs if isinstance(run.options, FlowMatching)), None)
    among = baseline is None or any(run is baseline for run in runs)
    everything = list(runs) if among else [baseline, *runs]  # type: ignore[list-item]
    if not everything:
        raise ConfigError("no run to evaluate: expected at least one")
    names = {run.data.name for run in everything}
    if len(names) > 1:
        raise ConfigError(f"runs of different data sets, {', '.join(sorted(names))}: evaluate those of one at a time")
    data, device = everything[0].data, everything[0].state.generator.device
    judge = judge_of(data, split=split, repeats=repeats, seed=seed, device=device)
    rows = []
    for run in everything:
        found = judge.judge(run)
        rows.append(
            Row(
                label_of(run, everything),
                found.metrics,
                draws=found.draws,
                breakdown=found.breakdown,
                cost=cost_of(run, milliseconds_per_1000=found.milliseconds_per_1000),
                notes=_notes(run) if found.metrics is not None else "samples that are not finite",
            )
        )
    return make_report(
        rows,
        kind=data.kind,
        data=data.name,
        description=judge.description,
        comparison=judge.comparison,
        references=judge.references,
        baseline=None if baseline is None else label_of(baseline, everything),
    )


def label_of(run: Run, among: Sequence[Run]) -> str:
    """The method's name; where several runs share it, with the seed if they differ in that alone, or else numbered."""
    same = [other for other in among if other.name == run.name]
    if len(same) == 1:
        return run.name
    seeds = {other.options.training.seed for other in same}
    unseeded = [other.options.with_seed(0) for other in same]
    if len(seeds) == len(same) and all(options == unseeded[0] for options in unseeded):
        return f"{run.name}, seed {run.options.training.seed}"
    return f"{run.name} {next(i for i, other in enumerate(same, 1) if other is run)}"


def cost_of(run: Run, *, milliseconds_per_1000: float | None = None) -> Cost:
    """The training budget of a run and of its teacher, and its evaluations per sample.

    The budget is ``updates * calls``, with ``calls`` the network evaluations of one update.
    """
    options, updates = run.options, run.state.step
    teacher = _teacher_budget(run)
    return Cost(
        evaluations_per_sample=options.evaluations,
        updates=updates,
        training_evaluations=updates * options.calls,
        teacher_updates=teacher and teacher[0],
        teacher_evaluations=teacher and teacher[1],
        training_seconds=run.seconds,
        milliseconds_per_1000=milliseconds_per_1000,
    )


def _notes(run: Run) -> str:
    """The reasons for the preset; nothing for a method of a user's own."""
    return METHODS[run.name].notes if run.name in METHODS else ""


def _teacher_budget(run: Run) -> tuple[int, int] | None:
    """Updates and evaluations; those of the options if the teacher itself is not there, as for a finished run.

    The exact score of a known distribution costs nothing.
    """
    if run.teacher_run is not None:
        return run.teacher_run.state.step, run.teacher_run.state.step * run.teacher_run.options.calls
    options = None if run.options.teacher_from == EXACT else run.options.teacher
    return None if options is None else (options.training.steps, options.training.steps * options.calls)
