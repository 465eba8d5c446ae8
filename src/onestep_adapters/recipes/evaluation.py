"""Measuring runs: the report on images, the scores on toys."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch

from onestep_adapters.metrics import (
    Classifier,
    Evaluation,
    References,
    Report,
    Row,
    ToyScore,
    ToyVerdict,
    environment,
    make_report,
    measure,
    passes,
    reference_rows,
    to_markdown,
    toy_reference,
    toy_score,
    train_classifier,
    write_report,
)
from onestep_adapters.recipes import FlowMatching, find_method
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.recipe import with_seed
from onestep_adapters.recipes.runs import Run
from onestep_core.errors import ConfigError


class Written(Protocol):
    """A report that can be written and shown."""

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Write ``report.md`` and ``report.json``; returns the Markdown."""
        ...


@attrs.frozen
class ImageReport:
    """The report of :mod:`onestep_adapters.metrics.report`."""

    report: Report

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Write ``report.md`` and ``report.json``; returns the Markdown."""
        write_report(folder, self.report)
        return to_markdown(self.report)


@attrs.frozen
class ToyReport:
    """Scores on a law in the plane: 0 is real, 1 is two moments right."""

    data: str
    scores: dict[str, ToyScore]
    verdicts: dict[str, ToyVerdict]
    yardstick: str | None
    costs: dict[str, str]
    notes: dict[str, str]
    draws: int

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Write ``report.md`` and ``report.json``; returns the Markdown."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        text = self._markdown()
        content = {
            "data": self.data,
            "yardstick": self.yardstick,
            "scores": {name: _plain(score) for name, score in self.scores.items()},
            "verdicts": {name: _plain(verdict) for name, verdict in self.verdicts.items()},
            "costs": self.costs,
            "notes": self.notes,
            "draws": self.draws,
            "environment": environment(),
        }
        for name, written in (("report.md", text), ("report.json", json.dumps(content, indent=1) + "\n")):
            draft = place / f".{name}.draft"
            draft.write_text(written, encoding="utf-8")
            draft.replace(place / name)
        return text

    @classmethod
    def from_json(cls, text: str) -> "ToyReport":
        """The report that :meth:`write` left as ``report.json``.

        Raises:
            ConfigError: if the text is no such report.
        """
        try:
            content = json.loads(text)
            return cls(
                data=content["data"],
                scores={name: ToyScore(**_tuples(score)) for name, score in content["scores"].items()},
                verdicts={name: ToyVerdict(**_tuples(verdict)) for name, verdict in content["verdicts"].items()},
                yardstick=content["yardstick"],
                costs=dict(content["costs"]),
                notes=dict(content["notes"]),
                draws=content["draws"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"expected a report of a law in the plane, of this version: {error!r}") from error

    def _markdown(self) -> str:
        lines = [
            f"# One-step generation on {self.data}",
            "",
            f"Score: squared energy distance of 10,000 samples to 10,000 fresh draws, {self.draws} times, scaled so "
            "that 0 is real data and 1 a Gaussian with the right mean and covariance; ± one standard error. Bars: "
            "score at most max(2 × yardstick, 0.03) + 2 se; where modes are known, total variation of their masses at "
            "most 0.05 and each one's standard deviation within 20 %.",
            "",
            "| method | score | mode masses, total variation | mode std, smallest and largest ratio | verdict | cost |",
            "|---|---|---|---|---|---|",
        ]
        for name, score in self.scores.items():
            modes = "–" if score.mass_error is None else f"{score.mass_error:.3f}"
            spread = "–" if not score.spreads else f"{min(score.spreads):.2f}, {max(score.spreads):.2f}"
            verdict = self.verdicts.get(name)
            said = "no yardstick given" if verdict is None else verdict.text
            lines.append(
                f"| {name} | {score.score:.4f} ± {score.se:.4f} | {modes} | {spread} | {said} | {self.costs[name]} |"
            )
        same: dict[str, list[str]] = {}
        for name, note in self.notes.items():
            if note:
                same.setdefault(note, []).append(name)
        told = [f"- **{'; '.join(names)}**: {note}" for note, names in same.items()]
        return "\n".join([*lines, "", *told]) + "\n" if told else "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    if attrs.has(type(value)):
        return attrs.asdict(value)  # type: ignore[arg-type]
    return value._asdict() if hasattr(value, "_asdict") else value


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    """What JSON gives as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def evaluate_runs(runs: Sequence[Run], yardstick: Run | None, *, split: str, repeats: int, seed: int) -> Written:
    """Measure runs of one data set.

    Args:
        runs: at least one.
        yardstick: the many-step run to match; by default a flow-matching run among ``runs``, if there is one.
        split: of images: ``"test"`` or ``"validation"``.
        repeats: independent draws, at least one; in the plane never fewer than two, for the standard error.
        seed: of samples and references.

    Raises:
        ConfigError: if the runs are of different data sets, or there is none; if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats = {repeats}: expected at least one draw of samples")
    if yardstick is None:
        yardstick = next((run for run in runs if isinstance(run.recipe, FlowMatching)), None)
    everything = list(runs) if yardstick is None or yardstick in runs else [yardstick, *runs]
    if not everything:
        raise ConfigError("no run to evaluate: expected at least one")
    data = {run.data for run in everything}
    if len(data) > 1:
        raise ConfigError(f"runs of different data sets, {', '.join(sorted(data))}: evaluate those of one at a time")
    if data == {DIGITS}:
        return _images(everything, yardstick, split=split, repeats=repeats, seed=seed)
    return _toys(everything, yardstick, repeats=max(2, repeats), seed=seed)


def label_of(run: Run, among: Sequence[Run]) -> str:
    """The method's name; where several runs share it, with the seed if they differ in that alone, or else numbered."""
    same = [other for other in among if other.method == run.method]
    if len(same) == 1:
        return run.method
    seeds = {other.recipe.training.seed for other in same}
    unseeded = [with_seed(other.recipe, 0) for other in same]
    if len(seeds) == len(same) and all(recipe == unseeded[0] for recipe in unseeded):
        return f"{run.method}, seed {run.recipe.training.seed}"
    return f"{run.method} {next(i for i, other in enumerate(same, 1) if other is run)}"


