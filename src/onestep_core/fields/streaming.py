"""Affinities between a cloud and its targets, dense or in blocks of rows.

One object owns the blocks: it evaluates the log-kernel, masks self pairs, reduces for a coupling and multiplies
affinities into values. Dense keeps the one matrix ``[.., n, m]``; streamed evaluates it again for every
reduction, a block of rows at a time, in memory ``O((n + m) channel + block m)``. Both give the same numbers to
rounding.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import no_autocast
from onestep_core.protocols import Coupling, Kernel, Potentials

_DENSE_ELEMENTS = 2**24
"""Up to here one matrix is kept (64 MiB in float32); beyond it, blocks of a quarter of that."""


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


class Affinities:
    """The pairs of ``x [.., n, key]`` and ``y [.., m, key]`` under a log-kernel.

    Args:
        x: keys of the samples.
        y: keys of the targets.
        kernel: ``(x, y) -> log k``.
        self_penalty: the first ``n`` targets are the samples themselves, and the log-kernel of each with itself is
            lowered by this much; infinity masks the pair. ``None``: targets are others.
        block_size: rows a block; ``None`` chooses by shape.
    """

    def __init__(
        self, x: Tensor, y: Tensor, kernel: Kernel, *, self_penalty: float | None = None, block_size: int | None = None
    ) -> None:
        self._x, self._y, self._kernel, self._self_penalty = x, y, kernel, self_penalty
        n, m = x.shape[-2], y.shape[-2]
        size = block_rows(math.prod(x.shape[:-2]), n, m, block_size)
        self._slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        self._dense = self._evaluate(self._slices[0]) if len(self._slices) == 1 else None

    def _evaluate(self, rows: slice) -> Tensor:
        log_k = self._kernel(self._x[..., rows, :], self._y)
        if self._self_penalty is None:
            return log_k
        index = torch.arange(log_k.shape[-1], device=log_k.device)
        own = index[rows].unsqueeze(-1) == index
        if math.isinf(self._self_penalty):
            return log_k.masked_fill(own, -math.inf)
        return torch.where(own, log_k - self._self_penalty, log_k)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in self._slices:
            yield rows, self._evaluate(rows) if self._dense is None else self._dense

    def rows(self, column: Tensor | None = None) -> Tensor:
        """``logsumexp_j (log_k - column)``, ``[.., n]``; 0 where every pair is masked."""
        parts = [
            (log_k if column is None else log_k - column.unsqueeze(-2)).logsumexp(-1) for _, log_k in self._blocks()
        ]
        return _zero_if_masked(torch.cat(parts, -1) if len(parts) > 1 else parts[0])

    def columns(self, row: Tensor | None = None) -> Tensor:
        """``logsumexp_i (log_k - row)``, ``[.., m]``; 0 where every pair is masked."""
        total: Tensor | None = None
        for rows, log_k in self._blocks():
            part = (log_k if row is None else log_k - row[..., rows].unsqueeze(-1)).logsumexp(-2)
            total = part if total is None else torch.logaddexp(total, part)
        if total is None:
            raise ConfigError("no samples: expected at least one")
        return _zero_if_masked(total)

    def potentials(self, coupling: Coupling) -> Potentials:
        """What ``coupling`` makes of the two reductions."""
        return coupling(self.rows, self.columns)

    def apply(
        self, potentials: Potentials, sets: list[tuple[slice, Tensor]], *, weights: Tensor | None, floor: float
    ) -> list[Sums]:
        """For each set of targets: affinities times values, and row sums.

        Args:
            potentials: row ``[.., n]`` and column ``[.., m]``.
            sets: which targets, and their values ``[.., |set|, channel]``.
            weights: factor of each target, ``[.., m]``, after the coupling and the floor.
            floor: smallest affinity, before the weights.
        """
        parts: list[list[Sums]] = [[] for _ in sets]
        for rows, log_k in self._blocks():
            affinity = (log_k - potentials.row[..., rows].unsqueeze(-1) - potentials.column.unsqueeze(-2)).exp()
            if floor > 0:
                affinity = affinity.clamp(min=floor)
            if weights is not None:
                affinity = affinity * weights.unsqueeze(-2)
            for part, (chosen, values) in zip(parts, sets, strict=True):
                share = affinity[..., chosen]
                with no_autocast(values):
                    part.append(Sums(share @ values, share.sum(-1)))
        return [
            Sums(torch.cat([s.products for s in part], -2), torch.cat([s.totals for s in part], -1))
            if len(part) > 1
            else part[0]
            for part in parts
        ]


def _zero_if_masked(potential: Tensor) -> Tensor:
    return potential.masked_fill(potential == -math.inf, 0.0)
