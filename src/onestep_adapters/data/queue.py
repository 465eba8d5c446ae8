"""Queues of real samples, one for each class. Drifting draws many positives of every class from them.

    push            append new samples; the oldest samples of a full queue are removed
    positives       different samples of every wanted class, drawn uniformly from the queue of the class
    unconditional   different samples of any class, drawn uniformly from one more queue, for the negatives of guidance

A batch from a data loader has few samples of some classes, but a drift needs dozens of samples of each class. All
classes are stored in one tensor. So a push or a draw takes a few indexing operations on any device, for any number of
classes. If a class has too few samples, the error names the class; with ``repeat=True`` its samples are drawn with
replacement instead. An empty class is always an error.

A queue is a module: ``.to(device)`` moves it. Its state is two tensors per :class:`Rings`. Put it into the checkpoint
(``companions={"queue": not_trained(queue)}``); then a resumed run draws the same samples as a run without interruption.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError
from onestep_core.validators import whole_numbers


class Rings(nn.Module):
    """Ring buffers with the same capacity and sample shape; each row is one buffer.

    Args:
        rows: number of buffers, at least 1.
        capacity: number of samples per buffer, at least 1.
        shape: shape of one sample.
        dtype: dtype of the samples.
        device: device of the samples; generators for draws have to be on this device.

    Raises:
        ConfigError: if ``rows`` or ``capacity`` is below 1.

    Example:
        >>> rings = Rings(2, 3, ())
        >>> rings.push(torch.arange(5.0), torch.tensor([0, 1, 0, 0, 0]))
        >>> rings.counts.tolist(), rings.samples[0].tolist()
        ([3, 1], [4.0, 2.0, 3.0])
    """

    samples: Tensor
    pushed: Tensor

    def __init__(
        self,
        rows: int,
        capacity: int,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if rows < 1 or capacity < 1:
            raise ConfigError(f"{rows} queues of {capacity} samples: expected at least one of each")
        self.register_buffer("samples", torch.zeros(rows, capacity, *shape, dtype=dtype, device=device))
        self.register_buffer("pushed", torch.zeros(rows, dtype=torch.int64, device=device))

    @property
    def counts(self) -> Tensor:
        """Number of samples in each row, ``[rows]``."""
        return self.pushed.clamp(max=self.samples.shape[1])

    @torch.no_grad()
    def push(self, samples: Tensor, rows: Tensor) -> None:
        """Append ``samples`` ``[n, *shape]`` to ``rows`` ``[n]``, in order; a full row drops its oldest samples.

        Raises:
            ConfigError: if shapes do not fit, a row does not exist, or floating-point samples are given to a queue of
                integers.
        """
        count, capacity = self.samples.shape[:2]
        if samples.shape[1:] != self.samples.shape[2:] or rows.shape != samples.shape[:1]:
            raise ConfigError(
                f"samples of shape {tuple(samples.shape)} with {tuple(rows.shape)} labels: expected "
                f"[n, {', '.join(map(str, self.samples.shape[2:]))}] and [n]"
            )
        kept = self.samples.dtype
        if samples.is_floating_point() and not kept.is_floating_point:
            raise ConfigError(
                f"samples of {samples.dtype} for a queue of {kept} would be rounded: convert the samples first"
            )
        self._known(rows)
        rows, order = rows.long().sort(stable=True)
        arriving = torch.bincount(rows, minlength=count)
        rank = torch.arange(len(rows), device=rows.device) - (arriving.cumsum(0) - arriving)[rows]
        stays = rank >= arriving[rows] - capacity
        rows, rank, order = rows[stays], rank[stays], order[stays]
        self.samples[rows, (self.pushed[rows] + rank) % capacity] = samples[order].to(self.samples)
        self.pushed += arriving

    def draw(self, rows: Tensor, each: int, *, repeat: bool, generator: torch.Generator | None, kind: str) -> Tensor:
        """``each`` samples of every row in ``rows``, ``[len(rows) * each, *shape]``, those of a row contiguous.

        Raises:
            ConfigError: if a row does not exist or is empty, or has fewer than ``each`` samples without ``repeat``.
        """
        self._known(rows)
        counts, capacity = self.counts[rows], self.samples.shape[1]
        if each < 1:
            raise ConfigError(f"cannot draw {each} samples: expected at least one")
        short = counts < (1 if repeat else each)
        if bool(short.any()):
            found = {int(row): int(count) for row, count in zip(rows[short], counts[short], strict=True)}
            raise ConfigError(
                f"a {kind} has fewer than {each} samples (number of samples by {kind}: {found}): push more first, draw "
                "fewer, or draw with repeat=True if there is at least one sample"
            )
        keys = torch.rand(len(rows), capacity, generator=generator, device=self.samples.device)
        empty = torch.arange(capacity, device=keys.device) >= counts[:, None]
        place = keys.masked_fill(empty, 2.0).topk(min(each, capacity), largest=False).indices
        if repeat:
            again = torch.rand(len(rows), each, generator=generator, device=self.samples.device) * counts[:, None]
            place = nn.functional.pad(place, (0, each - place.shape[1]))
            place = torch.where(counts[:, None] < each, again.long(), place)
        return self.samples[rows[:, None], place].flatten(0, 1)

    def _known(self, rows: Tensor) -> None:
        last = len(self.pushed) - 1
        if not isinstance(rows, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"classes given as {type(rows).__name__}: expected a tensor of integers, 0 to {last}")
        if not whole_numbers(rows):
            raise ConfigError(f"labels of {rows.dtype}: expected integers, 0 to {last}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) <= last:
            raise ConfigError(f"labels from {int(rows.min())} to {int(rows.max())}: expected 0 to {last}")


class SampleQueue(nn.Module):
    """The newest samples of every class, and the newest samples of all classes together.

    Args:
        shape: shape of one sample.
        classes: number of classes; 1 for data without classes.
        capacity: number of samples kept for each class; 128 in the released code.
        unconditional: number of samples kept for all classes together, 0 for none; 1,000 in the released code.
        dtype: dtype of the samples.
        device: device of the samples; generators for draws have to be on this device.

    Raises:
        ConfigError: if a number is out of range.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``memory_bank.py``. There a class with too few samples is drawn from with replacement, and an
    empty class gives zeros.

    Example:
        >>> queue = SampleQueue((2,), classes=3, capacity=8, unconditional=16)
        >>> queue.push(torch.randn(30, 2), torch.arange(30) % 3)
        >>> queue.positives(4).shape, queue.unconditional(5, groups=3).shape
        (torch.Size([12, 2]), torch.Size([15, 2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 1,
        capacity: int = 128,
        unconditional: int = 1000,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if unconditional < 0:
            raise ConfigError(f"unconditional = {unconditional}: expected a number of samples, or 0 for none")
        self.by_class = Rings(classes, capacity, shape, dtype=dtype, device=device)
        self.of_all = Rings(1, unconditional, shape, dtype=dtype, device=device) if unconditional else None

    @property
    def counts(self) -> Tensor:
        """Number of samples kept for each class, ``[classes]``."""
        return self.by_class.counts

    @property
    def total(self) -> int:
        """Number of samples kept in the queue of all classes."""
        return 0 if self.of_all is None else int(self.of_all.counts)

    def push(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Append real samples ``[n, *shape]`` with their classes ``[n]``; without labels all have class 0.

        Raises:
            ConfigError: if shapes do not fit, a class does not exist, or labels are missing for several classes.
        """
        if labels is None:
            if len(self.counts) > 1:
                raise ConfigError(f"samples without labels for a queue of {len(self.counts)} classes: give labels")
            labels = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
        self.by_class.push(samples, labels)
        if self.of_all is not None:
            self.of_all.push(samples, torch.zeros_like(labels))

    def positives(
        self,
        each: int,
        *,
        classes: Tensor | None = None,
        repeat: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``each`` different samples of every class, the classes contiguous: ``[classes * each, *shape]``.

        Args:
            each: number of samples per class, at least 1.
            classes: the wanted classes in the wanted order, ``[group]``; by default all classes from 0.
            repeat: if a class has at least one but fewer than ``each`` samples, draw with replacement.
            generator: random generator; ``None`` for torch's default generator.

        Raises:
            ConfigError: if a class has fewer than ``each`` samples; with ``repeat``, if a class is empty.
        """
        rows = torch.arange(len(self.counts), device=self.counts.device) if classes is None else classes
        return self.by_class.draw(rows, each, repeat=repeat, generator=generator, kind="class")

    def unconditional(
        self, each: int, *, groups: int = 1, repeat: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """``each`` different samples of any class for each of ``groups``: ``[groups * each, *shape]``.

        Raises:
            ConfigError: as :meth:`positives`, or if the queue was made with ``unconditional=0``.
        """
        if self.of_all is None:
            raise ConfigError("this queue keeps no unconditional samples: construct it with unconditional=1000")
        rows = torch.zeros(groups, dtype=torch.int64, device=self.counts.device)
        return self.of_all.draw(rows, each, repeat=repeat, generator=generator, kind="queue")
