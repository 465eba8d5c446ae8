"""A data set made from tensors, with three splits, and optionally with classes and grey levels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onestep_adapters.data.classes import ClassRows, check_every_class_trains, dequantised
from onestep_adapters.data.dataset import Batch, Kind, Modes, SplitName
from onestep_core.errors import ConfigError
from onestep_core.validators import whole_numbers


class ArrayDataset:
    """Tensors as a data set.

    Data with grey levels are *dequantised* for training: uniform noise is added whose width is the distance of two grey
    levels, because discrete values have no density. ``finish`` can round the generated samples to the levels again.

    Args:
        name: name of the data set.
        train: training samples ``[n, *shape]``, kept in torch's default floating type, and classes ``[n]``, integers
            from 0, or ``None``.
        validation: samples for choosing options; ``None`` for the training split.
        test: samples for the report; ``None`` for the validation split.
        kind: ``"images"`` or ``"points"``; by default ``"images"`` if a sample has three axes.
        level: distance of two grey levels in the data's units; 0 for data without levels.
        finish: function applied to samples before they are evaluated; by default none.
        title: description for reports; the name by default.

    Raises:
        ConfigError: for an empty name; if the numbers of samples and labels differ; for NaN or infinity; if the splits
            differ in shape; if only some splits have labels; if labels are not integers from 0; if a class has no
            training sample; or if a split has a class that the training split lacks.

    Source of dequantisation: Theis et al., A note on the evaluation of generative models, section 3.1,
    https://arxiv.org/abs/1511.01844.

    Example:
        >>> data = ArrayDataset("mine", Batch(torch.randn(50, 3), torch.arange(50) % 2))
        >>> data.shape, data.classes, data.kind
        ((3,), 2, 'points')
    """

    modes: Modes | None = None

    def __init__(
        self,
        name: str,
        train: Batch,
        validation: Batch | None = None,
        test: Batch | None = None,
        *,
        kind: Kind | None = None,
        level: float = 0.0,
        finish: Callable[[Tensor], Tensor] | None = None,
        title: str = "",
    ) -> None:
        if not isinstance(name, str) or not name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"name = {name!r}: expected the name of the data set, a text such as 'mine'")
        for found in (train, validation, test):
            if isinstance(found, Tensor):
                raise ConfigError(f"a tensor as a split of {name}: expected Batch(data, labels), or Batch(data, None)")
        given = {"train": train, "validation": validation or train, "test": test or validation or train}
        splits = {split: Batch(*found) for split, found in given.items()}
        for split, found in splits.items():
            _check(name, split, found, splits["train"])
        self._splits: dict[str, Batch] = {split: _kept(found) for split, found in splits.items()}
        train = self._splits["train"]
        self.name, self.title = name, title or name
        self.shape = tuple(train.data.shape[1:])
        if kind not in ("points", "images", None) or not 0 <= level < math.inf:
            raise ConfigError(
                f"kind = {kind!r}, level = {level!r} of {name}: expected points or images, and a level of zero or more"
            )
        self.kind: Kind = kind or ("images" if len(self.shape) == 3 else "points")
        self.classes = None if train.labels is None else int(train.labels.max()) + 1
        self._level, self._finish = level, finish
        if train.labels is not None:
            check_every_class_trains(name, train.labels)
        self._devices: dict[torch.device, _Placed] = {}

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Dequantised training samples with replacement; each ``alike`` consecutive samples have the same class."""
        placed = self._on(generator.device)
        index = placed.rows.drawn(count, generator, alike=alike)
        labels = None if placed.rows.labels is None else placed.rows.labels[index]
        return Batch(dequantised(placed.data[index], self._level, generator), labels)

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` different training samples of every class, dequantised; the samples of a class are contiguous.

        Raises:
            ConfigError: if a class has fewer than ``each`` samples.
        """
        placed = self._on(generator.device)
        index = placed.rows.of_every_class(each, generator)
        return dequantised(placed.data[index], self._level, generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """The first ``count`` samples of the validation split, dequantised."""
        return dequantised(self._splits["validation"].data[:count].to(generator.device), self._level, generator)

    def labels(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes of training samples drawn with replacement; ``None`` without classes."""
        return self._on(generator.device).rows.labels_of(count, generator)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training samples drawn with replacement, without dequantisation."""
        data = self._splits["train"].data
        device = "cpu" if generator is None else generator.device
        return data.to(device)[torch.randint(len(data), (count,), generator=generator, device=device)]

    def split(self, name: SplitName) -> Batch:
        """A whole split: samples and classes, without dequantisation.

        Raises:
            ConfigError: if there is no split of this name.
        """
        if name not in self._splits:
            raise ConfigError(f"no split is called {name!r}: expected 'train', 'validation' or 'test'")
        return self._splits[name]

    def finish(self, samples: Tensor) -> Tensor:
        """Apply the ``finish`` function of the data set."""
        return samples if self._finish is None else self._finish(samples)

    def _on(self, device: torch.device) -> "_Placed":
        if device not in self._devices:
            self._devices[device] = _Placed(self._splits["train"], device)
        return self._devices[device]


class _Placed:
    """The training split on one device, and how its rows are drawn."""

    def __init__(self, train: Batch, device: torch.device) -> None:
        self.data = train.data.to(device)
        self.rows = ClassRows(len(self.data), train.labels, device)


def _kept(split: Batch) -> Batch:
    """The split in torch's default floating type, with int64 labels: torch treats a uint8 index as a mask."""
    data = split.data.to(torch.get_default_dtype())
    return Batch(data, None if split.labels is None else split.labels.long())


def _check(name: str, split: str, found: Batch, train: Batch) -> None:
    """Check a split, then compare it with the training split. The training split has to be checked first."""
    data, labels = found
    where = f"the {split} split of {name}"
    if not all(isinstance(part, Tensor) for part in (data, data if labels is None else labels)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{where} is {type(data).__name__}, {type(labels).__name__}: expected two tensors, or None")
    if data.ndim < 2 or len(data) == 0 or not data.is_floating_point():
        raise ConfigError(
            f"{where} has data of shape {tuple(data.shape)} and {data.dtype}: expected at least one sample, "
            "floating point, [n, *shape]"
        )
    if broken := int((~data.flatten(1).isfinite()).any(1).sum()):
        raise ConfigError(f"{broken} of {len(data)} samples of {where} hold NaN or infinity: leave them out")
    if data.shape[1:] != train.data.shape[1:]:
        raise ConfigError(
            f"{where} has samples of {tuple(data.shape[1:])}: expected {tuple(train.data.shape[1:])}, as in the "
            "training split"
        )
    if (labels is None) != (train.labels is None):
        raise ConfigError(
            f"{where} has {'no labels' if labels is None else 'labels'}, the training split has "
            f"{'none' if train.labels is None else 'labels'}: give labels for every split, or for none"
        )
    if labels is None or train.labels is None:
        return
    if labels.shape != data.shape[:1] or not whole_numbers(labels) or int(labels.min()) < 0:
        raise ConfigError(
            f"{where} has labels of shape {tuple(labels.shape)} and {labels.dtype} for {len(data)} samples: expected "
            "one integer per sample, from 0"
        )
    largest, known = int(labels.max()), int(train.labels.max())
    if largest > known:
        raise ConfigError(f"{where} has class {largest}: expected 0 to {known}, the classes of the training split")
