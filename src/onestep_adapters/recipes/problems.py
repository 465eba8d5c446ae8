"""What is learnt: data with a shape, perhaps classes, batches, and the same finish for every method's samples.

A problem draws everything from the generator it is given. ``groups`` is the number of classes, or one: drifting lays
its clouds out by class, contiguously.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from onestep_adapters.data.toys import TOYS
from onestep_adapters.recipes.names import choose

DIGITS = "digits"
"""Name of the problem with scikit-learn's images; every other name is a toy."""

PROBLEMS = (DIGITS, *TOYS)
"""All names."""


class Batch(NamedTuple):
    """Data ``[count, *shape]`` and classes ``[count]``, or ``None`` where there are none."""

    data: Tensor
    labels: Tensor | None


class Problem(Protocol):
    """Data to learn from."""

    @property
    def name(self) -> str:
        """Of the command line."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        ...

    @property
    def classes(self) -> int | None:
        """How many, or ``None``."""
        ...

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Training data with its classes; each ``alike`` in a row have one class."""
        ...

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` training samples of every class, the classes contiguous."""
        ...

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """At most ``count`` samples that no update sees, for monitors: fresh draws, or the validation split."""
        ...

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes to generate, with the frequencies of the training data."""
        ...

    def finish(self, samples: Tensor) -> Tensor:
        """What every method's samples go through before anybody looks at them."""
        ...


class ToyProblem:
    """A law in the plane, fresh draws at every step.

    Args:
        name: key of :data:`onestep_adapters.data.toys.TOYS`.

    Raises:
        ConfigError: for another name, with the nearest ones.

    Example:
        >>> problem = ToyProblem("8gaussians")
        >>> problem.batch(3, torch.Generator().manual_seed(0)).data.shape
        torch.Size([3, 2])
    """

    classes: int | None = None
    shape: tuple[int, ...] = (2,)

    def __init__(self, name: str) -> None:
        self.name = choose(name, TOYS, "toy")
        self.law = TOYS[name]

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Fresh draws, no classes: all are alike."""
        return Batch(self.law.sample(count, generator=generator), None)

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """One group: ``each`` fresh draws."""
        return self.law.sample(each, generator=generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """Fresh draws."""
        return self.law.sample(count, generator=generator)

    def labels(self, count: int, generator: torch.Generator) -> None:
        """No classes."""

    def finish(self, samples: Tensor) -> Tensor:
        """Unchanged."""
        return samples


def members(kinds: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """For each class asked for the place of one of its members, at random, where classes lie contiguously.

    Args:
        kinds: classes, ``[count]``.
        counts: how many members each class has, ``[classes]``; of those asked for at least one.
        generator: of the choice.

    Example:
        >>> members(torch.tensor([1, 1, 0]), torch.tensor([1, 1]), torch.Generator())
        tensor([1, 1, 0])
    """
    place = (torch.rand(len(kinds), generator=generator) * counts[kinds]).long()
    return (counts.cumsum(0) - counts)[kinds] + place


def open_problem(name: str) -> Problem:
    """The problem of a command-line name: ``digits`` or a toy.

    Raises:
        ConfigError: for an unknown name, with the nearest ones.
        MissingExtraError: for ``digits`` without scikit-learn.

    Example:
        >>> open_problem("checkerboard").shape
        (2,)
    """
    if choose(name, PROBLEMS, "data set") != DIGITS:
        return ToyProblem(name)
    # The digits are an extra: only asking for them imports scikit-learn.
    from onestep_adapters.recipes.digits import digits_problem

    return digits_problem()
