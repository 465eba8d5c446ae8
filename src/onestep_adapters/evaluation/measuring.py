"""Measuring runs: from trained runs to a report, and what a run cost."""

import os
from collections.abc import Mapping, Sequence

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import PRETRAINED, Encoder
from onestep_adapters.evaluation.judges import judge_of
from onestep_adapters.evaluation.report import Report, make_report
from onestep_adapters.evaluation.rows import Cost, Row, shown
from onestep_adapters.methods import ENCODERS, METHODS, FlowMatching
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.names import choose
from onestep_adapters.runs import Run, open_encoder
from onestep_adapters.runs.configs import dotted
from onestep_adapters.runs.places import pipeline_of
from onestep_adapters.tracking import Track, titled, untracked
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count


def evaluate_runs(
    runs: Sequence[Run],
    baseline: Run | None = None,
    *,
    split: str = "test",
    repeats: int = 5,
    seed: int = 0,
    features: str = "",
    track: Track = untracked,
) -> Report:
    """Measure runs of one data set.

    Args:
        runs: at least one.
        baseline: the many-step run to match; by default the first flow-matching run among ``runs``, if there is one.
        split: of images: ``"test"`` or ``"validation"``.
        repeats: independent draws of samples, at least one; one alone gives no standard error.
        seed: of samples and references.
        features: name of a pretrained encoder, or the folder of a run that trained one, in whose pooled features images
            are compared too; empty: in none.
        track: shows the progress of every phase.

    Raises:
        ConfigError: if the runs are of different data sets, or there is none; if ``repeats`` is below 1; if a run was
            trained with the encoder of ``features``.
    """
    require_count("repeats", repeats, least=1)
    choose(split, ("test", "validation"), "split")
    for run in runs:
        if not isinstance(run, Run):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a {type(run).__name__} as run: expected one of open_run(folder) or start_run(...)")
    everything = labelled(runs, baseline)
    if not everything:
        raise ConfigError("no run to evaluate: expected at least one")
    if baseline is None:
        baseline = next((run for run in runs if isinstance(run.options, FlowMatching)), None)
    names = {run.data.name for run in everything.values()}
    if len(names) > 1:
        raise ConfigError(f"runs of different data sets, {', '.join(sorted(names))}: evaluate those of one at a time")
    first = next(iter(everything.values()))
    data, device = first.data, first.device
    encoder = (features, _judging(features, everything, data)) if features else None
    judge = judge_of(data, split=split, repeats=repeats, seed=seed, device=device, encoder=encoder, track=track)
    rows = []
    for label, run in everything.items():
        found = judge.judge(run, titled(track, label))
        rows.append(
            Row(
                label,
                found.metrics,
                draws=found.draws,
                breakdown=found.breakdown,
                cost=cost_of(run, milliseconds_per_1000=found.milliseconds_per_1000),
                notes=notes_on(run) if found.metrics is not None else "samples that are not finite",
                options=dotted(run.options),
            )
        )
    return make_report(
        rows,
        kind=data.kind,
        data=data.name,
        description=judge.description,
        comparison=judge.comparison,
        references=judge.references,
        baseline=next((label for label, run in everything.items() if run is baseline), None),
    )


def _judging(name: str, runs: Mapping[str, Run], data: Dataset) -> Encoder:
    """The encoder of this name, which has to be another than those that the runs were trained with.

    Two names or folders with the same weights are one encoder.
    """
    found = open_encoder(name, data)
    assert found.encoder is not None
    for label, run in runs.items():
        used = run.options.encoder_from
        known = run.state.config.get("encoder_weights")
        if used and (os.path.realpath(used) == os.path.realpath(name) or known == found.weights):
            same = "" if used == name else f", whose weights are those of {used!r}"
            raise ConfigError(
                f"{label} was trained in the features of the encoder {name!r}{same}: it cannot judge its own training; "
                f"give --features another encoder, such as {' or '.join(PRETRAINED)} or a run of "
                f"{', '.join(ENCODERS)}"
            )
    return found.encoder


def labelled(runs: Sequence[Run], baseline: Run | None = None) -> dict[str, Run]:
    """The rows of a report by label: the runs, and before them the baseline if it is not among them."""
    among = baseline is None or any(run is baseline for run in runs)
    everything = list(runs) if among else [baseline, *runs]  # type: ignore[list-item]
    return {label_of(run, everything): run for run in everything}  # type: ignore[arg-type]


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

    The budget is ``updates * calls``, with ``calls`` the network evaluations of one update. That of a pretrained
    pipeline itself is not known.
    """
    options, updates = run.options, run.state.step
    pretrained = bool(pipeline_of(options))
    if pretrained and not updates:
        return Cost(options.evaluations, milliseconds_per_1000=milliseconds_per_1000, pretrained=True)
    teacher = _teacher_budget(run)
    return Cost(
        evaluations_per_sample=options.evaluations,
        updates=updates,
        training_evaluations=updates * options.calls,
        teacher_updates=teacher and teacher[0],
        teacher_evaluations=teacher and teacher[1],
        training_seconds=run.seconds,
        milliseconds_per_1000=milliseconds_per_1000,
        pretrained=pretrained,
    )


def notes_on(run: Run) -> str:
    """The notes of the preset, if the run has its options, whatever the seed; else the options that differ from it.

    Nothing for a method of a user's own.
    """
    preset = {**METHODS, **ENCODERS}.get(run.name)
    expected = None if preset is None else preset.options(run.data)
    if preset is None or type(expected) is not type(run.options):
        return ""
    mine, theirs = dotted(run.options), dotted(expected)
    names = [name for name in {**theirs, **mine} if name not in _FREE and mine.get(name) != theirs.get(name)]
    if not names:
        return preset.notes_for(run.data)
    told = [f"{name} {shown(mine.get(name))} (preset {shown(theirs.get(name))})" for name in names[:_TOLD]]
    more = f", and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return f"{OTHER_OPTIONS} {run.name}: {', '.join(told)}{more}."


OTHER_OPTIONS = "Other options than the preset"
"""How the note begins on a run whose options are not those of its preset."""

_FREE = ("training.seed", "training.checkpoint_every")
"""Options that a run may change and still be the preset."""

_TOLD = 10
"""Options that a note names, at most; the report has all of them elsewhere."""


def _teacher_budget(run: Run) -> tuple[int, int] | None:
    """Updates and evaluations; those of the options if the teacher itself is not there, as for a finished run.

    The exact score of a known distribution costs nothing; what a pretrained pipeline cost is not known.
    """
    if run.teacher_run is not None:
        return run.teacher_run.state.step, run.teacher_run.state.step * run.teacher_run.options.calls
    options = run.options.teacher
    if options is None or run.options.teacher_from == EXACT or options.network.pretrained:
        return None
    return (options.training.steps, options.training.steps * options.calls)
