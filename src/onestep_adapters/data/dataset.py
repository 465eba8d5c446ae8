"""What a data set is: a value with a shape, perhaps classes, training draws, splits, and a finish for samples.

Methods, runs and evaluation ask a data set for its members; nobody compares its name. A class of your own with these
members works wherever a name of the command line does. :class:`~onestep_adapters.data.arrays.ArrayDataset` makes one
from tensors.
"""

from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Kind: TypeAlias = Literal["points", "images"]
"""Kind of the samples. It selects the presets of a method and how samples are judged."""

SplitName: TypeAlias = Literal["train", "validation", "test"]
"""Train on ``train``, choose on ``validation``, read ``test`` once, in the report."""


class Batch(NamedTuple):
    """Data ``[count, *shape]`` and classes ``[count]``, or ``None`` without classes."""

    data: Tensor
    labels: Tensor | None


class Modes(NamedTuple):
    """Round Gaussian modes of a mixture: ``means`` ``[modes, d]``, ``weights`` ``[modes]``, one standard deviation."""

    means: Tensor
    weights: Tensor
    std: float


@runtime_checkable
class Dataset(Protocol):
    """Data to learn from. Every method draws from the generator that it is given, on the generator's device."""

    @property
    def name(self) -> str:
        """Name, kept in the run's configuration. Teachers and their pairs are kept by it: other data, another name."""
        ...

    @property
    def title(self) -> str:
        """Description for reports, in a few words."""
        ...

    @property
    def kind(self) -> Kind:
        """``points`` or ``images``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes, or ``None``."""
        ...

    @property
    def modes(self) -> Modes | None:
        """The modes, if the distribution is a mixture of equally wide round Gaussians; else ``None``."""
        ...

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Training samples with their classes; every ``alike`` consecutive samples have one class."""
        ...

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` training samples of every class; the samples of a class are contiguous."""
        ...

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """At most ``count`` samples that no update sees, for monitors: fresh draws, or the validation split."""
        ...

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes to generate, with the frequencies of the training data."""
        ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, finished: of the distribution, or of the training split with replacement."""
        ...

    def split(self, name: SplitName) -> Batch | None:
        """A whole split, finished, on the CPU; ``None`` for a distribution that is drawn anew every time."""
        ...

    def finish(self, samples: Tensor) -> Tensor:
        """What the samples of every method go through before they are judged: rounding to grey levels, for example."""
        ...


def members(kinds: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """The place of one random member for each class asked for, where the members of a class are contiguous.

    Args:
        kinds: classes, ``[count]``.
        counts: number of members of each class, ``[classes]``; at least one for each class asked for.
        generator: random generator.

    Example:
        >>> members(torch.tensor([1, 1, 0]), torch.tensor([1, 1]), torch.Generator())
        tensor([1, 1, 0])
    """
    place = (torch.rand(len(kinds), generator=generator, device=kinds.device) * counts[kinds]).long()
    return (counts.cumsum(0) - counts)[kinds] + place
