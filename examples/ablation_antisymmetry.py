r"""The ablation of anti-symmetry on Fashion-MNIST: attraction and repulsion of drifting with unequal factors.

    python examples/ablation_antisymmetry.py --folder runs/antisymmetry --picture antisymmetry.png

The drift of drifting models is attraction minus repulsion. With equal factors it changes its sign when data and samples
are exchanged, so it is zero for equal distributions. The paper multiplies one of the two by 1.5 or 2, or leaves out the
repulsion (https://arxiv.org/abs/2602.04770: ImageNet, FID of 50,000 samples). This script does the same at a small
budget. It trains one SimCLR encoder, then for every ratio and seed a generator with one-step drifting in its features,
all with the same updates, batches and initial weights of a seed:

    onestep train simclr --data fashion-mnist --folder runs/antisymmetry/encoder
    onestep train drifting --data fashion-mnist --encoder runs/antisymmetry/encoder --attraction 1.5 --repulsion 1 ...

The judge is EfficientNet-Lite0, which trained nothing here (extra ``efficientnet``): Fréchet distance (FD), kernel
distance (KD), density and coverage between generated and test images in its pooled features. The floor compares
training images with the same test images.

The script can be interrupted: what is finished is read from the folder. The images are those of Debian's package
dataset-fashion-mnist, or see docs/data.md.
"""

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from onestep_adapters.cli import main as onestep
from onestep_adapters.data import Dataset, open_dataset
from onestep_adapters.encoders import pooled_features, pretrained_encoder
from onestep_adapters.evaluation.report import environment
from onestep_adapters.evaluation.rows import number
from onestep_adapters.files import write_whole
from onestep_adapters.metrics import class_gaussians_like, encoder_metrics
from onestep_adapters.runs import open_run

DATA = "fashion-mnist"
JUDGE = "efficientnet-lite0"
PUBLISHED = {
    (1.0, 1.0): 8.46,
    (1.5, 1.0): 41.05,
    (1.0, 1.5): 46.28,
    (2.0, 1.0): 86.16,
    (1.0, 2.0): 112.84,
    (1.0, 0.0): 177.14,
}
"""FID by attraction and repulsion: Deng et al., https://arxiv.org/abs/2602.04770, table on anti-symmetry."""

GENERATOR = {
    "--layers": "stages.2",
    "--backbone": "decoder",
    "--batch": "100",
    "--positives": "32",
    "--learning-rate": "1e-2",
    "--warmup": "10",
}
"""Options of every generator; the others are those of the preset."""

METRICS = {
    "encoder_frechet": "FD",
    "encoder_kernel": "KD",
    "encoder_density": "density",
    "encoder_coverage": "coverage",
}
COUNT = 2000
"""Generated images, and test images that they are compared with."""

Cell = dict[str, Any]


def shown(ratio: tuple[float, float]) -> str:
    return "attraction alone" if not ratio[1] else f"{ratio[0]:g} : {ratio[1]:g}"


def command(*words: str) -> str:
    print("onestep", *words, flush=True)
    if onestep([*words, "--resume"]):
        raise SystemExit(1)
    return shlex.join(("onestep", *words))


