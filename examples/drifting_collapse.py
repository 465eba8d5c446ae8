"""The paper's small temperatures collapse on raw pixels, and one monitor shows it early.

    python examples/drifting_collapse.py collapse.png

Two equal networks are trained on the digits, for half a minute on one core. The first follows the field of the released
code, with temperatures of 0.02, 0.05 and 0.2 of the mean distance. The second follows a mean shift field with a
temperature of the size of the data. In 64 dimensions, nearly all distances are similar. At a small temperature, only a
few nearest positives act on a sample. All other positives act only through the floor of the affinities, which pulls the
sample towards the mean of its class. The loss of the first network falls a little, so the loss does not show the
collapse. Each monitor has a fixed threshold. The second network crosses none of them.
"""

import argparse
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from onestep_adapters.methods import Drifting, Network, Training
from onestep_adapters.methods.drifting.monitors import EFFECTIVE, ENERGY, SINGLE, SPREAD
from onestep_adapters.runs import start_run

POSITIVES = 64
RUNS = {
    "released": {"field": "released", "temperatures": (0.02, 0.05, 0.2)},
    "mean-shift": {"field": "mean-shift", "temperatures": (1.0,)},
}


class Trained(NamedTuple):
    """Logged numbers by name, each a list of (update, value), and eight samples of every class."""

    numbers: dict[str, list[tuple[int, float]]]
    images: Tensor


def train(name: str, *, steps: int, seed: int = 0) -> Trained:
    options = Drifting(
        Training(steps=steps, batch=160, learning_rate=3e-3, seed=seed),
        Network("conv", width=16, depth=2),
        positives=POSITIVES,
        **RUNS[name],  # type: ignore[arg-type]
    )
    run = start_run("drifting", "digits", options)
    numbers: dict[str, list[tuple[int, float]]] = {}
    for record in run.updates():
        for key, value in {"loss": record.loss, **record.logs}.items():
            numbers.setdefault(key, []).append((record.step, value))
    labels = torch.arange(10).repeat_interleave(8)
    return Trained(numbers, run.samples(80, generator=torch.Generator().manual_seed(1), labels=labels)[0])


def _first(values: list[tuple[int, float]], alarming: list[bool]) -> int | None:
    return next((update for (update, _), alarm in zip(values, alarming, strict=True) if alarm), None)


def alarms(numbers: dict[str, list[tuple[int, float]]]) -> dict[str, int | None]:
    """The first update in which each monitor crosses its threshold, or ``None``."""
    effective, single, spread, loss = (numbers[name] for name in (EFFECTIVE, SINGLE, SPREAD, "loss"))
    widest, spreads = 0.0, []
    for _, value in spread:
        widest = max(widest, value)
        spreads.append(value < 0.75 * widest)
    return {
        f"{EFFECTIVE} below {POSITIVES // 8} of {POSITIVES}": _first(
            effective, [v < POSITIVES / 8 for _, v in effective]
        ),
        f"{SPREAD} below 3/4 of its largest value": _first(spread, spreads),
        f"{SINGLE} above 0.1": _first(single, [v > 0.1 for _, v in single]),
        "loss above 1.5 times its first value": _first(loss, [v > 1.5 * loss[0][1] for _, v in loss]),
    }


def draw_picture(results: dict[str, Trained], file: str) -> None:
    shown = ("loss", EFFECTIVE, SPREAD, ENERGY)
    figure = Figure(figsize=(15, 6), layout="constrained")
    for row, (name, result) in zip(figure.subplots(len(results), len(shown) + 1), results.items(), strict=True):
        for axes, number in zip(row, shown, strict=False):
            axes.plot(*zip(*result.numbers[number], strict=True))
            axes.set(title=f"{name}: {number}", xlabel="update")
            axes.set_ylim(bottom=0)
        picture = result.images.reshape(10, 8, 8, 8).permute(1, 2, 0, 3).reshape(64, 80).numpy()
        row[-1].imshow(picture, cmap="gray", vmin=-1, vmax=1)
        row[-1].set(title="one class per column", xticks=[], yticks=[])
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="file of the picture, for example collapse.png")
    parser.add_argument("--steps", type=int, default=240, help="number of training updates of each network")
    arguments = parser.parse_args()
    results = {name: train(name, steps=arguments.steps) for name in RUNS}
    for name, result in results.items():
        print(f"{name}: held-out energy distance at the end: {result.numbers[ENERGY][-1][1]:.3f}")
        for monitor, update in alarms(result.numbers).items():
            print(f"  {monitor}: {'not crossed' if update is None else f'crossed in update {update}'}")
    draw_picture(results, arguments.file)


if __name__ == "__main__":
    main()
