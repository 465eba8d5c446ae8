"""Queues of real samples, class by class: where drifting gets many positives of every class from small batches.

    push        the oldest samples of a class make room for the newest
    positives   of every class asked for, different samples, drawn evenly from all that its queue holds
    unconditional   the same from one queue over all classes, for the negatives of guidance

A batch of a loader holds a few samples of some classes; a drift needs dozens of each. All classes are one tensor, so
that a push or a draw is a few indexing operations on any device, whatever the number of classes. A class that holds
too little is an error that names it, or, where ``repeat=True`` says so, is drawn from with replacement; an empty one
is always an error. Nothing is ever made up.

A queue is a module: ``.to(device)`` moves it, its state is two tensors a ring and belongs into the checkpoint
(``companions={"queue": not_trained(queue)}``), after which a resumed run draws what the uninterrupted one would have.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError


class Rings(nn.Module):
    """Ring buffers of one capacity and one shape, one a row.

    Args:
        rows: how many, at least 1.
        capacity: samples in each, at least 1.
        shape: of one sample.
        dtype: of the samples.
        device: of the samples; generators of draws live there too.

    Raises:
        ConfigError: if there would be no row or no place.

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
        """Samples that each row holds, ``[rows]``."""
        return self.pushed.clamp(max=self.samples.shape[1])

    @torch.no_grad()
    def push(self, samples: Tensor, rows: Tensor) -> None:
        """Append ``samples`` ``[n, *shape]`` to their ``rows`` ``[n]``, in order; the oldest of a full row go.

        Raises:
            ConfigError: if shapes do not fit, a row does not exist, or fractions came to a queue of integers.
        """
        count, capacity = self.samples.shape[:2]
        if samples.shape[1:] != self.samples.shape[2:] or rows.shape != samples.shape[:1]:
            raise ConfigError(
                f"samples of shape {tuple(samples.shape)} with {tuple(rows.shape)} labels: expected "
                f"[n, {', '.join(map(str, self.samples.shape[2:]))}] and [n]"
            )
        kept = self.samples.dtype
        if samples.is_floating_point() and not kept.is_floating_point:
            raise ConfigError(f"samples of {samples.dtype} for a queue of {kept}: they would be rounded; convert them")
        self._known(rows)
        rows, order = rows.long().sort(stable=True)
        arriving = torch.bincount(rows, minlength=count)
        rank = torch.arange(len(rows), device=rows.device) - (arriving.cumsum(0) - arriving)[rows]
        stays = rank >= arriving[rows] - capacity
        rows, rank, order = rows[stays], rank[stays], order[stays]
        self.samples[rows, (self.pushed[rows] + rank) % capacity] = samples[order].to(self.samples)
        self.pushed += arriving

    def draw(self, rows: Tensor, each: int, *, repeat: bool, generator: torch.Generator | None, kind: str) -> Tensor:
        """``each`` samples of every row in ``rows``, ``[len(rows) * each, *shape]``, a row's contiguous.

        Raises:
            ConfigError: if a row does not exist, holds fewer than ``each`` and ``repeat`` is not set, or nothing.
        """
        self._known(rows)
        counts, capacity = self.counts[rows], self.samples.shape[1]
        if each < 1:
            raise ConfigError(f"{each} samples were asked for: expected at least one")
        short = counts < (1 if repeat else each)
        if bool(short.any()):
            found = {int(row): int(count) for row, count in zip(rows[short], counts[short], strict=True)}
            raise ConfigError(
                f"{each} samples were asked for where a {kind} holds fewer, {kind}: samples {found}: push more first, "
                "ask for fewer, or draw with repeat=True from those that hold any"
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
            raise ConfigError(f"classes as a {type(rows).__name__}: expected a tensor of integers, 0 to {last}")
        if rows.dtype.is_floating_point or rows.dtype.is_complex or rows.dtype == torch.bool:
            raise ConfigError(f"labels of {rows.dtype}: expected integers, 0 to {last}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) <= last:
            raise ConfigError(f"labels from {int(rows.min())} to {int(rows.max())}: expected 0 to {last}")


class SampleQueue(nn.Module):
    """The newest samples of every class, and the newest of all.

    Args:
        shape: of one sample.
        classes: how many; 1 where the data have none.
        capacity: samples kept of each class; 128 in the released training.
        unconditional: samples kept whatever their class, 0 for none; 1,000 in the released training.
        dtype: of the samples.
        device: of the samples; generators of draws live there too.

    Raises:
        ConfigError: for a count out of range.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770;
    lambertae/drifting, ``memory_bank.py``. There a class that holds too little is drawn from with replacement and an
    empty one gives zeros.

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
        """Samples that are kept of each class, ``[classes]``."""
        return self.by_class.counts

    @property
    def total(self) -> int:
        """Samples that are kept whatever their class."""
        return 0 if self.of_all is None else int(self.of_all.counts)

    def push(self, samples: Tensor, labels: Tensor | None = None) -> None:
        """Take in real samples ``[n, *shape]`` with their classes ``[n]``; without labels all are of class 0.

        Raises:
            ConfigError: if shapes do not fit, a class does not exist, or labels lack although there are classes.
        """
        if labels is None:
            if len(self.counts) > 1:
                raise ConfigError(f"samples without labels came to a queue of {len(self.counts)} classes: give labels")
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
            each: how many, at least 1.
            classes: which, and in which order, ``[group]``; all in theirs by default.
            repeat: a class that holds fewer, but some, is drawn from with replacement.
            generator: of the draw; torch's default one where ``None``.

        Raises:
            ConfigError: if a class holds fewer than ``each``, with ``repeat`` if it holds nothing.
        """
        rows = torch.arange(len(self.counts), device=self.counts.device) if classes is None else classes
        return self.by_class.draw(rows, each, repeat=repeat, generator=generator, kind="class")

    def unconditional(
        self, each: int, *, groups: int = 1, repeat: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """``each`` different samples of any class for every one of ``groups``: ``[groups * each, *shape]``.

        Raises:
            ConfigError: as :meth:`positives`, or if the queue keeps none.
        """
        if self.of_all is None:
            raise ConfigError("this queue keeps no unconditional samples: construct it with unconditional=1000")
        rows = torch.zeros(groups, dtype=torch.int64, device=self.counts.device)
        return self.of_all.draw(rows, each, repeat=repeat, generator=generator, kind="queue")
