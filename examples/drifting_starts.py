"""Particles that follow a drift field from three initialisations, as a picture and an animation.

    python examples/drifting_starts.py starts.png --gif starts.gif
    python examples/drifting_starts.py fine.png --field "mean-shift, fine"

There is no network: 400 particles move along the field that the particles and fresh data define. This takes some
seconds on one core. The particles start between the two modes, far away, or collapsed inside one mode. A field whose
temperature falls from the size of the data to the size of one mode converges from every initialisation, with the right
mass in each mode. With a small constant temperature the field does not converge: particles in one mode hardly interact
with the other mode, so the mode masses do not change. With the temperatures of the released code (small, and with
normalised forces) the particles collapse.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from onestep_adapters.data import UnequalMixture
from onestep_adapters.metrics import mode_scores, toy_reference
from onestep_core import drift_field, laplace, mean_shift_field, released_drift, sinkhorn, softmax_both
from onestep_core.diagnostics import mode_mass_error
from onestep_core.protocols import Field

MIXTURES = {"bimodal": UnequalMixture(first_weight=0.5), "unequal": UnequalMixture(first_weight=0.3)}


class Motion(NamedTuple):
    """A field as a function of the progress, from 0 to 1, and the step size."""

    field: Callable[[float], Field]
    step: float


def _shift(temperature: float) -> Field:
    return partial(mean_shift_field, kernel=partial(laplace, temperature=temperature))


def _both(temperature: float) -> Field:
    return partial(drift_field, kernel=partial(laplace, temperature=temperature), coupling=softmax_both)


def _sinkhorn(temperature: float) -> Field:
    kernel = partial(laplace, temperature=temperature)
    return partial(drift_field, kernel=kernel, coupling=partial(sinkhorn, iterations=3))


def falling(field: Callable[[float], Field], *, first: float = 2.0, last: float = 0.15) -> Callable[[float], Field]:
    """The temperature falls geometrically from ``first`` to ``last`` in 4/5 of the updates, then is constant."""
    return lambda progress: field(first * (last / first) ** min(1.0, progress / 0.8))


MOTIONS = {
    "mean-shift, falling": Motion(falling(_shift, first=4.0), 1.0),
    "attraction-repulsion, falling": Motion(falling(_both), 2.0),
    "sinkhorn, falling": Motion(falling(_sinkhorn), 2.0),
    "mean-shift, fine": Motion(lambda _: _shift(0.15), 1.0),
    "attraction-repulsion, fine": Motion(lambda _: _both(0.15), 2.0),
    "released": Motion(lambda _: partial(released_drift, temperatures=(0.02, 0.05, 0.2)), 0.05),
}


def starts(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(count, 2, generator=generator)
    return {
        "between": 0.3 * noise,
        "far": torch.tensor([0.0, 8.0]) + 0.3 * noise,
        "collapsed": torch.tensor([-1.5, 0.0]) + 0.02 * noise,
    }


def evolve(
    x: Tensor, mixture: UnequalMixture, motion: Motion, *, updates: int, positives: int, generator: torch.Generator
) -> list[Tensor]:
    """The particles before every update and at the end. The step size falls to zero in the last fifth of them."""
    trail = [x]
    for update in range(updates):
        progress = update / updates
        drift = motion.field(progress)(x, mixture.sample(positives, generator=generator))
        unit = x.norm() / drift.samples.norm()
        x = x + motion.step * min(1.0, 5 * (1 - progress)) * unit * drift.field
        trail.append(x)
    return trail


class Outcome(NamedTuple):
    """The total variation of the mode masses, and the larger of the two modes' scores."""

    masses: float
    score: float

    @property
    def converged(self) -> bool:
        """Whether both are at most 0.05."""
        return self.masses <= 0.05 and self.score <= 0.05


def outcome(x: Tensor, mixture: UnequalMixture) -> Outcome:
    reference = toy_reference(mixture, generator=torch.Generator().manual_seed(9), count=4000, draws=2)
    nearest = torch.cdist(x, mixture.means).argmin(1)
    return Outcome(float(mode_mass_error(nearest, mixture.weights)), max(mode_scores(x, reference)))


def run(
    motion: Motion, mixture: UnequalMixture, *, particles: int, updates: int, positives: int, seed: int
) -> dict[str, list[Tensor]]:
    """The particles of all updates, for every initialisation."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: evolve(x, mixture, motion, updates=updates, positives=positives, generator=generator)
        for name, x in starts(particles, generator).items()
    }


def draw_picture(trails: dict[str, list[Tensor]], mixture: UnequalMixture, file: str) -> None:
    data = mixture.sample(1000, generator=torch.Generator().manual_seed(1))
    shares = (0.0, 0.05, 0.15, 0.4, 1.0)
    figure = Figure(figsize=(12, 8), layout="constrained")
    rows = figure.subplots(len(trails), len(shares))
    for row, (name, trail) in zip(rows, trails.items(), strict=True):
        for axes, share in zip(row, shares, strict=True):
            update = round(share * (len(trail) - 1))
            axes.scatter(*data.T, s=2, color="0.8", label="data")
            axes.scatter(*trail[update].T, s=2, color="tab:red", label="particles")
            axes.set(xlim=(-3.5, 3.5), ylim=(-2.5, 9.5), xticks=[], yticks=[], title=f"update {update}")
        row[0].set_ylabel(f"start: {name}", fontsize="large")
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=5, frameon=False)
    figure.savefig(file, dpi=100)


def draw_animation(trails: dict[str, list[Tensor]], mixture: UnequalMixture, file: str, *, frames: int = 50) -> None:
    data = mixture.sample(1000, generator=torch.Generator().manual_seed(1))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    drawn = []
    for axes, (name, trail) in zip(figure.subplots(1, len(trails)), trails.items(), strict=True):
        axes.scatter(*data.T, s=2, color="0.8")
        drawn.append((axes.scatter(*trail[0].T, s=2, color="tab:red"), trail))
        axes.set(xlim=(-3.5, 3.5), ylim=(-2.5, 9.5), xticks=[], yticks=[], title=name)

    def show(frame: int) -> list[object]:
        for points, trail in drawn:
            # More frames at the beginning, where the particles move most.
            points.set_offsets(trail[round((frame / (frames - 1)) ** 2 * (len(trail) - 1))].numpy())
        return [points for points, _ in drawn]

    FuncAnimation(figure, show, frames=frames).save(file, writer=PillowWriter(fps=12), dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="file of the picture, for example starts.png")
    parser.add_argument("--gif", help="file of the animation; without this option there is none")
    parser.add_argument("--field", choices=MOTIONS, default="attraction-repulsion, falling", help="field, temperatures")
    parser.add_argument("--mixture", choices=MIXTURES, default="unequal", help="distribution of the data")
    parser.add_argument("--particles", type=int, default=400, help="number of particles")
    parser.add_argument("--updates", type=int, default=150, help="number of updates of the particles")
    arguments = parser.parse_args()
    mixture = MIXTURES[arguments.mixture]
    trails = run(
        MOTIONS[arguments.field],
        mixture,
        particles=arguments.particles,
        updates=arguments.updates,
        positives=arguments.particles,
        seed=0,
    )
    for name, trail in trails.items():
        found = outcome(trail[-1], mixture)
        print(f"{name}: error of the mode masses {found.masses:.3f}, largest score of a mode {found.score:.3f}")
    draw_picture(trails, mixture, arguments.file)
    if arguments.gif:
        draw_animation(trails, mixture, arguments.gif)


if __name__ == "__main__":
    main()
