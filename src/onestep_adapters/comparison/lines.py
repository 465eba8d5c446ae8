"""One line for each method on each data set: means over seeds, ratios to floor and baseline, and what went wrong."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from onestep_adapters.comparison.plan import BASELINE, EVALUATIONS, Plan

Content = Mapping[str, Any]
"""What a ``cell.json`` holds."""

NEAR = 2.0
"""A method is near the data where its distance is at most so many times the floor's."""


@attrs.frozen
class Line:
    """A method on a data set, over its seeds.

    Attributes:
        data: name of the data set.
        method: name of the method.
        cells: what its finished cells hold.
        failed: the others, with the reason of each.
        floor: distance of real data to real data; ``None`` if no cell of the data set finished.
        baseline: mean distance of the baseline in its own number of evaluations.
    """

    data: str
    method: str
    cells: tuple[Content, ...]
    failed: tuple[Content, ...]
    floor: float | None
    baseline: float | None

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the method says about itself."""
        return (*self.cells, *self.failed)[0]["declared"]

    @property
    def own(self) -> int | None:
        """The method's own number of evaluations per sample."""
        return self.cells[0]["evaluations_per_sample"] if self.cells else None

    def values(self, evaluations: int) -> list[float]:
        """Distances of its seeds in a number of evaluations; those that are finite."""
        found = (cell["distances"].get(str(evaluations)) for cell in self.cells)
        return [value for value in found if value is not None]

    def distance(self, evaluations: int) -> float | None:
        """The mean of them."""
        values = self.values(evaluations)
        return statistics.fmean(values) if values else None

    def spread(self, evaluations: int) -> float | None:
        """Their standard deviation; ``None`` for one seed."""
        values = self.values(evaluations)
        return statistics.stdev(values) if len(values) > 1 else None

    def over_baseline(self, evaluations: int) -> float | None:
        """The mean distance over that of the baseline."""
        mine = self.distance(evaluations)
        return None if mine is None or not self.baseline else mine / self.baseline

    def over_floor(self, evaluations: int) -> float | None:
        """The mean distance over the floor."""
        mine = self.distance(evaluations)
        return None if mine is None or not self.floor else mine / self.floor

    @property
    def fewest(self) -> int | None:
        """The number of evaluations that ranks the method: one, or its own where it takes no other."""
        return None if self.own is None else self.own if self.method == BASELINE else min(self.own, EVALUATIONS[0])

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Mean distance over the evaluations of the training, the teacher's and the pairs' included."""
        curves = [cell["curve"] for cell in self.cells if cell["curve"]]
        found = []
        for points in zip(*curves, strict=False):
            values = [value for _, value in points if value is not None]
            if values:
                found.append((statistics.fmean(made for made, _ in points), statistics.fmean(values)))
        return found

    @property
    def near_after(self) -> float | None:
        """Evaluations of the training until the distance is at most twice the floor; ``None`` if it never is."""
        if self.floor is None:
            return None
        return next((made for made, value in self.curve if value <= NEAR * self.floor), None)

    @property
    def spent(self) -> Mapping[str, int] | None:
        """Evaluations of the training, by what they were for."""
        return self.cells[0]["spent"] if self.cells else None

    @property
    def spikes(self) -> int:
        """Spikes of the gradient in all seeds."""
        return sum(cell["spikes"] for cell in self.cells)

    @property
    def not_finite(self) -> int:
        """Trainings that stopped at a number that is not finite, or whose samples hold one."""
        stopped = sum("finite" in cell["reason"] for cell in self.failed)
        return stopped + sum(any(value is None for value in cell["distances"].values()) for cell in self.cells)

    def milliseconds(self, evaluations: int) -> float | None:
        """Shortest time for 1,000 samples."""
        times = (cell["times"]["milliseconds_per_1000"].get(str(evaluations)) for cell in self.cells)
        return min((time for time in times if time is not None), default=None)


def lines_of(plan: Plan, contents: Sequence[Content]) -> list[Line]:
    """The lines of all methods that have a cell, in the order of the plan."""
    found = []
    for data in plan.data:
        here = [content for content in contents if content["data"] == data]
        done = [content for content in here if content["status"] == "done"]
        floor = done[0]["floor"] if done else None
        peers = [
            content["distances"][str(content["evaluations_per_sample"])]
            for content in done
            if content["method"] == BASELINE
        ]
        known = [peer for peer in peers if peer is not None]
        baseline = statistics.fmean(known) if known else None
        for method in plan.methods:
            mine = [content for content in here if content["method"] == method]
            cells = tuple(content for content in mine if content["status"] == "done")
            failed = tuple(content for content in mine if content["status"] != "done")
            if mine:
                found.append(Line(data, method, cells, failed, floor, baseline))
    return found


def ranked(lines: Sequence[Line], data: str, evaluations: int | None = None) -> list[Line]:
    """The finished methods on a data set but the baseline, by their distance in one evaluation, or in so many."""
    here = [line for line in lines if line.data == data and line.method != BASELINE]

    def distance(line: Line) -> float | None:
        return line.distance(evaluations or line.fewest or 1)

    return sorted((line for line in here if distance(line) is not None), key=lambda line: distance(line) or 0.0)
