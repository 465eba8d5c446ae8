"""Generated Fashion-MNIST judged by a network that trained none of the methods: what several examples share.

The judge is EfficientNet-Lite0 (extra ``efficientnet``): Fréchet distance (FD), kernel distance (KD), precision,
recall, density and coverage between generated and test images in its pooled features.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.figure import Figure
from torch import Tensor

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import pooled_features, pretrained_encoder
from onestep_adapters.evaluation.rows import number
from onestep_adapters.metrics import class_gaussians_like, encoder_metrics

DATA = "fashion-mnist"
JUDGE = "efficientnet-lite0"
METRICS = {
    "encoder_frechet": "FD",
    "encoder_kernel": "KD",
    "encoder_precision": "precision",
    "encoder_recall": "recall",
    "encoder_density": "density",
    "encoder_coverage": "coverage",
}
COUNT = 2000
"""Generated images, and test images that they are compared with."""

FLOOR, GAUSSIANS = "floor: training images", "a Gaussian of each class"

Numbers = dict[str, float]


class Judge:
    """Numbers of generated images in the features of the judge, against evenly spaced images of a split."""

    def __init__(self, data: Dataset, split: str = "test") -> None:
        real = data.split(split)
        assert real is not None
        self.encode = pooled_features(pretrained_encoder(JUDGE))
        self.real = self.encode(real.data[torch.arange(COUNT) * len(real.data) // COUNT])
        self.described = f"{JUDGE}, pooled features of its last block, {COUNT} samples against {COUNT} {split} images"

    def __call__(self, images: Tensor) -> Numbers:
        found = encoder_metrics(self.encode(images), self.real, k=5)
        return {METRICS[name]: float(value) for name, value in found.items()}


def references(data: Dataset, judge: Judge, draws: int) -> dict[str, list[Numbers]]:
    """Training images, and a Gaussian of each class, in several draws."""
    train = data.split("train")
    assert train is not None
    assert train.labels is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(train.data), generator=generator)[: draws * COUNT].split(COUNT)
    some = slice(0, len(train.data), 6)
    gaussians = [
        class_gaussians_like(train.data[some], train.labels[some], COUNT, generator=generator)[0] for _ in rows
    ]
    return {
        FLOOR: [judge(train.data[chosen]) for chosen in rows],
        GAUSSIANS: [judge(data.finish(images)) for images in gaussians],
    }


def value(numbers: Sequence[float]) -> str:
    """Mean, and standard deviation of several."""
    return number(mean(numbers)) + (f" ± {number(stdev(numbers))}" if len(numbers) > 1 else "")


def columns(cells: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[str]:
    return [value([cell[name] for cell in cells]) if cells else "–" for name in names]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *lines))


def draw_rows(rows: Mapping[str, Tensor], title: str, file: str | Path) -> None:
    """One row of grey images under each name."""
    figure = Figure(figsize=(11, 0.72 * len(rows) + 0.6), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow((torch.cat([*images[:, 0]], 1).numpy() + 1) / 2, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=90)


def this_command() -> str:
    return shlex.join(("python", f"examples/{Path(sys.argv[0]).name}", *sys.argv[1:]))
