r"""One-step methods beside flow matching on Fashion-MNIST, at equal processor time, judged by a foreign network.

    python examples/one_step_fashion_mnist.py --folder runs/evidence --encoder runs/antisymmetry/encoder \
        --picture one-step-fashion-mnist.png --json one-step-fashion-mnist.json

Every method gets about --minutes of processor time on one thread. A method that learns from a teacher spends half of
them on the teacher, a flow-matching run of its own, and the pairs that a teacher makes are part of its time too. The
numbers of updates are fixed (so that a seed gives the same samples) and proportional to --minutes; the time that they
took is measured and is in the table. Only the SimCLR encoder of drifting is extra: it is trained once, for all seeds,
without labels, and its time is in the JSON file.

The judge is EfficientNet-Lite0, which trained nothing here, see judged.py. The baseline is sampled by 50 evaluations
(25 Heun steps), all other methods by one. The script can be interrupted and called again, also with other --methods or
more --seeds: what is finished is read from the folder. It counts processor time and not wall-clock time, because the
wall-clock time of a shared machine depends on other programs.
"""

import argparse
import itertools
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from judged import COUNT, DATA, GAUSSIANS, METRICS, Judge, columns, draw_rows, markdown, references, this_command
from torch import Tensor

from onestep_adapters.cli.parsing import options
from onestep_adapters.data import Dataset, open_dataset
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.rows import number
from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.methods import find_preset
from onestep_adapters.runs import Run, open_run, resume_or_start

BASELINE, DRIFTING = "flow-matching", "drifting"
TAUGHT = ("rectified-meanflow", "dmd2")
"""Methods that learn from a teacher, which takes half of their time."""

PER_MINUTE = {BASELINE: 80, "meanflow": 60, "rectified-meanflow": 60, "dmd2": 14, DRIFTING: 168}
"""Updates in about a minute of processor time on one thread of the machine in the JSON file."""

PAIRS_PER_MINUTE = 1000
"""Pairs of a teacher in about a minute of processor time, at eight Heun steps each."""

OPTIONS: dict[str, dict[str, str]] = {
    BASELINE: {"--learning-rate": "3e-3", "--sampling-steps": "25"},
    "meanflow": {"--learning-rate": "3e-3"},
    "rectified-meanflow": {"--solver-steps": "8"},
    "dmd2": {},
    DRIFTING: {
        "--layers": "stages.2",
        "--pixel-weight": "2",
        "--temperatures": "0.05 0.2",
        "--positives": "32",
        "--batch": "100",
        "--full-depth": "0",
        "--learning-rate": "4e-3",
    },
}
"""Options beside those of the presets, chosen on the validation split by trainings of 40 to 80 seconds. The larger
learning rates suit short trainings: after 100 updates the validation loss of the baseline is lower than with 1e-3."""

Cell = dict[str, Any]


def words_of(method: str, minutes: float, seed: int, *, encoder: Path, teacher: Path) -> list[str]:
    """The options of one training, as on the command line."""
    share = minutes / 2 if method in TAUGHT else minutes
    chosen = dict(OPTIONS[method])
    if method == "rectified-meanflow":
        # A third of what is left makes pairs.
        chosen |= {"--pairs": str(round(share / 3 * PAIRS_PER_MINUTE))}
        share *= 2 / 3
    if method in TAUGHT:
        chosen |= {"--teacher-from": str(teacher)}
    if method == DRIFTING:
        chosen |= {"--encoder": str(encoder), "--bounded": "", "--channels-last": ""}
    steps = max(1, round(share * PER_MINUTE[method]))
    chosen |= {"--steps": str(steps), "--warmup": str(min(20, steps - 1)), "--checkpoint-every": "50"}
    words = itertools.chain(*((name, *values.split()) for name, values in chosen.items()))
    return [*words, "--seed", str(seed)]


