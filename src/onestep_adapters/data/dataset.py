"""The protocol of a data set: shape, classes, training samples, splits, and a final step for generated samples.

Methods, runs and evaluation use only these members and never compare names. Your own class with these members can be
used in place of a built-in data set. :class:`~onestep_adapters.data.arrays.ArrayDataset` makes a data set from tensors.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Kind: TypeAlias = Literal["points", "images"]
"""Kind of the samples. It selects the presets of a method and the metrics."""

SplitName: TypeAlias = Literal["train", "validation", "test"]
"""Train on ``train``, choose options on ``validation``, and use ``test`` only once, for the report."""


class Batch(NamedTuple):
    """Data ``[count, *shape]``, and classes ``[count]`` or ``None``."""

    data: Tensor
    labels: Tensor | None


class Modes(NamedTuple):
    """Modes of a mixture of isotropic Gaussians: ``means`` ``[modes, d]``, ``weights`` ``[modes]``, one ``std``."""

    means: Tensor
    weights: Tensor
    std: float


@runtime_checkable
class Dataset(Protocol):
    """Training data. Every method uses the given generator and returns tensors on the generator's device."""

    @property
    def name(self) -> str:
        """Name, saved in the configuration of a run. Saved teachers are found by it: give other data another name."""
        ...

    @property
    def title(self) -> str:
        """Short description for reports."""
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
        """The modes, if the distribution is a mixture of isotropic Gaussians of equal width; else ``None``."""
        ...

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """``count`` training samples with classes. Each ``alike`` consecutive samples have the same class."""
        ...

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` training samples of every class; the samples of a class are contiguous."""
        ...

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """At most ``count`` samples for monitors, not used for training: new draws, or the validation split."""
        ...

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """``count`` classes, drawn with the frequencies of the training data; ``None`` without classes."""
        ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples for evaluation: from the distribution, or from the training split with replacement."""
        ...

    def split(self, name: SplitName) -> Batch | None:
        """A whole split for evaluation, on the CPU; ``None`` for a distribution without a fixed set of samples."""
        ...

    def finish(self, samples: Tensor) -> Tensor:
        """The final step applied to generated samples before evaluation, for example rounding to grey levels."""
        ...


def members(kinds: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """The index of one random member for each class in ``kinds``, for data sorted by class.

    Args:
        kinds: the wanted classes, ``[count]``.
        counts: number of members of each class, ``[classes]``; at least 1 for each wanted class.
        generator: random generator.

    Example:
        >>> members(torch.tensor([1, 1, 0]), torch.tensor([1, 1]), torch.Generator())
        tensor([1, 1, 0])
    """
    place = (torch.rand(len(kinds), generator=generator, device=kinds.device) * counts[kinds]).long()
    return (counts.cumsum(0) - counts)[kinds] + place


@runtime_checkable
class Reopenable(Protocol):
    """A data set that a run can open again: ``open_dataset(**source)``. Your own data sets need not have it."""

    @property
    def source(self) -> Mapping[str, Any] | None:
        """Arguments of :func:`~onestep_adapters.data.open_dataset`, in the form of JSON; ``None`` if there are none."""
        ...


@runtime_checkable
class PartlyRead(Protocol):
    """A data set that can read a part of a split. Of others the whole split is read."""

    def part(self, name: SplitName, count: int) -> Batch | None:
        """At most ``count`` samples of a split, evenly spaced; ``None`` if it is empty."""
        ...


def source_of(data: Dataset) -> dict[str, Any] | None:
    """The source of a data set, or ``None`` if it has none.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> source_of(open_dataset("checkerboard")) is None
        True
    """
    source = data.source if isinstance(data, Reopenable) else None
    return None if source is None else dict(source)


def part_of(data: Dataset, name: SplitName, count: int) -> Batch | None:
    """At most ``count`` samples of a split, evenly spaced; the whole split if it is not larger.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> part_of(open_dataset("digits"), "test", 100).data.shape
        torch.Size([100, 1, 8, 8])
    """
    if isinstance(data, PartlyRead):
        return data.part(name, count)
    whole = data.split(name)
    if whole is None or len(whole.data) <= count:
        return whole
    rows = evenly_spaced(len(whole.data), count)
    return Batch(whole.data[rows], None if whole.labels is None else whole.labels[rows])


def evenly_spaced(total: int, count: int) -> Tensor:
    """At most ``count`` of the rows 0 to ``total - 1``, evenly spaced.

    Example:
        >>> evenly_spaced(10, 3), evenly_spaced(2, 3)
        (tensor([0, 3, 6]), tensor([0, 1]))
    """
    count = min(total, count)
    return torch.arange(count) * total // max(count, 1)