def digits_classifier(splits: Evaluation, validation: Evaluation) -> Classifier:
    """The classifier whose features a report measures in: trained on the training split, accuracy on validation."""
    from onestep_adapters.data.digits import load_digits

    labels = load_digits().validation.labels
    if splits.train_labels is None:
        raise ConfigError("a classifier needs labels: expected an Evaluation with train_labels")
    return train_classifier(
        splits.train, splits.train_labels, validation_images=validation.held_out, validation_labels=labels
    )


def measure_run(run: Run, label: str, *, splits: Evaluation, classifier: Classifier, repeats: int, seed: int) -> Row:
    """One row: samples drawn, timed and measured; a run whose samples are not finite gets no measurement."""
    count = repeats * len(splits.held_out)
    start = time.perf_counter()
    samples, labels = run.samples(count, generator=torch.Generator().manual_seed(seed))
    milliseconds = 1e6 * (time.perf_counter() - start) / count
    finite = bool(samples.isfinite().all())
    measured = (
        measure(
            samples,
            labels,
            splits=splits,
            classifier=classifier,
            generator=torch.Generator().manual_seed(seed),
            repeats=repeats,
        )
        if finite
        else None
    )
    return Row(
        label,
        measured,
        network_evaluations=run.recipe.evaluations,
        training_seconds=run.seconds,
        steps=run.state.step,
        network_calls=run.state.step * run.recipe.calls,
        milliseconds_per_1000=milliseconds,
        notes=find_method(run.method).notes if finite else "samples that are not finite",
    )


def _images(runs: list[Run], yardstick: Run | None, *, split: str, repeats: int, seed: int) -> ImageReport:
    from onestep_adapters.recipes.digits import digits_evaluation

    splits = digits_evaluation(split)
    classifier = digits_classifier(splits, digits_evaluation("validation"))
    generator = torch.Generator().manual_seed(seed)
    references: References = reference_rows(splits=splits, classifier=classifier, generator=generator, repeats=repeats)
    rows = [
        measure_run(run, label_of(run, runs), splits=splits, classifier=classifier, repeats=repeats, seed=seed)
        for run in runs
    ]
    report = make_report(
        rows,
        references=references,
        splits=splits,
        classifier=classifier,
        yardstick=None if yardstick is None else label_of(yardstick, runs),
        title="One-step generation of digits",
        data="scikit-learn's handwritten digits, 8 x 8",
    )
    return ImageReport(report)


def _toys(runs: list[Run], yardstick: Run | None, *, repeats: int, seed: int) -> ToyReport:
    law = runs[0].problem.law  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(seed)
    reference = toy_reference(law, generator=generator, draws=repeats)
    scores: dict[str, ToyScore] = {}
    for run in runs:

        def sampler(count: int, generator: torch.Generator, run: Run = run) -> torch.Tensor:
            return run.samples(count, generator=generator)[0]

        name = label_of(run, runs)
        scores[name] = toy_score(sampler, law, generator=torch.Generator().manual_seed(seed), reference=reference)
    names = {label_of(run, runs): run for run in runs}
    best = None if yardstick is None else scores[label_of(yardstick, runs)]
    return ToyReport(
        runs[0].data,
        scores,
        {} if best is None else {name: passes(score, best) for name, score in scores.items()},
        None if yardstick is None else label_of(yardstick, runs),
        {
            name: f"{run.recipe.evaluations} evaluations, {run.state.step} steps, {run.seconds:.0f} s"
            for name, run in names.items()
        },
        {name: find_method(run.method).notes for name, run in names.items()},
        repeats,
    )
