"""Which rows of a training split are drawn: any, of one class, or some of every class."""

import torch
from torch import Tensor

from onestep_adapters.data.dataset import members
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count


class ClassRows:
    """Random rows of a training split, with and without regard to their classes.

    Args:
        count: number of rows.
        labels: their classes ``[count]``, or ``None``.
        device: device of all draws.

    Example:
        >>> rows = ClassRows(4, torch.tensor([0, 1, 0, 1]), torch.device("cpu"))
        >>> rows.labels[rows.of_every_class(2, torch.Generator())].tolist()
        [0, 0, 1, 1]
    """

    def __init__(self, count: int, labels: Tensor | None, device: torch.device) -> None:
        self.count = count
        self.labels = None if labels is None else labels.to(device)
        kinds = torch.zeros(count, dtype=torch.int64, device=device) if self.labels is None else self.labels
        self._counts, self._by_class = kinds.bincount(), kinds.argsort(stable=True)

    def drawn(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Tensor:
        """``count`` rows with replacement; each ``alike`` consecutive rows have the same class.

        Raises:
            ConfigError: if a number is no whole number, at least 1.
        """
        require_count("count", count, least=1)
        require_count("alike", alike, least=1)
        index = torch.randint(self.count, (count,), generator=generator, device=generator.device)
        if alike > 1 and self.labels is not None:
            kinds = self.labels[index[::alike]].repeat_interleave(alike)[:count]
            index = self._by_class[members(kinds, self._counts, generator)]
        return index

    def of_every_class(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` different rows of every class; the rows of a class are contiguous.

        Raises:
            ConfigError: if a class has fewer than ``each`` rows.
        """
        require_count("each", each, least=1)
        smallest = int(self._counts.min())
        if each > smallest:
            raise ConfigError(
                f"cannot draw {each} positives of every class: the smallest class has {smallest}; draw fewer "
                "(for drifting: --positives)"
            )
        classes = self._by_class.split(self._counts.tolist())
        return torch.cat([m[torch.randperm(len(m), generator=generator, device=m.device)[:each]] for m in classes])

    def labels_of(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Classes of ``count`` rows drawn with replacement; ``None`` without classes."""
        return None if self.labels is None else self.labels[self.drawn(count, generator)]


def dequantised(samples: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """``samples`` plus uniform noise on ``[-level / 2, level / 2)``; unchanged for a level of zero.

    Source: Theis et al., A note on the evaluation of generative models, section 3.1, https://arxiv.org/abs/1511.01844.

    Example:
        >>> dequantised(torch.zeros(2), 0.0, torch.Generator())
        tensor([0., 0.])
    """
    if not level:
        return samples
    return samples + level * (torch.rand(samples.shape, generator=generator, device=generator.device) - 0.5)


def check_every_class_trains(name: str, labels: Tensor, class_names: tuple[str, ...] = ()) -> None:
    """Refuse a training split that lacks a class.

    Args:
        name: of the data set.
        labels: classes of the training split, ``[n]``.
        class_names: names of all classes; without them the classes are 0 to the largest label.

    Raises:
        ConfigError: with the classes that have no training sample.
    """
    counts = labels.bincount(minlength=len(class_names))
    if missing := (counts == 0).nonzero().squeeze(1).tolist():
        told = [class_names[k] for k in missing] if class_names else missing
        raise ConfigError(
            f"{name} has no training sample of the classes {told}: expected samples of every class, 0 to "
            f"{len(counts) - 1}"
        )
