r"""MeanFlow from data alone on the digits: what each known lever does, at the baseline's budget.

    python examples/levers_meanflow.py --folder runs/levers --markdown levers.md --json levers.json

The budget is that of flow matching's preset in network evaluations of training: a forward pass of one sample counts 1,
a backward pass 2, a tangent 1. Each row is the preset of MeanFlow with one change, trained from the same seeds and
judged in one evaluation per sample by the thresholds of ``onestep evaluate``, relative to flow matching in 100
evaluations. Levers are compared on the validation split; with --split test the same runs are judged on the test split.
The script can be interrupted: what is finished is read from the folder.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import attrs
import torch
from judged import markdown, this_command

from onestep_adapters.comparison import spent, within_budget
from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation import evaluate_runs
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.rows import number
from onestep_adapters.files import write_whole
from onestep_adapters.methods import FlowMatching, MeanFlow, Method, find_preset
from onestep_adapters.runs import resume_or_start

LEVERS: dict[str, dict[str, Any]] = {
    "the preset": {},
    "a quarter of the pairs has s < t": {"interval_share": 0.25},
    "all pairs have s < t": {"interval_share": 1.0},
    "log-normal times, mean -0.4": {"uniform_share": 0.0, "time_mean": -0.4},
    "independent pairs of noise and data": {"coupling": "independent"},
    "no adaptive weight": {"adaptive_power": 0.0},
    "adaptive weight of the paper, power 1": {"adaptive_power": 1.0},
    "a quarter of the jumps from noise to data": {"full_jump_share": 0.25},
    "half of the jumps end at the data": {"data_end_share": 0.5},
    "guidance, omega 2, 10 % without label": {"omega": 2.0, "label_dropout": 0.1},
    "EMA over 50 updates": {"training.ema": 0.98},
    "EMA over 1000 updates": {"training.ema": 0.999},
    "half the learning rate": {"training.learning_rate": 1.5e-3},
    "a wider network (48 channels)": {"network.width": 48},
    "a quarter of the pairs, and power 1": {"interval_share": 0.25, "adaptive_power": 1.0},
}
"""What each row changes in the preset."""


def changed(options: MeanFlow, changes: dict[str, Any]) -> MeanFlow:
    whole: dict[str, Any] = {}
    for name, value in changes.items():
        part, _, field = name.rpartition(".")
        whole |= {part: attrs.evolve(getattr(options, part), **{field: value})} if part else {field: value}
    return attrs.evolve(options, **whole)


def main() -> None:
    parser = argparse.ArgumentParser(description="what each lever does to MeanFlow")
    parser.add_argument("--folder", type=Path, default=Path("runs/levers"), help="folder of all runs")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="images to compare with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of every training; default: 0")
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=[*LEVERS], help="rows; default: all")
    parser.add_argument(
        "--steps", type=int, help="updates of the baseline, which set the budget; default: the preset's"
    )
    parser.add_argument("--markdown", type=Path, default=Path("levers.md"), help="file of the table")
    parser.add_argument("--json", type=Path, default=Path("levers.json"), help="file of all numbers")
    chosen = parser.parse_args()
    data = open_dataset("digits")
    preset = find_preset("flow-matching").options(data)
    assert isinstance(preset, FlowMatching)
    if chosen.steps is not None:
        preset = attrs.evolve(preset, training=attrs.evolve(preset.training, steps=chosen.steps))
    budget, start = spent(preset, data).total, find_preset("meanflow").options(data)
    assert isinstance(start, MeanFlow)

    def run_of(name: str, title: str, options: Method, seed: int) -> Any:
        run = resume_or_start(chosen.folder / f"{title}-{seed}", name, data, options.with_seed(seed), resume=True)
        for _ in run.updates(chosen.folder / f"{title}-{seed}"):
            pass
        return run

    cells = []
    for seed in chosen.seeds:
        baseline = run_of("flow-matching", "baseline", preset, seed)
        for place, (lever, changes) in enumerate(LEVERS.items()):
            if lever not in chosen.levers:
                continue
            options = within_budget(changed(start, changes), data, budget)
            run = run_of("meanflow", f"lever-{place:02d}", options, seed)
            report = evaluate_runs([baseline, run], baseline, split=chosen.split, repeats=3)
            for label, row in (("flow matching, 100 evaluations", report.rows[0]), (lever, report.rows[1])):
                verdicts = report.verdicts[row.label]
                cells.append(
                    {
                        "lever": label,
                        "seed": seed,
                        "changes": changes if label == lever else {},
                        "updates": (run if label == lever else baseline).options.training.steps,
                        "evaluations": spent((run if label == lever else baseline).options, data).total,
                        "missed": [found.name for found in verdicts if not found.passed],
                        "values": {found.name: found.value for found in verdicts},
                        "limits": {found.name: f"{found.relation} {number(found.limit)}" for found in verdicts},
                    }
                )
            print(json.dumps(cells[-1]), flush=True)
    # The baseline is judged beside every lever, each time with the same samples.
    cells = [cell for i, cell in enumerate(cells) if cell not in cells[:i]]
    content = {
        "command": this_command(),
        "split": chosen.split,
        "budget": budget,
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "cells": cells,
    }
    write_whole(chosen.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    told = table(cells)
    write_whole(chosen.markdown, told + "\n")
    print(f"\nEach training: {budget:,} network evaluations; images of the {chosen.split} split.\n\n{told}")


def table(cells: list[dict[str, Any]]) -> str:
    """A line for each lever; a number that misses its threshold is in bold."""
    names = [*cells[0]["values"]]
    lines = []
    for lever in dict.fromkeys(cell["lever"] for cell in cells):
        same = [cell for cell in cells if cell["lever"] == lever]
        shown = []
        for name in names:
            value = number(mean(cell["values"][name] for cell in same))
            shown.append(f"**{value}**" if any(name in cell["missed"] for cell in same) else value)
        missed = "–" if "flow" in lever else number(mean(len(cell["missed"]) for cell in same))
        lines.append([lever, str(same[0]["updates"]), missed, *shown])
    return markdown(["lever", "updates", "missed", *names], lines)


if __name__ == "__main__":
    main()
