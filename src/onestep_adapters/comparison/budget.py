"""Equal budgets: the number of updates, so that a method and its teacher use a given number of network evaluations.

What counts is in :mod:`onestep_adapters.methods.work`. A method that learns from a teacher pays for it: the teacher's
training gets a fixed share of the budget, the pairs that the teacher makes before training at most another, and the
method's own updates the rest.
"""

from typing import TypeVar

import attrs

from onestep_adapters.data import Dataset
from onestep_adapters.methods import Method
from onestep_adapters.methods.work import total_work
from onestep_core.errors import ConfigError

M = TypeVar("M", bound=Method)

TEACHER_SHARE = 0.3
"""Share of the budget that trains the teacher."""

PAIRS_SHARE = 0.2
"""Largest share of the budget for pairs that the teacher makes."""

_FEWEST = 20
"""Updates below which there is no training to speak of."""


@attrs.frozen
class Spent:
    """Network evaluations of a training, by what they are for.

    Attributes:
        updates: of the method's own updates.
        pairs: of the pairs that the teacher makes before them.
        teacher: of the teacher's training.
    """

    updates: int
    pairs: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.updates + self.pairs + self.teacher


def spent(options: Method, data: Dataset) -> Spent:
    """What the whole training of a method costs.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> from onestep_adapters.methods import FlowMatching
        >>> spent(FlowMatching(), open_dataset("8gaussians"))
        Spent(updates=1536000, pairs=0, teacher=0)
    """
    pairs = options.pairs_work.evaluations
    own = total_work(options, data).evaluations - pairs
    return Spent(own, pairs, 0 if options.teacher is None else total_work(options.teacher, data).evaluations)


def within_budget(options: M, data: Dataset, evaluations: int) -> M:
    """The options with as many updates as the budget allows, for the teacher too.

    Args:
        options: of a preset.
        data: the data set.
        evaluations: the budget.

    Raises:
        ConfigError: for a budget of too few updates.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> from onestep_adapters.methods import find_preset
        >>> data = open_dataset("8gaussians")
        >>> spent(within_budget(find_preset("reflow").options(data), data, 2_000_000), data)
        Spent(updates=999936, pairs=400000, teacher=599808)
    """
    changes = {}
    if options.teacher is not None:
        changes["teacher"] = _longest(options.teacher, data, int(TEACHER_SHARE * evaluations))
    if options.uses_pairs:
        solver_steps = options._pairs["solver_steps"]
        most = max(1, int(PAIRS_SHARE * evaluations) // (2 * solver_steps))
        changes["pairs"] = min(options.pairs, most)  # type: ignore[attr-defined]
    options = attrs.evolve(options, **changes)
    left = evaluations
    if options.teacher is not None:
        left -= total_work(options.teacher, data).evaluations
    return _longest(options, data, left)


def with_batch(options: M, batch: int) -> M:
    """The options with this number of samples in an update, of the teacher too.

    Example:
        >>> from onestep_adapters.methods import MeanFlow
        >>> with_batch(MeanFlow(), 64).training.batch
        64
    """
    training = attrs.evolve(options.training, batch=batch)
    if options.teacher is None:
        return attrs.evolve(options, training=training)
    teacher = with_batch(options.teacher, batch)
    return attrs.evolve(options, training=training, teacher=teacher)  # type: ignore[call-arg]


def _longest(options: M, data: Dataset, evaluations: int) -> M:
    """The options with the largest number of updates that costs at most so many evaluations, pairs included."""

    def of(steps: int) -> M:
        training = options.training
        every = max(1, min(training.checkpoint_every, steps // 4))
        return attrs.evolve(options, training=attrs.evolve(training, steps=steps, checkpoint_every=every))

    def cost(steps: int) -> int:
        return total_work(of(steps), data).evaluations

    # Nearly proportional, but for parts of a training whose updates cost more: a few steps of interpolation.
    least = cost(_FEWEST)
    low, high, guess = _FEWEST, None, _FEWEST * max(1, evaluations // max(1, least))
    while least <= evaluations and (high is None or high - low > 1):
        found = cost(guess)
        low, high = (guess, high) if found <= evaluations else (low, guess)
        guess = max(low + 1, round(guess * evaluations / found))
        guess = guess if high is None else min(guess, high - 1)
    if least > evaluations:
        raise ConfigError(
            f"a budget of {evaluations:,} network evaluations for {type(options).__name__}, which needs {least:,} for "
            f"{_FEWEST} updates: give a larger --budget"
        )
    return of(low)