class Judge:
    """Numbers of generated images in the features of the judge, against evenly spaced test images."""

    def __init__(self, data: Dataset) -> None:
        test = data.split("test")
        assert test is not None
        self.encode = pooled_features(pretrained_encoder(JUDGE))
        self.real = self.encode(test.data[torch.arange(COUNT) * len(test.data) // COUNT])

    def __call__(self, images: Tensor) -> dict[str, float]:
        found = encoder_metrics(self.encode(images), self.real, k=5)
        return {METRICS[name]: float(value) for name, value in found.items() if name in METRICS}


def references(data: Dataset, judge: Judge, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Training images, and a Gaussian of each class, in as many draws as there are seeds."""
    train = data.split("train")
    assert train is not None
    assert train.labels is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(train.data), generator=generator)[: seeds * COUNT].split(COUNT)
    some = slice(0, len(train.data), 6)
    gaussians = [
        class_gaussians_like(train.data[some], train.labels[some], COUNT, generator=generator)[0] for _ in rows
    ]
    return {
        "floor: training images": [judge(train.data[chosen]) for chosen in rows],
        "a Gaussian of each class": [judge(data.finish(images)) for images in gaussians],
    }


def cell(ratio: tuple[float, float], seed: int, steps: int, folder: Path, judge: Judge) -> Cell:
    """Train and judge one generator, or read what was found."""
    place = folder / f"{ratio[0]:g}-{ratio[1]:g}-seed{seed}"
    words = ["train", "drifting", "--data", DATA, "--encoder", str(folder / "encoder"), "--folder", str(place)]
    words += [*itertools.chain(*GENERATOR.items()), "--steps", str(steps), "--seed", str(seed)]
    words += ["--attraction", f"{ratio[0]:g}", "--repulsion", f"{ratio[1]:g}"]
    file, told = place / "judged.json", shlex.join(("onestep", *words))
    if file.is_file():
        found: Cell = json.loads(file.read_text())
        if found["command"] != told:
            raise SystemExit(f"{file} is of another command:\n  {found['command']}\nexpected\n  {told}\nmove it away")
        return found
    command(*words)
    run = open_run(place)
    samples, _ = run.samples(COUNT, generator=torch.Generator().manual_seed(seed))
    numbers = {"attraction": ratio[0], "repulsion": ratio[1], "seed": seed, "updates": steps, "seconds": run.seconds}
    found = {**numbers, **judge(samples), "command": told}
    write_whole(file, json.dumps(found, indent=1) + "\n")
    return found


def value(numbers: list[float]) -> str:
    return number(mean(numbers)) + (f" ± {number(stdev(numbers))}" if len(numbers) > 1 else "")


def table(cells: list[Cell], beside: dict[str, list[dict[str, float]]]) -> str:
    lines = [["attraction : repulsion", *METRICS.values(), "published FID"], ["---", *["---:"] * (len(METRICS) + 1)]]
    for ratio, fid in PUBLISHED.items():
        same = [found for found in cells if (found["attraction"], found["repulsion"]) == ratio]
        lines.append([shown(ratio), *(value([c[name] for c in same]) for name in METRICS.values()), str(fid)])
    for title, draws in beside.items():
        lines.append([title, *(value([draw[name] for draw in draws]) for name in METRICS.values()), "–"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentence(cells: list[Cell], beside: dict[str, list[dict[str, float]]]) -> str:
    """Whether the published ordering holds, from the numbers."""
    by_seed = {
        seed: {(c["attraction"], c["repulsion"]): c["FD"] for c in cells if c["seed"] == seed}
        for seed in sorted({c["seed"] for c in cells})
    }
    means = {ratio: mean(found[ratio] for found in by_seed.values()) for ratio in PUBLISHED}
    best, equal, count = min(means, key=means.__getitem__), next(iter(PUBLISHED)), len(by_seed)
    wins = sum(min(found, key=found.__getitem__) == equal for found in by_seed.values())
    pairs = list(itertools.combinations(PUBLISHED, 2))
    kept = sum(means[first] < means[second] for first, second in pairs)
    first = f"1 : 1 has the smallest mean FD ({number(means[equal])})"
    if best != equal:
        first = f"{shown(best)} has the smallest mean FD ({number(means[best])}), not 1 : 1 ({number(means[equal])})"
    order = "holds" if kept == len(pairs) else "does not hold as a whole"
    worse = [
        f"{title} ({number(limit)})"
        for title, draws in beside.items()
        if min(means.values()) > (limit := mean(draw["FD"] for draw in draws))
    ]
    told = f" Every ratio is worse than {' and '.join(worse)}." if worse else ""
    return (
        f"{first}; 1 : 1 is the best in {wins} of {count} seeds. The published ordering of the six rows {order}: "
        f"{kept} of the {len(pairs)} pairs of ratios have it in the mean FD. From the best to the worst: "
        f"{', '.join(shown(ratio) for ratio in sorted(means, key=means.__getitem__))}.{told}"
    )


def draw_picture(cells: list[Cell], folder: Path, data: Dataset, budget: str, file: str) -> None:
    classes, each = data.classes or 1, 2
    labels = torch.arange(classes).repeat_interleave(each)
    rows = {"test images": data.groups(each, torch.Generator().manual_seed(0)).clamp(-1, 1)}
    for ratio in PUBLISHED:
        same = [c["FD"] for c in cells if (c["attraction"], c["repulsion"]) == ratio]
        run = open_run(folder / f"{ratio[0]:g}-{ratio[1]:g}-seed{cells[0]['seed']}")
        images, _ = run.samples(len(labels), generator=torch.Generator().manual_seed(1), labels=labels)
        rows[f"{shown(ratio)}\nFD {value(same)}"] = images
    figure = Figure(figsize=(11, 0.72 * len(rows) + 0.6), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow((torch.cat([*images[:, 0]], 1).numpy() + 1) / 2, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(budget, fontsize=9)
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/antisymmetry"), help="folder of all runs")
    parser.add_argument("--picture", default="antisymmetry.png", help="file of the picture")
    parser.add_argument("--json", default="antisymmetry.json", help="file of all numbers")
    parser.add_argument("--steps", type=int, default=140, help="updates of every generator")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every ratio")
    parser.add_argument("--encoder-steps", type=int, help="updates of the encoder; by default those of the preset")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    data = open_dataset(DATA)
    more = () if chosen.encoder_steps is None else ("--steps", str(chosen.encoder_steps))
    trained = command("train", "simclr", "--data", DATA, "--folder", str(folder / "encoder"), *more)
    encoder, judge = open_run(folder / "encoder"), Judge(data)
    cells = [cell(ratio, seed, chosen.steps, folder, judge) for seed in range(chosen.seeds) for ratio in PUBLISHED]
    beside = references(data, judge, chosen.seeds)
    budget = (
        f"Drifting in the features of SimCLR ({encoder.state.step:,} updates): {chosen.steps:,} updates of a batch of "
        f"{GENERATOR['--batch']}, {mean(c['seconds'] for c in cells):.0f} s with {torch.get_num_threads()} thread(s); "
        "one evaluation per sample"
    )
    printed, said = table(cells, beside), sentence(cells, beside)
    content = {
        "command": shlex.join(("python", f"examples/{Path(__file__).name}", *sys.argv[1:])),
        "encoder": {"command": trained, "updates": encoder.state.step, "seconds": encoder.seconds},
        "judge": f"{JUDGE}, pooled features of its last block, {COUNT} samples against {COUNT} test images",
        "environment": environment(),
        "sentence": said,
        "published": {shown(ratio): fid for ratio, fid in PUBLISHED.items()},
        "references": beside,
        "cells": cells,
    }
    write_whole(chosen.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draw_picture(cells, folder, data, budget, chosen.picture)
    print(f"\n{budget}.\n\n{printed}\n\n{said}")


if __name__ == "__main__":
    main()