def trained(method: str, words: Sequence[str], place: Path, data: Dataset) -> tuple[Run, float]:
    """The run in a folder, trained to its end, and the processor seconds of its preparation and all its updates.

    They are noted beside the folder, update by update, so that what a killed process had done after its last checkpoint
    is not counted twice.
    """
    preset = find_preset(method).options(data)
    chosen = options(type(preset), words, prog=f"onestep train {method}", description="", default=preset)
    run = resume_or_start(place, method, data, chosen, resume=True)
    file = place.with_name(f"{place.name}.processor")
    lines = file.read_text().splitlines() if file.is_file() else []
    spent = [(step, seconds) for step, seconds in map(json.loads, lines) if step <= run.state.step]
    if not run.finished:
        make_folder(file.parent)
        write_whole(file, "".join(f"{json.dumps(entry)}\n" for entry in spent))
        with file.open("a") as stream:
            before = time.process_time()
            for step in itertools.chain([0], (record.step for record in run.updates(place))):
                now = time.process_time()
                spent.append((step, now - before))
                print(json.dumps(spent[-1]), file=stream, flush=True)
                before = now
    return run, sum(seconds for _, seconds in spent)


def cell(
    method: str, minutes: float, seed: int, folder: Path, encoder: Path, data: Dataset, judge: Judge, *, only: bool
) -> Cell | None:
    """Train and judge one method from one seed, or read what was found; with ``only`` nothing is trained."""
    place, teacher = folder / f"{method}-seed{seed}", folder / f"teacher-seed{seed}"
    words, commands = words_of(method, minutes, seed, encoder=encoder, teacher=teacher), []
    teaching = words_of(BASELINE, minutes / 2, seed, encoder=encoder, teacher=teacher)
    trainings = [(BASELINE, teaching, teacher)] if method in TAUGHT else []
    trainings.append((method, words, place))
    for name, given, there in trainings:
        commands.append(shlex.join(("onestep", "train", name, "--data", DATA, "--folder", str(there), *given)))
    file = place.with_name(f"{place.name}.json")
    if file.is_file():
        found: Cell = json.loads(file.read_text())
        if found["commands"] != commands:
            raise SystemExit(
                f"{file} is of other commands:\n  {found['commands']}\nexpected\n  {commands}\nmove it away"
            )
        return found
    if only:
        return None
    seconds = 0.0
    for told, (name, given, there) in zip(commands, trainings, strict=True):
        print(told, flush=True)
        run, taken = trained(name, given, there, data)
        seconds += taken
    before = time.process_time()
    samples, _ = run.samples(COUNT, generator=torch.Generator().manual_seed(seed))
    sampling = time.process_time() - before
    found = {
        "method": method,
        "seed": seed,
        "updates": run.state.step,
        "seconds": seconds,
        "evaluations": run.options.evaluations,
        "sampling_seconds": sampling,
        **judge(samples),
        "commands": commands,
    }
    write_whole(file, json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("method", "seed", "seconds", *METRICS.values())}), flush=True)
    return found


