"""The report on encoders: a table of probes, budgets, meanings; as Markdown for readers and JSON for programs."""

import json
import os
import time
from collections.abc import Mapping, Sequence

import attrs

from onestep_adapters.evaluation.encoders.measuring import METRICS, control, encoder_rows, parameters, probed
from onestep_adapters.evaluation.markdown import options_of
from onestep_adapters.evaluation.measuring import OTHER_OPTIONS, label_of
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.rows import Row, number
from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.methods import ENCODERS
from onestep_adapters.methods.pretraining.base import Pretraining
from onestep_adapters.metrics import Estimate
from onestep_adapters.runs import Run
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError


@attrs.frozen
class EncoderReport:
    """Probes of encoders of one data set.

    Attributes:
        data: name of the data set.
        description: of data and splits, a sentence.
        split: that the numbers are of.
        rows: pixels, random networks, trained encoders.
        sizes: number of parameters of each run's encoder, by method's name in ``rows``.
        environment: versions and hardware.
        date: ``YYYY-MM-DD``.
    """

    data: str
    description: str
    split: str
    rows: tuple[Row, ...]
    sizes: Mapping[str, int]
    environment: Mapping[str, str | int]
    date: str


def evaluate_encoders(
    runs: Sequence[Run], *, split: str = "test", images: int = 5000, seed: int = 0, track: Track = untracked
) -> EncoderReport:
    """Probe the encoders of runs on one data set, beside pixels and random networks.

    Args:
        runs: of methods that train encoders, at least one.
        split: ``"test"`` for a report, ``"validation"`` for choices.
        images: at most so many training images for the probes, and two fifths of that of the other splits.
        seed: of the draws of few images.
        track: shows the progress of every row.

    Raises:
        ConfigError: for no run, runs of different data, or data without classes.
    """
    if len({run.data.name for run in runs}) != 1:
        names = sorted({run.data.name for run in runs})
        raise ConfigError(f"runs of the data sets {names}: expected at least one run, all of one data set")
    for run in runs:
        if not isinstance(run.options, Pretraining):
            raise ConfigError(f"a run of {run.name} trains no encoder: expected runs of {', '.join(ENCODERS)}")
    data = runs[0].data
    on = probed(data, split=split, images=images, device=runs[0].device)
    rows = encoder_rows(runs, on, seed=seed, track=track)
    sizes: dict[str, int] = {}
    for run in runs:
        assert isinstance(run.options, Pretraining)
        label = label_of(run, runs)
        sizes |= dict.fromkeys((label, control(label)), parameters(run.options.inner(run.state.ema)))
    counts = f"{len(on.train.data):,} training and {len(on.tested.data):,} {split} images"
    return EncoderReport(
        data.name,
        f"{data.title}: {counts} for the probes; encoders are trained without labels on the whole training split "
        "(fine-tuning: with labels)",
        split,
        tuple(rows),
        sizes,
        environment(),
        time.strftime("%Y-%m-%d"),
    )


def encoder_summary(report: EncoderReport) -> list[str]:
    """The report in a few lines: of every encoder the last layer that was measured, beside a random network.

    Example:
        >>> row = Row("pixels", {"linear": Estimate(0.9, 0.01)})
        >>> mine, random = (Row(name, {"linear": Estimate(0.95, 0.01)}, "4") for name in ("moco", control("moco")))
        >>> report = EncoderReport("digits", "", "test", (row, random, mine), {}, {}, "")
        >>> print("\\n".join(encoder_summary(report)))
        moco on digits, test split, layer 4: above a random network of its shape in 0 of 1 probes
          linear probe  0.950 ± 0.010; random 0.950, pixels 0.900
    """
    lines = []
    pixels = next((row.metrics or {} for row in report.rows if row.method == "pixels"), {})
    for name in dict.fromkeys(row.method for row in report.rows):
        mine = [row for row in report.rows if row.method == name and row.metrics]
        controls = {row.variant: row.metrics or {} for row in report.rows if row.method == control(name)}
        if not mine or not controls:
            continue
        last = mine[-1]
        found, beside = last.metrics or {}, {"random": controls.get(last.variant, {}), "pixels": pixels}
        better = sum(value.mean > beside["random"][probe].mean for probe, value in found.items())
        lines.append(
            f"{name} on {report.data}, {report.split} split, layer {last.variant}: above a random network of its shape "
            f"in {better} of {len(found)} probes"
        )
        widest = max(len(METRICS[probe].heading) for probe in found)
        for probe, value in found.items():
            rest = ", ".join(f"{label} {row[probe].mean:.3f}" for label, row in beside.items() if probe in row)
            lines.append(f"  {METRICS[probe].heading:<{widest}}  {_accuracy(value)}; {rest}")
        if last.notes.startswith(OTHER_OPTIONS):
            lines.append(f"  {last.notes}")
    return lines


def encoder_markdown(report: EncoderReport, pictures: Mapping[str, str] | None = None) -> str:
    """The report for readers; ``pictures`` are files, relative to that of the report, by what they show."""
    head = ["features", "layer", "updates", "evaluations in training", "training seconds", "parameters"]
    head += [metric.heading for metric in METRICS.values()]
    lines = [_line(row, report.sizes) for row in report.rows]
    meanings = "\n".join(f"- **{metric.heading}**: {metric.meaning}." for metric in METRICS.values())
    notes = {row.method: row.notes for row in report.rows if row.notes}
    parts = [
        f"# Encoders on {report.data}",
        f"{report.date}. {report.description}. Accuracies on the **{report.split}** split, ± the standard error of a "
        "share of so many images (not that of another training).",
        "\n".join(
            "| " + " | ".join(line) + " |" for line in [head, ["---", "---", *["---:"] * (len(head) - 2)], *lines]
        ),
        *(f"![{caption}]({file})\n\n*{caption}*" for caption, file in (pictures or {}).items()),
        "*Random*: the initial weights of the run, not trained. Its flat features beat pixels in a linear probe, so a "
        "trained encoder is compared with it. One evaluation is one call of a network on one batch. Random weights and "
        "pixels have no training.",
        "## What the columns mean",
        meanings,
        "## Which options were chosen, and why" if notes else "",
        "\n".join(f"- **{name}**: {note}" for name, note in notes.items()),
        *options_of({row.method: attrs.evolve(row, variant="") for row in report.rows}.values()),
        "## Where it ran",
        ", ".join(f"{name} {value}" for name, value in report.environment.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_encoder_report(
    folder: str | os.PathLike[str], report: EncoderReport, pictures: Mapping[str, str] | None = None
) -> str:
    """Write ``report.json`` and ``report.md`` into ``folder``; returns the Markdown. ``pictures`` as above."""
    place, text = make_folder(folder), encoder_markdown(report, pictures)
    content = json.dumps(attrs.asdict(report), allow_nan=False, indent=1, ensure_ascii=False) + "\n"
    write_whole(place / "report.json", content)
    write_whole(place / "report.md", text)
    return text


def _line(row: Row, sizes: Mapping[str, int]) -> list[str]:
    cost = row.cost
    budget = (cost and cost.updates, cost and cost.training_evaluations, cost and cost.training_seconds)
    metrics = row.metrics or {}
    return [
        row.method.replace("|", "\\|"),
        row.variant or "–",
        *map(number, budget),
        number(sizes.get(row.method)),
        *(_accuracy(metrics.get(name)) for name in METRICS),
    ]


def _accuracy(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.mean:.3f} ± {estimate.se:.3f}"
