"""Affinities between a cloud and its targets, dense or in blocks of rows.

One object owns the blocks: it evaluates the log-kernels, masks self pairs, reduces for a coupling and multiplies
affinities into values. Dense keeps one matrix ``[.., n, m]`` a kernel; streamed evaluates it again for every
reduction, a block of rows at a time, in memory ``O((n + m) channel + block m)``. Both give the same numbers to
rounding.

Several kernels share what they can. Radial ones, on a processor and outside transforms, are *swept*: one block of
distances serves all of them, and one exponential a kernel serves the sums over rows and over columns. Exponentials
are taken below the row's largest, ``E_ij = exp(L_ij - top_i)``; then ``sum_i exp(top_i - c) E_ij`` is a column's sum
in units of ``exp(c)``, where ``c`` is the largest ``top`` of the block. What underflows in it is below
``tiny exp(c)``; a column whose sum is not far above that (no sample is near it) is reduced anew, exactly.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.kernels import distances, near, profile, squared_lengths
from onestep_core.precision import no_autocast
from onestep_core.protocols import Coupling, Kernel, Potentials

_DENSE_ELEMENTS = 2**24
"""Up to here one matrix is kept (64 MiB in float32); beyond it, blocks of a quarter of that."""
_SWEPT_ELEMENTS = 2**21
"""Of a block that is swept: it stays in a processor's cache."""


class Sums(NamedTuple):
    """``affinity @ values`` and the row sums of the affinity."""

    products: Tensor
    totals: Tensor