def table(cells: Sequence[Cell], beside: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    head = ["method", "seeds", "evaluations", "updates", "processor seconds", *METRICS.values()]
    lines = []
    for method in PER_MINUTE:
        same = [found for found in cells if found["method"] == method]
        if same:
            first = same[0]
            budget = [f"{first['updates']:,}", f"{mean(c['seconds'] for c in same):.0f}"]
            cost = [str(len(same)), str(first["evaluations"]), *budget]
            lines.append([method, *cost, *columns(same, list(METRICS.values()))])
    lines += [[name, "–", "–", "–", "–", *columns(draws, list(METRICS.values()))] for name, draws in beside.items()]
    return markdown(head, lines)


def claims(cells: Sequence[Cell], beside: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Whether each claim holds, from the means over the seeds."""
    means = {
        method: {name: mean(c[name] for c in cells if c["method"] == method) for name in METRICS.values()}
        for method in {c["method"] for c in cells}
    }
    limit = {name: mean(draw[name] for draw in beside[GAUSSIANS]) for name in METRICS.values()}
    base, lines = means.get(BASELINE), list[str]()

    def claim(said: str, holds: bool) -> None:
        lines.append(f"{'holds' if holds else 'does not hold'}: {said}")

    def compared(method: str, factor: float) -> None:
        if base is not None and method in means:
            own, bound = means[method]["FD"], factor * base["FD"]
            claim(
                f"FD of {method}, {number(own)}, is at most {number(bound)}, {factor:g} times the baseline's",
                own <= bound,
            )

    compared(DRIFTING, 1.0)
    if base is not None and DRIFTING in means:
        own, bound = means[DRIFTING]["coverage"], 0.9 * base["coverage"]
        claim(
            f"coverage of drifting, {number(own)}, is at least {number(bound)}, 0.9 times the baseline's", own >= bound
        )
    compared("rectified-meanflow", 1.5)
    for method in (DRIFTING, "rectified-meanflow", BASELINE):
        if method in means:
            own = means[method]
            better = [own[name] < limit[name] for name in ("FD", "KD")] + [own["coverage"] > limit["coverage"]]
            numbers = ", ".join(
                f"{name} {number(own[name])} ({number(limit[name])})" for name in ("FD", "KD", "coverage")
            )
            claim(f"{method} is better than {GAUSSIANS} in FD, KD and coverage: {numbers}", all(better))
    return lines


def pictured(cells: Sequence[Cell], folder: Path, data: Dataset, each: int = 2) -> dict[str, Tensor]:
    labels = torch.arange(data.classes or 1).repeat_interleave(each)
    rows = {"test images": data.groups(each, torch.Generator().manual_seed(0)).clamp(-1, 1)}
    for method in PER_MINUTE:
        same = [found for found in cells if found["method"] == method]
        if same:
            run = open_run(folder / f"{method}-seed{same[0]['seed']}")
            images, _ = run.samples(len(labels), generator=torch.Generator().manual_seed(1), labels=labels)
            seconds, evaluations = same[0]["seconds"], same[0]["evaluations"]
            calls = "1 evaluation" if evaluations == 1 else f"{evaluations} evaluations"
            rows[f"{method}\n{seconds:.0f} s, {calls}\nFD {number(same[0]['FD'])}"] = images
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="folder of all runs")
    parser.add_argument("--encoder", type=Path, help="folder of a SimCLR run; by default one is trained in the folder")
    parser.add_argument("--methods", nargs="+", default=list(PER_MINUTE), choices=list(PER_MINUTE), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every method")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="processor minutes of a method; default: %(default)s"
    )
    parser.add_argument("--only-finished", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--picture", default="one-step-fashion-mnist.png", help="file of the picture")
    parser.add_argument("--json", default="one-step-fashion-mnist.json", help="file of all numbers")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(DATA)
    encoder = chosen.encoder or chosen.folder / "encoder"
    run, seconds = trained("simclr", [], encoder, data)
    judge = Judge(data)
    each = (chosen.folder, encoder, data, judge)
    found = [
        cell(method, chosen.minutes, seed, *each, only=chosen.only_finished)
        for seed in chosen.seeds
        for method in chosen.methods
    ]
    cells = [one for one in found if one is not None]
    beside = references(data, judge, len(chosen.seeds))
    said = claims(cells, beside)
    content = {
        "command": this_command(),
        "encoder": {"updates": run.state.step, "wall_seconds": run.seconds, "processor_seconds": seconds or None},
        "judge": judge.described,
        "minutes": chosen.minutes,
        "environment": environment(),
        "claims": said,
        "references": beside,
        "cells": cells,
    }
    write_whole(chosen.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    title = f"Seed {chosen.seeds[0]}, two samples of each class; processor time of the training on one thread"
    draw_rows(pictured(cells, chosen.folder, data), title, chosen.picture)
    print(f"\n{table(cells, beside)}\n\n" + "\n".join(said))


if __name__ == "__main__":
    main()
