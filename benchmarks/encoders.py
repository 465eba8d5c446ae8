"""Encoders, trained by their presets and probed: ``python -m benchmarks.encoders``.

For each data set the methods are trained one after another, from seeds 0, 1, ..., into ``FOLDER/DATA/METHOD``. Complete
runs there are kept, interrupted ones are resumed. Then every encoder is probed on the test split, beside pixels and a
random network of the same shape (its own initial weights), at its last layer. ``benchmarks/results/`` gets
``encoders-DATA.md`` and ``.json``: means over the seeds with their standard deviation, every single training, its
budget, hardware and versions, and the command. Options were chosen on the validation split.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks.harness import hardware
from onestep_adapters.data import Dataset, open_dataset
from onestep_adapters.evaluation.encoders import METRICS, encoder_rows, probed
from onestep_adapters.evaluation.rows import Row
from onestep_adapters.files import write_whole
from onestep_adapters.methods import find_preset
from onestep_adapters.runs import Run, resume_or_start

RESULTS = Path(__file__).parent / "results"
METHODS = ("simclr", "moco", "mae")


def train(data: Dataset, methods: Iterable[str], folder: Path, *, seeds: int, steps: int | None) -> list[Run]:
    """Complete runs of the methods and seeds, one line each."""
    runs = []
    for seed in range(seeds):
        for name in methods:
            options = find_preset(name).options(data).with_seed(seed)
            options = attrs.evolve(options, monitor_every=0)  # budgets are those of training alone
            if steps is not None:
                options = attrs.evolve(options, training=attrs.evolve(options.training, steps=steps))
            place = folder / data.name / f"{name}-seed-{seed}"
            run, processor = resume_or_start(place, name, data, options, resume=True), time.process_time()
            for _ in run.updates(place):
                pass
            spent = time.process_time() - processor
            print(f"{data.name}: {name}, seed {seed}: {run.seconds:.0f} s, processor {spent:.0f} s", flush=True)
            runs.append(run)
    return runs


def rows_of(run: Run, found: list[Row]) -> list[dict[str, Any]]:
    """Random network and trained encoder at the last layer, as plain numbers; pixels have no run."""

    def plain(row: Row, kind: str) -> dict[str, Any]:
        assert row.metrics is not None
        numbers = {name: row.metrics[name].mean for name in METRICS if name in row.metrics}
        cost = {} if row.cost is None else {"updates": row.cost.updates, "seconds": row.cost.training_seconds}
        return {"method": kind, "layer": row.variant, "seed": run.options.training.seed, **cost, **numbers}

    return [plain(found[-2], f"random, shape of {run.name}"), plain(found[-1], run.name)]


def gathered(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with their standard deviation, as a table.

    Example:
        >>> rows = [{"method": "m", "layer": "l", "seed": s, "updates": 5, "linear": s / 4} for s in (0, 1)]
        >>> print(gathered(rows).splitlines()[2])
        | m | l | 2 | 5 | – | 0.125 ± 0.177 | – | – | – | – |
    """
    head = ["features", "layer", "seeds", "updates", "seconds", *(metric.heading for metric in METRICS.values())]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for name in dict.fromkeys(row["method"] for row in rows):
        same = [row for row in rows if row["method"] == name]
        first = same[0]
        seconds = [row["seconds"] for row in same if row.get("seconds") is not None]
        budget = [first.get("updates"), round(statistics.mean(seconds)) if seconds else None]
        cells = [_mean([row[metric] for row in same if metric in row]) for metric in METRICS]
        shown = ["–" if number is None else f"{number:,}" for number in budget]
        lines.append([name, first.get("layer") or "–", str(len(same)), *shown, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    wide = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{wide}"


def report(data: Dataset, rows: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the table and the numbers."""
    meanings = "\n".join(f"- **{metric.heading}**: {metric.meaning}." for metric in METRICS.values())
    where = {name: fact for name, fact in facts.items() if name not in ("command", "images")}
    text = "\n\n".join(
        [
            f"# Encoders on {data.name}",
            f"{time.strftime('%Y-%m-%d')}, `{facts['command']}`. {facts['images']}. Accuracies on the **test** split: "
            "mean over the seeds, ± their standard deviation. *Random*: the initial weights. Seconds are "
            "wall-clock time on one thread; on a shared machine they are longer than those of the processor.",
            gathered(rows),
            meanings,
            ", ".join(f"{name} {fact}" for name, fact in where.items()) + ".",
        ]
    )
    stem = RESULTS / f"encoders-{data.name}"
    write_whole(stem.with_suffix(".md"), text + "\n")
    write_whole(stem.with_suffix(".json"), json.dumps({**facts, "rows": rows}, indent=1, allow_nan=False) + "\n")
    print(text, flush=True)


def main() -> None:
    """Train and probe what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="name of a data set; default: %(default)s")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, 1 or more; default: %(default)s")
    parser.add_argument("--steps", type=int, help="updates; default: those of the presets")
    parser.add_argument("--images", type=int, default=5000, help="training images of the probes; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/encoders"), help="of the runs; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: %(default)s")
    chosen = parser.parse_args()
    if chosen.seeds < 1:
        parser.error(f"--seeds {chosen.seeds}: expected at least 1")
    torch.set_num_threads(chosen.threads)
    RESULTS.mkdir(exist_ok=True)
    data = open_dataset(chosen.data)
    runs = train(data, chosen.methods, chosen.folder, seeds=chosen.seeds, steps=chosen.steps)
    on = probed(data, split="test", images=chosen.images)
    rows: list[dict[str, Any]] = []
    for run in runs:
        found = encoder_rows([run], on, last_only=True)
        if not rows:
            assert found[0].metrics is not None
            rows.append(
                {"method": "pixels", "layer": "", "seed": 0, **{k: v.mean for k, v in found[0].metrics.items()}}
            )
        rows += rows_of(run, found)
    words = [f"--data {chosen.data}", f"--methods {' '.join(chosen.methods)}", f"--seeds {chosen.seeds}"]
    words += [f"--steps {chosen.steps}"] if chosen.steps else []
    facts = {
        "command": f"python -m benchmarks.encoders {' '.join(words)}",
        "images": f"{len(on.train.data):,} training and {len(on.tested.data):,} test images for the probes",
        **hardware(),
    }
    report(data, rows, facts)


if __name__ == "__main__":
    main()