def block_rows(groups: int, n: int, m: int, block_size: int | None) -> int:
    """How many rows a block has: the caller's choice, or by shape.

    Raises:
        ConfigError: if ``block_size`` is given and not positive.
    """
    if block_size is not None:
        if block_size < 1:
            raise ConfigError(f"block_size = {block_size}: expected at least one row, or None to choose by shape")
        return min(block_size, n)
    if groups * n * m <= _DENSE_ELEMENTS:
        return n
    return max(1, min(n, _DENSE_ELEMENTS // (4 * groups * m)))


def _swept(*tensors: Tensor) -> bool:
    """Whether values may be looked at and buffers be overwritten: on a processor, outside transforms and graphs."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore
        return False
    return all(t.device.type == "cpu" and not t.requires_grad for t in tensors)


def _rows(x: Tensor, y: Tensor, block_size: int | None, *, swept: bool) -> list[slice]:
    groups, n, m = math.prod(x.shape[:-2]), x.shape[-2], y.shape[-2]
    size = block_rows(groups, n, m, block_size)
    if swept and block_size is None:
        size = max(1, min(n, _SWEPT_ELEMENTS // (groups * m)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def distance_blocks(
    x: Tensor, y: Tensor, *, themselves: bool, block_size: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """``|x_i - y_j|``, ``[.., rows, m]``, a block of rows at a time; the next may overwrite the one before.

    ``themselves``: the first ``n`` of ``y`` are ``x``.
    """
    swept = _swept(x, y)
    slices = _rows(x, y, block_size, swept=swept)
    if not swept:
        for rows in slices:
            yield rows, distances(x[..., rows, :], y)
        return
    a, b = (points.reshape(-1, *points.shape[-2:]) for points in (x, y))
    squares = squared_lengths(b)
    buffer = x.new_empty(len(a) * slices[0].stop * y.shape[-2])
    for rows in slices:
        shape = (len(a), rows.stop - rows.start, y.shape[-2])
        out = buffer[: math.prod(shape)].view(shape)
        block = near(a[:, rows], b, squares, own=rows.start if themselves else None, out=out)
        yield rows, block.view(*x.shape[:-2], *shape[1:])


class Affinities:
    """The pairs of ``x [.., n, key]`` and ``y [.., m, key]`` under one or several log-kernels.

    Args:
        x: keys of the samples.
        y: keys of the targets.
        kernels: each ``(x, y) -> log k``.
        self_penalties: the first ``n`` targets are the samples themselves, and each log-kernel of a sample with itself
            is lowered by this much, one number a kernel; infinity masks the pair. ``None``: targets are others.
        block_size: rows a block; ``None`` chooses by shape.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        kernels: Sequence[Kernel],
        *,
        self_penalties: Sequence[float] | None = None,
        block_size: int | None = None,
    ) -> None:
        self._x, self._y, self._kernels, self._self_penalties = x, y, list(kernels), self_penalties
        profiles = [profile(kernel) for kernel in kernels]
        self._profiles = [p for p in profiles if p is not None] if _swept(x, y) and None not in profiles else []
        self._block_size = block_size
        self._slices = _rows(x, y, block_size, swept=bool(self._profiles))
        once = len(self._slices) == 1 and not self._profiles
        self._dense = [self._evaluate(self._slices[0], k) for k in range(len(kernels))] if once else None
        self._apart: Tensor | None = None
        self._sums: list[Potentials] | None = None

    def _evaluate(self, rows: slice, kernel: int, columns: Tensor | None = None) -> Tensor:
        log_k = self._kernels[kernel](self._x[..., rows, :], self._y if columns is None else self._y[..., columns, :])
        if self._self_penalties is None:
            return log_k
        index = torch.arange(self._y.shape[-2], device=log_k.device)
        own = index[rows].unsqueeze(-1) == (index if columns is None else columns)
        penalty = self._self_penalties[kernel]
        if math.isinf(penalty):
            return log_k.masked_fill(own, -math.inf)
        return torch.where(own, log_k - penalty, log_k)

    def _evaluated(self) -> Iterator[tuple[slice, int, Tensor]]:
        for kernel in range(len(self._kernels)):
            for rows, log_k in self._blocks(kernel):
                yield rows, kernel, log_k

    def _blocks(self, kernel: int, columns: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Every block of one log-kernel."""
        for rows in self._slices:
            dense = self._dense is not None and columns is None
            yield rows, self._dense[kernel] if dense else self._evaluate(rows, kernel, columns)  # type: ignore[index]

    def _sweep(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Every block of every log-kernel, in one buffer: the next overwrites the one before."""
        blocks: Iterator[tuple[slice, Tensor]]
        if self._apart is None:
            themselves = self._self_penalties is not None
            blocks = distance_blocks(self._x, self._y, themselves=themselves, block_size=self._rows_a_block)
        else:
            blocks = iter([(self._slices[0], self._apart)])
        work: Tensor | None = None
        once, last = len(self._slices) == 1, len(self._profiles) - 1
        for rows, apart in blocks:
            if once:
                self._apart = apart
            for kernel, of in enumerate(self._profiles):
                if once or kernel < last:
                    work = torch.empty_like(apart) if work is None else work[..., : apart.shape[-2], :]
                    log_k = of(work.copy_(apart))
                else:
                    log_k = of(apart)
                if self._self_penalties is not None:
                    log_k.diagonal(rows.start, -2, -1).sub_(self._self_penalties[kernel])
                yield rows, kernel, log_k

    @property
    def _rows_a_block(self) -> int:
        return self._slices[0].stop

    def _reduced(self) -> list[Potentials]:
        """Both reductions of every swept kernel from zero potentials."""
        if self._sums is not None:
            return self._sums
        count, m, lead = len(self._profiles), self._y.shape[-2], self._x.shape[:-2]
        row = self._x.new_empty(count, *lead, self._x.shape[-2])
        column = self._x.new_full((count, *lead, m), -math.inf)
        highest = self._x.new_full((count, *lead, 1), -math.inf)
        for rows, kernel, log_k in self._sweep():
            top = _zero_if_masked(log_k.amax(-1))
            below = log_k.sub_(top.unsqueeze(-1)).exp_()
            row[kernel][..., rows] = top + below.sum(-1).log()
            base = top.amax(-1, keepdim=True)
            with no_autocast(below):
                part = ((top - base).exp().unsqueeze(-2) @ below).squeeze(-2)
            torch.logaddexp(column[kernel], part.log_().add_(base), out=column[kernel])
            torch.maximum(highest[kernel], base, out=highest[kernel])
        precision = torch.finfo(column.dtype)
        lost = column < highest + math.log(precision.tiny * self._x.shape[-2] / precision.eps)
        for kernel in range(count):
            anew = lost[kernel].reshape(-1, m).any(0).nonzero().squeeze(-1)
            if len(anew):
                column[kernel][..., anew] = self._columns(None, kernel, anew)
        self._sums = [Potentials(_zero_if_masked(r), _zero_if_masked(c)) for r, c in zip(row, column, strict=True)]
        return self._sums

    def rows(self, column: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_j (log_k - column)``, ``[.., n]``; 0 where every pair is masked."""
        if column is None and self._profiles:
            return self._reduced()[kernel].row
        parts = [
            (log_k if column is None else log_k - column.unsqueeze(-2)).logsumexp(-1)
            for _, log_k in self._blocks(kernel)
        ]
        return _zero_if_masked(joined(parts, -1))

    def columns(self, row: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_i (log_k - row)``, ``[.., m]``; 0 where every pair is masked."""
        if row is None and self._profiles:
            return self._reduced()[kernel].column
        return _zero_if_masked(self._columns(row, kernel))

    def _columns(self, row: Tensor | None, kernel: int, columns: Tensor | None = None) -> Tensor:
        total: Tensor | None = None
        for rows, log_k in self._blocks(kernel, columns):
            part = (log_k if row is None else log_k - row[..., rows].unsqueeze(-1)).logsumexp(-2)
            total = part if total is None else torch.logaddexp(total, part)
        if total is None:
            raise ConfigError("no samples: expected at least one")
        return total

    def potentials(self, coupling: Coupling) -> list[Potentials]:
        """What ``coupling`` makes of the two reductions of each kernel."""
        return [
            coupling(partial(self.rows, kernel=k), partial(self.columns, kernel=k)) for k in range(len(self._kernels))
        ]

    def blocks(
        self, potentials: Sequence[Potentials], *, weights: Tensor | None = None, floor: float = 0.0
    ) -> Iterator[tuple[slice, int, Tensor]]:
        """Every block of every affinity, ``[.., rows, m]``, to be overwritten: which rows, which kernel.

        Args:
            potentials: of each kernel, row ``[.., n]`` and column ``[.., m]``.
            weights: factor of each target, ``[.., m]``, after the coupling and the floor.
            floor: smallest affinity, before the weights.
        """
        for rows, kernel, log_k in self._sweep() if self._profiles else self._evaluated():
            row, column = potentials[kernel]
            row, column = row[..., rows].unsqueeze(-1), column.unsqueeze(-2)
            swept = bool(self._profiles)
            affinity = log_k.sub_(row).sub_(column).exp_() if swept else (log_k - row - column).exp()
            if floor > 0:
                affinity = affinity.clamp_(min=floor)
            yield rows, kernel, affinity if weights is None else affinity * weights.unsqueeze(-2)

    def apply(
        self, potentials: Sequence[Potentials], values: Tensor, *, weights: Tensor | None, power: int = 1
    ) -> list[Sums]:
        """For each kernel: weighted affinities to a power, times ``values [.., m, channel]``, and their row sums."""
        parts: list[list[Sums]] = [[] for _ in self._kernels]
        for _, kernel, affinity in self.blocks(potentials, weights=weights):
            powered = affinity if power == 1 else affinity.pow(power)
            with no_autocast(values):
                parts[kernel].append(Sums(powered @ values, powered.sum(-1)))
        return [Sums(joined([s.products for s in part], -2), joined([s.totals for s in part], -1)) for part in parts]


def joined(parts: list[Tensor], axis: int) -> Tensor:
    """Blocks of rows as one tensor; a lone block is not copied."""
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]


def _zero_if_masked(potential: Tensor) -> Tensor:
    return potential.masked_fill(potential == -math.inf, 0.0)
