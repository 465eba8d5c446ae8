"""An ablation of drifting on Fashion-MNIST beside published numbers: what the scripts ``ablation_*.py`` share.

Every variant and seed is one training of a generator with the same updates and batches. What is finished is read from
the folder, so a script can be interrupted and called again.
"""

import argparse
import itertools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from judged import COUNT, DATA, METRICS, Judge, Numbers, columns, draw_rows, markdown, references, this_command, value

from onestep_adapters.cli import main as onestep
from onestep_adapters.data import Dataset, open_dataset
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.rows import number
from onestep_adapters.files import write_whole
from onestep_adapters.runs import open_run

SHOWN = ("FD", "KD", "density", "coverage")
"""Columns of the table."""

Cell = dict[str, Any]


class Variant(NamedTuple):
    """A row: its name, its folder's name, the options that it alone has, and the published FID."""

    name: str
    place: str
    options: tuple[str, ...]
    published: float | None


class Encoder(NamedTuple):
    """The folder of an encoder's run, the command that trained it, and its cost."""

    folder: Path
    command: str
    updates: int
    seconds: float


class Ablation(NamedTuple):
    """What is varied, under the heading ``varied``, and the options of every generator beside those of its variant."""

    varied: str
    variants: tuple[Variant, ...]
    generator: tuple[str, ...]


def command(*words: str) -> str:
    print("onestep", *words, flush=True)
    if onestep([*words, "--resume"]):
        raise SystemExit(1)
    return shlex.join(("onestep", *words))


def trained_encoder(folder: Path, method: str, *more: str) -> Encoder:
    told = command("train", method, "--data", DATA, "--folder", str(folder), *more)
    run = open_run(folder)
    return Encoder(folder, told, run.state.step, run.seconds)


def cell(ablation: Ablation, variant: Variant, seed: int, steps: int, folder: Path, judge: Judge) -> Cell:
    """Train and judge one generator, or read what was found."""
    place = folder / f"{variant.place}-seed{seed}"
    words = ["train", "drifting", "--data", DATA, "--folder", str(place), *ablation.generator]
    words += [*variant.options, "--steps", str(steps), "--seed", str(seed)]
    file, told = place / "judged.json", shlex.join(("onestep", *words))
    if file.is_file():
        found: Cell = json.loads(file.read_text())
        if found["command"] != told:
            raise SystemExit(f"{file} is of another command:\n  {found['command']}\nexpected\n  {told}\nmove it away")
        return found
    command(*words)
    run = open_run(place)
    samples, _ = run.samples(COUNT, generator=torch.Generator().manual_seed(seed))
    numbers = {"variant": variant.name, "seed": seed, "updates": steps, "seconds": run.seconds}
    found = {**numbers, **judge(samples), "command": told}
    write_whole(file, json.dumps(found, indent=1) + "\n")
    return found


def table(ablation: Ablation, cells: Sequence[Cell], beside: Mapping[str, Sequence[Numbers]]) -> str:
    lines = []
    for variant in ablation.variants:
        same = [found for found in cells if found["variant"] == variant.name]
        published = "–" if variant.published is None else str(variant.published)
        lines.append([variant.name, *columns(same, SHOWN), published])
    lines += [[title, *columns(draws, SHOWN), "–"] for title, draws in beside.items()]
    return markdown([ablation.varied, *SHOWN, "published FID"], lines)


