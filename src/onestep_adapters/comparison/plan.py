"""What is compared: data sets, methods, seeds and a budget; the presets of ``onestep compare``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS
from onestep_adapters.names import choose
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count

BASELINE = "flow-matching"
"""The method of many steps that the others are compared with; it is always among them."""

EVALUATIONS = (1, 2, 4)
"""Evaluations per sample at which samples are judged, beside the method's own number."""


@attrs.frozen
class Scale:
    """How large a comparison is.

    Attributes:
        data: names of data sets.
        methods: names of methods; empty: all.
        budget: network evaluations in training, by kind of data.
        seeds: trainings of each method.
        repeats: draws of samples that are judged.
        points: samples in a draw, of points.
        batch: samples in an update of every method and teacher; ``None``: those of each method's preset. Small ones
            suit small budgets: more updates for the same evaluations.
    """

    data: tuple[str, ...]
    methods: tuple[str, ...]
    budget: Mapping[str, int]
    seeds: int
    repeats: int
    points: int = 10_000
    batch: int | None = None


SCALES: Mapping[str, Scale] = {
    "quick": Scale(
        ("8gaussians",),
        (
            BASELINE,
            "meanflow",
            "shortcut",
            "consistency-training",
            "consistency-distillation",
            "reflow",
            "dmd",
            "moment-matching",
            "drifting",
        ),
        {"points": 1_200_000, "images": 300_000},
        seeds=1,
        repeats=2,
        points=2000,
        batch=128,
    ),
    "standard": Scale(
        ("8gaussians", "checkerboard", "unequal", "digits"), (), {"points": 8_000_000, "images": 2_000_000}, 3, 5
    ),
    "thorough": Scale(
        ("8gaussians", "checkerboard", "unequal", "digits", "fashion-mnist"),
        (),
        {"points": 8_000_000, "images": 2_000_000},
        seeds=3,
        repeats=5,
    ),
}
"""The presets of the command line."""


@attrs.frozen
class Cell:
    """One training of the grid."""

    data: str
    method: str
    seed: int

    @property
    def title(self) -> str:
        """For readers."""
        return f"{self.method} on {self.data}, seed {self.seed}"

    def folder(self, home: Path) -> Path:
        """Its folder in that of the comparison."""
        return home / self.data.replace(":", "-").replace("/", "-") / self.method / f"seed-{self.seed}"


@attrs.frozen
class Plan:
    """A grid of cells with one budget for each data set.

    Attributes:
        data: names of data sets.
        methods: names of methods, the baseline first.
        seeds: trainings of each method, from seeds 0, 1, ...
        budgets: network evaluations of one training, by data set.
        repeats: draws of samples that are judged.
        points: samples in a draw, of points.
        batch: samples in an update of every method and teacher; ``None``: those of each method's preset.
    """

    data: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    budgets: Mapping[str, int]
    repeats: int
    points: int
    batch: int | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order of the tables."""
        return tuple(
            Cell(data, method, seed) for data in self.data for method in self.methods for seed in range(self.seeds)
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Methods of the library that are not compared."""
        return tuple(name for name in METHODS if name not in self.methods)


def make_plan(
    preset: str = "standard",
    *,
    data: Sequence[str] = (),
    methods: Sequence[str] = (),
    budget: int | None = None,
    seeds: int | None = None,
    batch: int | None = None,
) -> Plan:
    """The plan of a preset, with changes.

    Args:
        preset: ``"quick"``, ``"standard"`` or ``"thorough"``.
        data: other data sets.
        methods: other methods; the baseline is added.
        budget: another budget, for all data sets.
        seeds: another number of trainings.
        batch: another number of samples in an update.

    Raises:
        ConfigError: for an unknown name, or a number out of range.

    Example:
        >>> len(make_plan("quick", methods=["meanflow"], seeds=2).cells)
        4
    """
    scale = SCALES[choose(preset, SCALES, "preset")]
    names = tuple(data) or scale.data
    for given in (names, methods):
        doubled = sorted({name for name in given if list(given).count(name) > 1})
        if doubled:
            raise ConfigError(f"{doubled[0]} is given twice: give every name once")
    chosen = tuple(methods) or scale.methods or tuple(METHODS)
    for name in chosen:
        choose(name, METHODS, "method")
    if budget is not None:
        require_count("budget", budget, least=1)
    if seeds is not None:
        require_count("seeds", seeds, least=1)
    if batch is not None:
        require_count("batch", batch, least=1)
    kinds = {name: open_dataset(name).kind for name in names}
    budgets = {name: scale.budget[kind] if budget is None else budget for name, kind in kinds.items()}
    ordered = (BASELINE, *(name for name in METHODS if name in chosen and name != BASELINE))
    chosen_seeds, chosen_batch = scale.seeds if seeds is None else seeds, scale.batch if batch is None else batch
    return Plan(names, ordered, chosen_seeds, budgets, scale.repeats, scale.points, chosen_batch)
