"""Affinities between a cloud and its targets, dense or in blocks of rows.

One object owns the blocks: it evaluates the log-kernels, masks self pairs, reduces for a coupling and multiplies
affinities into values. Dense keeps one matrix ``[.., n, m]`` a kernel; streamed evaluates it again for every
reduction, a block of rows at a time, in memory ``O((n + m) channel + block m)``. Both give the same numbers to
rounding.

Several kernels share what they can. Radial ones, on a CPU and outside transforms, are *swept*: one block of
distances serves all of them, their logarithms stand above one another in one buffer, so that one product serves them
all, and the distances of the first blocks are kept for the next sweep. One exponential a kernel serves the sums over
rows and over columns. Exponentials are taken below the row's largest, ``E_ij = exp(L_ij - top_i)``; then
``sum_i exp(top_i - c) E_ij`` is a column's sum in units of ``exp(c)``, where ``c`` is the largest ``top`` of the block.
What underflows in it is below ``tiny exp(c)``; a column whose sum is not far above that (no sample is near it) is
reduced anew, exactly. All of it is in powers of two: ``exp2`` takes a third of the time of ``exp``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from onestep_core.fields.affinity.streamed_distances import Block, Distances, block_rows, flat, steps, swept_rows
from onestep_core.fields.euclidean import squared_distances
from onestep_core.fields.kernel_forms import LOG2_E
from onestep_core.fields.kernels import from_squares, profile
from onestep_core.precision import no_autocast
from onestep_core.protocols import Coupling, Kernel, Potentials


class Sums(NamedTuple):
    """``affinity @ values`` and the row sums of the affinity."""

    products: Tensor
    totals: Tensor


class Affinities:
    """The pairs of ``x [.., n, key]`` and ``y [.., m, key]`` under one or several log-kernels.

    Args:
        x: keys of the samples.
        y: keys of the targets.
        kernels: each ``(x, y) -> log k``.
        self_penalties: the first ``n`` targets are the samples themselves, and each log-kernel of a sample with itself
            is lowered by this much, one number a kernel; infinity masks the pair. ``None``: targets are others.
        block_size: rows a block; ``None`` chooses by shape.
        apart: distances of the same points for as many kernels, of which some may be kept already.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        kernels: Sequence[Kernel],
        *,
        self_penalties: Sequence[float] | None = None,
        block_size: int | None = None,
        apart: Distances | None = None,
    ) -> None:
        self._x, self._y, self._kernels, self._self_penalties = x, y, list(kernels), self_penalties
        themselves = self_penalties is not None
        self._distances = apart or Distances(x, y, themselves=themselves, kernels=len(kernels), block_size=block_size)
        profiles = [profile(kernel) for kernel in kernels]
        self._profiles = [p for p in profiles if p is not None] if self._distances.swept and all(profiles) else []
        self._slices = steps(x.shape[-2], block_rows(math.prod(x.shape[:-2]), x.shape[-2], y.shape[-2], block_size))
        once = len(self._slices) == 1 and not self._profiles
        self._dense = self._all_at_once() if once else None
        self._work: Tensor | None = None
        self._sums: Potentials | None = None

    def _all_at_once(self) -> list[Tensor]:
        """Each log-kernel of every pair; several radial ones share their distances."""
        profiles = [from_squares(kernel) for kernel in self._kernels]
        if len(profiles) == 1 or not all(profiles):
            return [self._evaluate(self._slices[0], kernel) for kernel in range(len(profiles))]
        squares = squared_distances(self._x, self._y)
        return [self._masked(p(squares), self._slices[0], kernel) for kernel, p in enumerate(profiles) if p is not None]

    def _evaluate(self, rows: slice, kernel: int, columns: Tensor | None = None) -> Tensor:
        log_k = self._kernels[kernel](self._x[..., rows, :], self._y if columns is None else self._y[..., columns, :])
        return self._masked(log_k, rows, kernel, columns)

    def _masked(self, log_k: Tensor, rows: slice, kernel: int, columns: Tensor | None = None) -> Tensor:
        if self._self_penalties is None:
            return log_k
        index = torch.arange(self._y.shape[-2], device=log_k.device)
        own = index[rows].unsqueeze(-1) == (index if columns is None else columns)
        penalty = self._self_penalties[kernel]
        if penalty == math.inf:  # a number that torch compiles with is no float for math.isinf
            return log_k.masked_fill(own, -math.inf)
        return torch.where(own, log_k - penalty, log_k)

    def _evaluated(self, kernel: int, columns: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Every block of one log-kernel, ``[.., rows, m]``."""
        for rows in self._slices:
            dense = self._dense is not None and columns is None
            yield rows, self._dense[kernel] if dense else self._evaluate(rows, kernel, columns)  # type: ignore[index]

    def _sweep(self, kernels: Sequence[int]) -> Iterator[tuple[Block, Tensor]]:
        """Some rows of ``log2 k``, ``[group, kernel, rows, m]``, in one buffer: the next overwrite the last."""
        for (part, block), apart in self._distances:
            groups, n, m = apart.shape
            for some in steps(n, swept_rows(n, groups * m * len(kernels))):
                rows, few = slice(block.start + some.start, block.start + some.stop), apart[:, some]
                shape = (groups, len(kernels), *few.shape[1:])
                if self._work is None or self._work.numel() < math.prod(shape):
                    self._work = few.new_empty(math.prod(shape))
                stack = self._work[: math.prod(shape)].view(shape)
                for position, kernel in enumerate(kernels):
                    log_k = stack[:, position]
                    self._profiles[kernel](few, log_k)
                    if self._self_penalties is not None:
                        log_k.diagonal(rows.start, -2, -1).sub_(self._self_penalties[kernel] * LOG2_E)
                yield (part, rows), stack

    def _reduced(self) -> Potentials:
        """Both reductions of every swept kernel from zero potentials, ``[group, kernel, n]`` and ``[.., m]``."""
        if self._sums is not None:
            return self._sums
        groups, count = math.prod(self._x.shape[:-2]), len(self._profiles)
        n, m = self._x.shape[-2], self._y.shape[-2]
        row = self._x.new_empty(groups, count, n)
        column = self._x.new_full((groups, count, m), -math.inf)
        highest = self._x.new_full((groups, count, 1), -math.inf)
        for (part, rows), stack in self._sweep(range(count)):
            top = zero_if_masked(stack.amax(-1))
            below = stack.sub_(top.unsqueeze(-1)).exp2_()
            row[part, :, rows] = below.sum(-1).log2_().add_(top)
            base = top.amax(-1, keepdim=True)
            with no_autocast(below):
                summed = (top.sub_(base).exp2_().unsqueeze(-2) @ below).squeeze(-2)
            torch.logaddexp2(column[part], summed.log2_().add_(base), out=column[part])
            torch.maximum(highest[part], base, out=highest[part])
        precision = torch.finfo(column.dtype)
        lost = column < highest + math.log2(precision.tiny * n / precision.eps)
        row, column = row.div_(LOG2_E), column.div_(LOG2_E)
        for kernel in range(count):
            anew = lost[:, kernel].any(0).nonzero().squeeze(-1)
            if len(anew):
                column[:, kernel, anew] = self._columns(None, kernel, anew).reshape(groups, -1)
        self._sums = Potentials(zero_if_masked(row), zero_if_masked(column))
        return self._sums

    def rows(self, column: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_j (log_k - column)``, ``[.., n]``; 0 where every pair is masked."""
        shape = self._x.shape[:-1]
        if not self._profiles:
            parts = [
                (log_k if column is None else log_k - column.unsqueeze(-2)).logsumexp(-1)
                for _, log_k in self._evaluated(kernel)
            ]
            return zero_if_masked(joined(parts, -1))
        if column is None:
            return self._reduced().row[:, kernel].reshape(shape)
        column = self._per_group(column)[:, None, None] * LOG2_E
        row = self._x.new_empty(len(column), shape[-1])
        for (part, rows), stack in self._sweep([kernel]):
            row[part, rows] = _log2sumexp2(stack.sub_(column[part]), -1).squeeze(1)
        return zero_if_masked(row.div_(LOG2_E)).reshape(shape)

    def columns(self, row: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_i (log_k - row)``, ``[.., m]``; 0 where every pair is masked."""
        shape = self._y.shape[:-1]
        if not self._profiles:
            return zero_if_masked(self._columns(row, kernel))
        if row is None:
            return self._reduced().column[:, kernel].reshape(shape)
        row = self._per_group(row)[:, None, :, None] * LOG2_E
        column = self._x.new_full((len(row), shape[-1]), -math.inf)
        for (part, rows), stack in self._sweep([kernel]):
            summed = _log2sumexp2(stack.sub_(row[part, :, rows]), -2).squeeze(1)
            torch.logaddexp2(column[part], summed, out=column[part])
        return zero_if_masked(column.div_(LOG2_E)).reshape(shape)

    def _columns(self, row: Tensor | None, kernel: int, columns: Tensor | None = None) -> Tensor:
        parts = [
            (log_k if row is None else log_k - row[..., rows].unsqueeze(-1)).logsumexp(-2)
            for rows, log_k in self._evaluated(kernel, columns)
        ]
        return torch.stack(parts).logsumexp(0) if len(parts) > 1 else parts[0]

    def _per_group(self, values: Tensor) -> Tensor:
        """``[group, count]`` of values ``[.., count]``, or of ``[count]`` for all groups."""
        lead = self._x.shape[:-2]
        return values.expand(*lead, values.shape[-1]).reshape(math.prod(lead), values.shape[-1])

    def potentials(self, coupling: Coupling) -> list[Potentials]:
        """The potentials of ``coupling`` from the two reductions of each kernel."""
        return [
            coupling(partial(self.rows, kernel=k), partial(self.columns, kernel=k)) for k in range(len(self._kernels))
        ]

    def products(
        self,
        potentials: Sequence[Potentials],
        values: Tensor,
        *,
        weights: Tensor | None = None,
        floor: float = 0.0,
        factors: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """For each kernel: affinities ``[.., n, m]`` times ``values [.., m, channel]``.

        Args:
            potentials: those of each kernel, row ``[.., n]`` and column ``[.., m]``.
            values: values to sum.
            weights: factor of each target, ``[.., m]``, after the coupling and the floor.
            floor: smallest affinity, before the weights.
            factors: makes of affinities ``[.., rows, m]``, which it may overwrite, what is multiplied in their place.
        """
        if self._profiles:
            return self._swept_products(potentials, values, weights, floor, factors)
        parts: list[list[Tensor]] = [[] for _ in self._kernels]
        for kernel, (row, column) in enumerate(potentials):
            for rows, log_k in self._evaluated(kernel):
                affinity = (log_k - row[..., rows].unsqueeze(-1) - column.unsqueeze(-2)).exp()
                if floor > 0:
                    affinity = affinity.clamp(min=floor)
                if weights is not None:
                    affinity = affinity * weights.unsqueeze(-2)
                with no_autocast(values):
                    parts[kernel].append((affinity if factors is None else factors(affinity)) @ values)
        return [joined(part, -2) for part in parts]

    def _swept_products(
        self,
        potentials: Sequence[Potentials],
        values: Tensor,
        weights: Tensor | None,
        floor: float,
        factors: Callable[[Tensor], Tensor] | None,
    ) -> list[Tensor]:
        points, count, n = flat(values), len(self._profiles), self._x.shape[-2]
        row, column = (
            torch.stack([self._per_group(each) for each in of], 1) * LOG2_E for of in zip(*potentials, strict=True)
        )
        of_targets = None if weights is None else self._per_group(weights)[:, None, None]
        out = points.new_empty(len(points), count, n, points.shape[-1])
        for (part, rows), stack in self._sweep(range(count)):
            stack.sub_(row[part, :, rows].unsqueeze(-1)).sub_(column[part].unsqueeze(-2)).exp2_()
            if floor > 0:
                stack.clamp_(min=floor)
            if of_targets is not None:
                stack.mul_(of_targets[part])
            stacked = (stack if factors is None else factors(stack)).flatten(1, 2)
            with no_autocast(values):
                if stack.shape[-2] == n:
                    torch.bmm(stacked, points[part], out=out[part].flatten(1, 2))
                else:
                    out[part, :, rows] = torch.bmm(stacked, points[part]).view(*stack.shape[:-1], -1)
        return [out[:, kernel].view(*values.shape[:-2], n, values.shape[-1]) for kernel in range(count)]

    def apply(
        self, potentials: Sequence[Potentials], values: Tensor, *, weights: Tensor | None, squared: bool = False
    ) -> list[Sums]:
        """For each kernel: affinities times values, and the sums of the affinities over their rows.

        Args:
            potentials: those of each kernel.
            values: values to sum, ``[.., m, channel]``.
            weights: factor of each target, ``[.., m]``, or ``None``.
            squared: take the squares of each affinity's share of its row instead.
        """
        counted = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        factors = _squared_shares if squared else None
        found = self.products(potentials, counted, weights=weights, factors=factors)
        return [Sums(sums[..., :-1], sums[..., -1]) for sums in found]

    def contrasts(
        self,
        potentials: Sequence[Potentials],
        values: Tensor,
        *,
        negatives: int,
        weights: Tensor | None,
        floor: float = 0.0,
        attraction: float = 1.0,
        repulsion: float = 1.0,
    ) -> list[Sums]:
        """For each kernel: ``a S_neg sum_p A_ip v_p - r S_pos sum_n A_in v_n``, and the sum of these factors.

        Args:
            potentials: those of each kernel.
            values: values to sum, ``[.., m, channel]``.
            negatives: number of negatives, which are the first targets; the others are positives.
            weights: factor of each target, ``[.., m]``, after the coupling and the floor, or ``None``.
            floor: smallest affinity, before the weights.
            attraction: ``a``.
            repulsion: ``r``.
        """
        factors = partial(signed, negatives=negatives, attraction=attraction, repulsion=repulsion)
        if attraction == repulsion:
            # Rows of the factors sum to zero.
            found = self.products(potentials, values, weights=weights, floor=floor, factors=factors)
            return [Sums(sums, torch.zeros_like(sums[..., 0])) for sums in found]
        counted = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        found = self.products(potentials, counted, weights=weights, floor=floor, factors=factors)
        return [Sums(sums[..., :-1], sums[..., -1]) for sums in found]


def signed(affinity: Tensor, negatives: int, attraction: float = 1.0, repulsion: float = 1.0) -> Tensor:
    """``B_ip = a S_neg A_ip`` and ``B_in = -r S_pos A_in``, in place of ``A``: the field is ``sum_j B_ij (y_j - x_i)``.

    With both factors one, rows sum to zero: one product with the targets is the field, without a difference tensor.
    """
    away, towards = affinity[..., :negatives], affinity[..., negatives:]
    s_negative, s_positive = away.sum(-1, keepdim=True), towards.sum(-1, keepdim=True)
    away.mul_(s_positive.mul_(-repulsion))
    towards.mul_(s_negative.mul_(attraction))
    return affinity


def _squared_shares(affinity: Tensor) -> Tensor:
    """``a_j^2``, the shares before they are squared: squares of affinities underflow early. Zero where there are none.

    With them the correction of a mean ``m`` is ``sum_j a_j^2 (y_j - m)``.
    """
    totals = affinity.sum(-1, keepdim=True)
    return (affinity / torch.where(totals > 0, totals, 1.0)).square()


def joined(parts: list[Tensor], axis: int) -> Tensor:
    """Blocks of rows as one tensor; a lone block is not copied."""
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]


def _log2sumexp2(values: Tensor, axis: int) -> Tensor:
    """In place of ``values``."""
    top = zero_if_masked(values.amax(axis, keepdim=True))
    return values.sub_(top).exp2_().sum(axis).log2_().add_(top.squeeze(axis))


def zero_if_masked(potential: Tensor) -> Tensor:
    """The potential, 0 where every pair is masked."""
    return potential.masked_fill(potential == -math.inf, 0.0)