def sentence(ablation: Ablation, cells: Sequence[Cell], beside: Mapping[str, Sequence[Numbers]]) -> str:
    """Whether the published ordering holds, from the numbers; variants without a published number are left out."""
    fids = {variant.name: variant.published for variant in ablation.variants if variant.published is not None}
    by_seed = {
        seed: {c["variant"]: c["FD"] for c in cells if c["seed"] == seed and c["variant"] in fids}
        for seed in sorted({c["seed"] for c in cells})
    }
    means = {name: mean(found[name] for found in by_seed.values()) for name in fids}
    best, published, count = min(means, key=means.__getitem__), min(fids, key=fids.__getitem__), len(by_seed)
    wins = sum(min(found, key=found.__getitem__) == published for found in by_seed.values())
    pairs = [(a, b) for a, b in itertools.permutations(fids, 2) if fids[a] < fids[b]]
    kept = sum(means[first] < means[second] for first, second in pairs)
    first = f"{published} has the smallest mean FD ({number(means[published])})"
    if best != published:
        first = f"{best} has the smallest mean FD ({number(means[best])}), not {published} ({number(means[published])})"
    order = "holds" if kept == len(pairs) else "does not hold as a whole"
    worse = [
        f"{title} ({number(limit)})"
        for title, draws in beside.items()
        if min(means.values()) > (limit := mean(draw["FD"] for draw in draws))
    ]
    told = f" Every row is worse than {' and '.join(worse)}." if worse else ""
    return (
        f"{first}; {published} is the best in {wins} of {count} seeds. The published ordering of the {len(fids)} rows "
        f"{order}: {kept} of the {len(pairs)} pairs of rows have it in the mean FD. From the best to the worst: "
        f"{', '.join(sorted(means, key=means.__getitem__))}.{told}"
    )


def draw_picture(
    ablation: Ablation, cells: Sequence[Cell], folder: Path, data: Dataset, budget: str, file: str, each: int = 2
) -> None:
    labels = torch.arange(data.classes or 1).repeat_interleave(each)
    rows = {"test images": data.groups(each, torch.Generator().manual_seed(0)).clamp(-1, 1)}
    for variant in ablation.variants:
        same = [c["FD"] for c in cells if c["variant"] == variant.name]
        run = open_run(folder / f"{variant.place}-seed{cells[0]['seed']}")
        images, _ = run.samples(len(labels), generator=torch.Generator().manual_seed(1), labels=labels)
        rows[f"{variant.name}\nFD {value(same)}"] = images
    draw_rows(rows, budget, file)


def run_ablation(
    about: str,
    name: str,
    made: Callable[[Path, int | None], tuple[Ablation, dict[str, Encoder]]],
    *,
    steps: int,
) -> None:
    """The command line of an ablation: train the encoders, then every cell; print the table and the sentence.

    Args:
        about: one line of help.
        name: of the files, by default.
        made: from the folder and the updates of an encoder (``None``: the preset's) to the ablation and its encoders.
        steps: updates of every generator, by default.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--folder", type=Path, default=Path("runs", name), help="folder of all runs")
    parser.add_argument("--picture", default=f"{name}.png", help="file of the picture")
    parser.add_argument("--json", default=f"{name}.json", help="file of all numbers")
    parser.add_argument("--steps", type=int, default=steps, help="updates of every generator; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant; default: %(default)s")
    parser.add_argument("--encoder-steps", type=int, help="updates of an encoder; by default those of the preset")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    data = open_dataset(DATA)
    ablation, encoders = made(folder, chosen.encoder_steps)
    judge = Judge(data)
    cells = [
        cell(ablation, variant, seed, chosen.steps, folder, judge)
        for seed in range(chosen.seeds)
        for variant in ablation.variants
    ]
    beside = references(data, judge, chosen.seeds)
    batch = open_run(folder / f"{ablation.variants[0].place}-seed0").options.training.batch
    budget = (
        f"{', '.join(f'{title} ({found.updates:,} updates)' for title, found in encoders.items())}; drifting: "
        f"{chosen.steps:,} updates of a batch of {batch}, "
        f"{mean(c['seconds'] for c in cells):.0f} s with {torch.get_num_threads()} thread(s); one evaluation per sample"
    )
    said = sentence(ablation, cells, beside)
    content = {
        "command": this_command(),
        "encoders": {title: {**found._asdict(), "folder": str(found.folder)} for title, found in encoders.items()},
        "judge": judge.described,
        "metrics": list(METRICS.values()),
        "environment": environment(),
        "sentence": said,
        "published": {variant.name: variant.published for variant in ablation.variants},
        "references": beside,
        "cells": cells,
    }
    write_whole(chosen.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draw_picture(ablation, cells, folder, data, budget, chosen.picture)
    print(f"\n{budget}.\n\n{table(ablation, cells, beside)}\n\n{said}")
