"""Distances between two clouds, a block of rows at a time: what log-kernels are evaluated from.

On a CPU and outside transforms blocks are *swept*: their sizes are chosen for the caches, one buffer holds one block
after another, and the first blocks are kept for the next pass.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.affinity.near import near, squared_lengths
from onestep_core.fields.euclidean import distances
from onestep_core.validators import untraced

_DENSE_ELEMENTS = 2**24
"""Largest matrix that is kept whole (64 MiB in float32); larger ones are made in blocks of a quarter of it."""
_KEPT_ELEMENTS = 5 * 2**22
"""Elements of the first swept blocks that are kept for the next sweep."""
_SWEPT_ELEMENTS = 2**22
"""Elements of one block of distances, and of one buffer for all kernels: each fits the last cache of a CPU, and a
product has enough rows."""
_GROUPED_ELEMENTS = 2**20
"""Elements of several small groups that are swept together, their points included: they fit the cache of one core."""

Block: TypeAlias = tuple[slice, slice]
"""Slices of the groups and of their rows."""


def block_rows(groups: int, n: int, m: int, block_size: int | None, *, most: int | None = None) -> int:
    """Rows of a block: the caller's choice, else by shape; all rows if that makes at most ``most`` elements.

    Raises:
        ConfigError: if ``block_size`` is given and not positive.
    """
    if block_size is not None:
        if block_size < 1:
            raise ConfigError(f"block_size = {block_size}: expected at least one row, or None to choose by shape")
        return min(block_size, n)
    most = _DENSE_ELEMENTS if most is None else most
    if groups * n * m <= most:
        return n
    return max(1, min(n, most // (4 * groups * m)))


def steps(count: int, step: int) -> list[slice]:
    """Slices of ``step`` that cover ``count``; the last one may be shorter."""
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def flat(points: Tensor) -> Tensor:
    """``[group, n, channel]``."""
    return points.reshape(math.prod(points.shape[:-2]), *points.shape[-2:])


def swept_rows(n: int, m: int) -> int:
    """Rows that are swept at a time, of ``n`` rows of ``m`` elements: a multiple of a product's tile, if possible."""
    rows = max(1, min(n, _SWEPT_ELEMENTS // m))
    return rows - rows % 128 if 128 < rows < n else rows


def _tiles(groups: int, n: int, m: int, channels: int, *, kernels: int, block_size: int | None) -> list[Block]:
    """The blocks of a sweep: several small groups whole, or some rows of one group."""
    rows = swept_rows(n, m) if block_size is None else block_rows(groups, n, m, block_size)
    whole = max(1, _GROUPED_ELEMENTS // (kernels * n * m + (n + m) * channels))
    return [(part, block) for part in steps(groups, whole if rows == n else 1) for block in steps(n, rows)]


class Distances:
    """``|x_i - y_j|`` in blocks ``[group, rows, m]``: leading axes are one. Blocks are to be left as they are.

    On a CPU and outside transforms the first ones are kept from pass to pass, and others are overwritten by the
    next: read each before the next comes.

    Args:
        x: points, ``[.., n, channel]``.
        y: points, ``[.., m, channel]``.
        themselves: the first ``n`` of ``y`` are ``x``.
        kernels: number of further matrices of a block's size that the caller holds.
        block_size: rows a block; ``None`` chooses by shape.

    Attributes:
        swept: whether values may be looked at and buffers be overwritten.
        blocks: the blocks of one pass.
    """

    def __init__(self, x: Tensor, y: Tensor, *, themselves: bool, kernels: int = 1, block_size: int | None) -> None:
        self._x, self._y, self._themselves = flat(x), flat(y), themselves
        groups, n, m = len(self._x), x.shape[-2], y.shape[-2]
        self.swept = may_sweep(x, y)
        if self.swept:
            self.blocks = _tiles(groups, n, m, x.shape[-1], kernels=kernels, block_size=block_size)
        else:
            self.blocks: list[Block] = [(slice(None), r) for r in steps(n, block_rows(groups, n, m, block_size))]
        self._squares: Tensor | None = None
        self._kept: list[Tensor] = []
        self._buffer: Tensor | None = None

    @property
    def largest(self) -> int:
        """Elements of the largest block of a sweep."""
        return max(((p.stop - p.start) * (r.stop - r.start) for p, r in self.blocks), default=0) * self._y.shape[-2]

    def __iter__(self) -> Iterator[tuple[Block, Tensor]]:
        """One pass."""
        largest = self.largest if self.swept else 0
        for position, block in enumerate(self.blocks):
            if position < len(self._kept):
                yield block, self._kept[position]
            elif not self.swept:
                yield block, distances(self._x[:, block[1]], self._y)
            else:
                apart = self._block(*block)
                if position == len(self._kept) and (position + 1) * largest <= _KEPT_ELEMENTS:
                    self._kept.append(apart)
                else:
                    self._buffer = apart
                yield block, apart

    def _block(self, groups: slice, rows: slice) -> Tensor:
        if self._squares is None:
            self._squares = squared_lengths(self._y)
        x, y = self._x[groups, rows], self._y[groups]
        shape = (len(x), x.shape[-2], y.shape[-2])
        buffer, self._buffer = self._buffer, None
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = x.new_empty(shape)
        out = buffer.view(-1)[: math.prod(shape)].view(shape)
        return near(x, y, self._squares[groups], own=rows.start if self._themselves else None, out=out)


def may_sweep(*tensors: Tensor) -> bool:
    """Whether values may be read: :func:`plain` tensors on a CPU."""
    return plain(*tensors) and all(t.device.type == "cpu" for t in tensors)


def plain(*tensors: Tensor) -> bool:
    """Whether these are tensors as they come, without gradient, outside transforms, graphs and tracing modes."""
    return untraced() and all(type(t) in (Tensor, torch.nn.Parameter) and not t.requires_grad for t in tensors)
