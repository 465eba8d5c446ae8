"""Class-conditional digits with guidance, by drifting in pixels and in the features of a random frozen encoder.

    python examples/drifting_digits.py digits.png

The example runs for one minute on one core. Each network maps noise, a class and a guidance scale to a digit in one
evaluation. In training, the scale is drawn for every class in every update. At sampling, you choose it. The encoder is
a convolutional network with random weights; an update with it costs about three times as much. Its features are used
beside the pixels, and every feature has its own drift field. Each row of the picture is one scale. The noise of a
column is the same in every row. Digits of different classes are very different, so the scale changes little (see
``guidance_deficit``).
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor

from onestep_adapters.methods import Drifting, Network, Training
from onestep_adapters.methods.drifting.extras import Guidance
from onestep_adapters.methods.drifting.monitors import DEFICIT, ENERGY, SPREAD
from onestep_adapters.runs import Run, start_run

SCALES = (1.0, 2.0, 4.0)


def train(encoder: str, *, steps: int, seed: int = 0) -> Run:
    pixels = encoder == "pixels"
    options = Drifting(
        Training(steps=steps, batch=160, learning_rate=3e-3, seed=seed),
        Network("conv", width=16, depth=2),
        Guidance(max_alpha=max(SCALES), alpha_power=1.0, unguided_share=0.3, unconditional_samples=16),
        temperatures=(1.0,) if pixels else (0.3,),
        relative_temperatures=not pixels,
        encoder="pixels" if pixels else "random",
        positives=48,
    )
    run = start_run("drifting", "digits", options)
    for record in run.updates():
        if record.step % 20 == 1:
            shown = {name: record.logs[name] for name in (ENERGY, SPREAD, DEFICIT)}
            print(f"{encoder} {record.step:4d}", "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    return run


def samples(run: Run, *, each: int = 3) -> dict[float, Tensor]:
    """``each`` images of every digit at every scale, with the same noise."""
    labels = torch.arange(10).repeat_interleave(each)
    return {
        alpha: run.guided(alpha).samples(len(labels), generator=torch.Generator().manual_seed(1), labels=labels)[0]
        for alpha in SCALES
    }


def draw_picture(drawn: dict[str, dict[float, Tensor]], file: str) -> None:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    cells = figure.subplots(len(drawn) * len(SCALES), 1)
    rows = ((name, alpha, images) for name, by_scale in drawn.items() for alpha, images in by_scale.items())
    for axes, (name, alpha, images) in zip(cells, rows, strict=True):
        axes.imshow(images.squeeze(1).permute(1, 0, 2).reshape(8, -1).numpy(), cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[], ylabel=f"alpha {alpha:g}", title=name if alpha == SCALES[0] else "")
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="file of the picture, for example digits.png")
    parser.add_argument(
        "--steps", type=int, default=600, help="number of training updates in pixels; with the encoder, half as many"
    )
    arguments = parser.parse_args()
    runs = {
        "pixels": train("pixels", steps=arguments.steps),
        "pixels and random features": train("random", steps=arguments.steps // 2),
    }
    draw_picture({name: samples(run) for name, run in runs.items()}, arguments.file)


if __name__ == "__main__":
    main()
