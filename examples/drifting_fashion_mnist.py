r"""Drifting in the features of an encoder on Fashion-MNIST: three commands, from images to samples.

    python examples/drifting_fashion_mnist.py docs/drifting-fashion-mnist.png

It runs these, and takes less than ten minutes on one core, most of them for the encoder:

    onestep train simclr --data fashion-mnist --folder runs/fashion/encoder
    onestep train drifting --data fashion-mnist --encoder runs/fashion/encoder --folder runs/fashion/drifting ...
    onestep sample runs/fashion/drifting --count 100

Both trainings continue if they were interrupted. The images are those of Debian's package dataset-fashion-mnist, or see
docs/data.md. In the picture every row is a class: five real images, then ten samples of one evaluation each. They are
measured, beside other methods, by one_step_fashion_mnist.py, whose options these are.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from onestep_adapters.cli import main as onestep
from onestep_adapters.runs import Run, open_run

FOLDER = Path("runs/fashion")
OPTIONS = (
    "--layers stages.2 --pixel-weight 2 --temperatures 0.05 0.2 --positives 32 --batch 100 --full-depth 0 --bounded "
    "--channels-last --learning-rate 4e-3 --warmup 20"
)


def command(*words: str) -> None:
    print("onestep", *words, flush=True)
    if onestep(list(words)):
        raise SystemExit(1)


def draw_picture(run: Run, file: str) -> None:
    data, count = run.data, run.data.classes or 1
    real = data.groups(5, torch.Generator().manual_seed(0)).clamp(-1, 1)
    labels = torch.arange(count).repeat_interleave(10)
    samples, _ = run.samples(len(labels), generator=torch.Generator().manual_seed(1), labels=labels)
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, images, title in zip(
        figure.subplots(1, 2, width_ratios=[1, 2]),
        (real, samples),
        ("real images", f"drifting, {run.options.training.steps:,} updates, one evaluation per sample"),
        strict=True,
    ):
        _, channels, height, _ = images.shape
        rows = images.unflatten(0, (count, -1)).permute(0, 3, 1, 4, 2).reshape(count * height, -1, channels)
        axes.imshow((rows.numpy() + 1) / 2, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], title=title)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="file of the picture, for example fashion.png")
    parser.add_argument("--encoder-steps", type=int, help="updates of the encoder; by default those of the preset")
    parser.add_argument("--steps", type=int, default=420, help="updates of the generator; default: %(default)s")
    chosen = parser.parse_args()
    encoder, generator = str(FOLDER / "encoder"), str(FOLDER / "drifting")
    data = ("--data", "fashion-mnist", "--resume", "--folder")
    first = () if chosen.encoder_steps is None else ("--steps", str(chosen.encoder_steps))
    command("train", "simclr", *data, encoder, *first)
    command("train", "drifting", *data, generator, "--encoder", encoder, *OPTIONS.split(), "--steps", str(chosen.steps))
    command("sample", generator, "--count", "100")
    draw_picture(open_run(generator), chosen.picture)


if __name__ == "__main__":
    main()
