"""Particles that follow a drift field from three starts, as a picture and an animation.

    python examples/drifting_starts.py starts.png --gif starts.gif
    python examples/drifting_starts.py fine.png --field "mean-shift, fine"

No network: 400 particles move along the field that they and fresh data make, some seconds on one core. They start
between the two modes, far away, or collapsed inside one. A field whose temperature falls from the size of the whole law
to that of a mode brings every start home, with the right share in each mode. A fine temperature alone does not: a
particle in one mode hardly feels the other, so the shares stay as they were. The released temperatures, small and
without end in their normalisation, let the particles collapse.
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
from onestep_core.evidence import mode_mass_error
from onestep_core.protocols import Field

LAWS = {"bimodal": UnequalMixture(first_weight=0.5), "unequal": UnequalMixture(first_weight=0.3)}


class Motion(NamedTuple):
    """A field as a function of progress, 0 to 1, and the length of a step along it."""

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
    """Geometrically from ``first`` to ``last`` over four fifths of the way, then at ``last``."""
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
    x: Tensor, law: UnequalMixture, motion: Motion, *, updates: int, positives: int, generator: torch.Generator
) -> list[Tensor]:
    """The particles before every update and at the end; the last fifth of the steps shrinks to nothing."""
    trail = [x]
    for update in range(updates):
        progress = update / updates
        drift = motion.field(progress)(x, law.sample(positives, generator=generator))
        unit = x.norm() / drift.samples.norm()
        x = x + motion.step * min(1.0, 5 * (1 - progress)) * unit * drift.field
        trail.append(x)
    return trail


class Outcome(NamedTuple):
    """Total variation of the mode masses, and the worse mode's score."""

    masses: float
    score: float

    @property
    def home(self) -> bool:
        return self.masses <= 0.05 and self.score <= 0.05


def outcome(x: Tensor, law: UnequalMixture) -> Outcome:
    reference = toy_reference(law, generator=torch.Generator().manual_seed(9), count=4000, draws=2)
    nearest = torch.cdist(x, law.means).argmin(1)
    return Outcome(float(mode_mass_error(nearest, law.weights)), max(mode_scores(x, reference)))


def run(
    motion: Motion, law: UnequalMixture, *, particles: int, updates: int, positives: int, seed: int
) -> dict[str, list[Tensor]]:
    """The trail from every start."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: evolve(x, law, motion, updates=updates, positives=positives, generator=generator)
        for name, x in starts(particles, generator).items()
    }


def draw_picture(trails: dict[str, list[Tensor]], law: UnequalMixture, file: str) -> None:
    data = law.sample(1000, generator=torch.Generator().manual_seed(1))
    shares = (0.0, 0.05, 0.15, 0.4, 1.0)
    figure = Figure(figsize=(12, 8), layout="constrained")
    for row, (name, trail) in zip(figure.subplots(len(trails), len(shares)), trails.items(), strict=True):
        for axes, share in zip(row, shares, strict=True):
            update = round(share * (len(trail) - 1))
            axes.scatter(*data.T, s=2, color="0.8")
            axes.scatter(*trail[update].T, s=2, color="tab:red")
            axes.set(xlim=(-3.5, 3.5), ylim=(-2.5, 9.5), xticks=[], yticks=[], title=f"{name}, update {update}")
    figure.savefig(file, dpi=100)


def draw_animation(trails: dict[str, list[Tensor]], law: UnequalMixture, file: str, *, frames: int = 50) -> None:
    data = law.sample(1000, generator=torch.Generator().manual_seed(1))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    moving = []
    for axes, (name, trail) in zip(figure.subplots(1, len(trails)), trails.items(), strict=True):
        axes.scatter(*data.T, s=2, color="0.8")
        moving.append((axes.scatter(*trail[0].T, s=2, color="tab:red"), trail))
        axes.set(xlim=(-3.5, 3.5), ylim=(-2.5, 9.5), xticks=[], yticks=[], title=name)

    def show(frame: int) -> list[object]:
        for points, trail in moving:
            # More frames early, where more happens.
            points.set_offsets(trail[round((frame / (frames - 1)) ** 2 * (len(trail) - 1))].numpy())
        return [points for points, _ in moving]

    FuncAnimation(figure, show, frames=frames).save(file, writer=PillowWriter(fps=12), dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="where the picture goes, for example starts.png")
    parser.add_argument("--gif", help="where the animation goes; none without it")
    parser.add_argument("--field", choices=MOTIONS, default="attraction-repulsion, falling")
    parser.add_argument("--law", choices=LAWS, default="unequal")
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--updates", type=int, default=150)
    arguments = parser.parse_args()
    law = LAWS[arguments.law]
    trails = run(
        MOTIONS[arguments.field],
        law,
        particles=arguments.particles,
        updates=arguments.updates,
        positives=arguments.particles,
        seed=0,
    )
    for name, trail in trails.items():
        found = outcome(trail[-1], law)
        print(f"{name}: masses off by {found.masses:.3f}, worse mode's score {found.score:.3f}")
    draw_picture(trails, law, arguments.file)
    if arguments.gif:
        draw_animation(trails, law, arguments.gif)


if __name__ == "__main__":
    main()
