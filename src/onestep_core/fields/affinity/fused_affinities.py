"""Affinities in Triton kernels: each reduction reads a block of distances once; affinities are written once, with their
sums, and multiplied by torch.
"""

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from onestep_core.fields.affinity.fused_distances import FusedDistances, launch, power
from onestep_core.fields.affinity.streamed_affinities import Sums, zero_if_masked
from onestep_core.fields.affinity.streamed_distances import flat
from onestep_core.fields.kernel_forms import LOG2_E, KernelForm
from onestep_core.precision import no_autocast
from onestep_core.protocols import Coupling, Potentials

_PROGRAMS = 1024
"""Approximate number of programs of a reduction: several for each multiprocessor of a large device."""
_SHARE = 512
"""Smallest part of a sum for one program, where several share it."""


class FusedAffinities:
    """The pairs of two clouds under one or several kernels of one shape, with the interface of
    :class:`~onestep_core.fields.affinity.streamed_affinities.Affinities`.

    Args:
        apart: their distances.
        forms: of the kernels, all of one shape and smallest distance.
        self_penalties: as there.
    """

    def __init__(
        self, apart: FusedDistances, forms: Sequence[KernelForm], *, self_penalties: Sequence[float] | None = None
    ) -> None:
        self._apart, self._shape, self._smallest = apart, forms[0].shape, forms[0].smallest
        self._own = self_penalties is not None
        lengths = [form.length for form in forms]
        numbers = [length for length in lengths if not isinstance(length, Tensor)]
        if len(numbers) == len(lengths):
            self._inverse = _numbers(tuple(1 / number for number in numbers), apart.x.device)
        else:
            self._inverse = torch.stack([torch.as_tensor(length).to(apart.x) for length in lengths]).reciprocal_()
        penalties = tuple(penalty * LOG2_E for penalty in self_penalties or [0.0] * len(forms))
        self._penalties = _numbers(penalties, apart.x.device)
        self._count = len(forms)

    def _reduce(self, of_columns: bool, other: Tensor | None, kernel: int | None) -> Tensor:
        """``[group, kernel, n]`` or ``[group, kernel, m]``, in natural units."""
        apart, tiles = self._apart, self._apart.plan.reduction
        some = slice(None) if kernel is None else slice(kernel, kernel + 1)
        inverse, penalty = self._inverse[some], self._penalties[some]
        count = len(inverse)
        # Blocks of rows leave columns in parts.
        parted = of_columns and any(rows.start for _, rows in apart.blocks)
        out = apart.x.new_full((apart.groups, count, apart.m if of_columns else apart.n), -math.inf)
        shifts = None if other is None else self._per_group(other).unsqueeze(1)
        for (part, rows), block in apart:
            high = block.shape[1]
            ones, others = (apart.m, high) if of_columns else (high, apart.m)
            at_once = power(ones, least=16, most=tiles.columns if of_columns else tiles.rows)
            in_turn = power(others, least=16, most=tiles.rows if of_columns else tiles.columns)
            shift = None if shifts is None else shifts[part][..., rows if of_columns else slice(None)].contiguous()
            programs = len(block) * -(-ones // at_once)
            # Few programs leave a device idle: several then share the sum.
            share = -(-others // max(1, min(_PROGRAMS // (programs * count), others // _SHARE)))
            share = -(-share // in_turn) * in_turn
            found = block.new_empty(-(-others // share), len(block), count, ones)
            launch(
                "log2sumexp2",
                (programs, count, len(found)),
                found,
                block,
                found if shift is None else shift,
                inverse,
                penalty,
                found,
                len(block),
                ones,
                others,
                1 if of_columns else apart.m,
                apart.m if of_columns else 1,
                share,
                -rows.start if of_columns else rows.start,
                self._smallest,
                KERNELS=count,
                KIND=self._shape,
                OWN=self._own,
                SHIFTED=shift is not None,
                LAST=len(found) == 1 and not parted,
                ONES=at_once,
                OTHERS=in_turn,
                tiles=tiles,
            )
            if len(found) > 1:
                total = _log2sumexp2(found)
                found = (total if parted else zero_if_masked(total / LOG2_E)).unsqueeze(0)
            if len(apart.blocks) == 1:
                return found[0]
            if parted:
                torch.logaddexp2(out[part], found[0], out=out[part])
            else:
                out[part, :, slice(None) if of_columns else rows] = found[0]
        return zero_if_masked(out.div_(LOG2_E)) if parted else out

    @cached_property
    def _sums(self) -> Potentials:
        return Potentials(self._reduce(False, None, None), self._reduce(True, None, None))

    def _per_group(self, values: Tensor) -> Tensor:
        """``[group, count]`` of values ``[.., count]``, or of ``[count]`` for all groups."""
        return values.expand(*self._apart.lead, values.shape[-1]).reshape(self._apart.groups, values.shape[-1])

    def rows(self, column: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_j (log_k - column)``, ``[.., n]``; 0 where every pair is masked."""
        found = self._sums.row[:, kernel] if column is None else self._reduce(False, column, kernel)
        return found.reshape(*self._apart.lead, self._apart.n)

    def columns(self, row: Tensor | None = None, *, kernel: int = 0) -> Tensor:
        """``logsumexp_i (log_k - row)``, ``[.., m]``; 0 where every pair is masked."""
        found = self._sums.column[:, kernel] if row is None else self._reduce(True, row, kernel)
        return found.reshape(*self._apart.lead, self._apart.m)

    def potentials(self, coupling: Coupling) -> list[Potentials]:
        """The potentials of ``coupling`` from the two reductions of each kernel."""
        return [coupling(partial(self.rows, kernel=k), partial(self.columns, kernel=k)) for k in range(self._count)]

    def _added(
        self,
        potentials: Sequence[Potentials],
        values: Tensor,
        *,
        weights: Tensor | None,
        floor: float = 0.0,
        split: int | None = None,
        squared: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Sums of values, ``[group, kernel, part, n, channel]``, and of affinities, ``[group, kernel, part, n]``."""
        apart, tiles, points, count = self._apart, self._apart.plan.affinities, flat(values), self._count
        columns = [slice(0, split), slice(split, apart.m)] if split is not None else [slice(0, apart.m)]
        row, column = (torch.stack([self._per_group(each) for each in of], 1) for of in zip(*potentials, strict=True))
        of_targets = None if weights is None else self._per_group(weights).contiguous()
        sums = points.new_empty(apart.groups, count, len(columns), apart.n, points.shape[-1])
        totals = points.new_empty(apart.groups, count, len(columns), apart.n)
        largest = apart.largest
        together = count if count * largest <= apart.budget else 1
        work = points.new_empty(together * largest)
        for (part, rows), block in apart:
            groups, high, m = block.shape
            tile = power(high, least=16, most=tiles.rows)
            for first in range(0, count, together):
                shape = (groups, together, high, m)
                stack = work[: math.prod(shape)].view(shape)
                launch(
                    "affinities",
                    (groups * -(-high // tile), together),
                    stack,
                    block,
                    row[part],
                    column[part],
                    column if of_targets is None else of_targets[part],
                    self._inverse,
                    self._penalties,
                    stack,
                    totals[part],
                    apart.n,
                    rows.start,
                    high,
                    m,
                    split or 0,
                    first,
                    floor,
                    self._smallest,
                    KERNELS=count,
                    SOME=together,
                    PARTS=len(columns),
                    KIND=self._shape,
                    OWN=self._own,
                    WEIGHTED=weights is not None,
                    SQUARED=squared,
                    ROWS=tile,
                    COLUMNS=power(m, least=16, most=tiles.columns),
                    tiles=tiles,
                )
                for position, inside in enumerate(columns):
                    with no_autocast(points):
                        added = torch.bmm(stack.flatten(1, 2)[..., inside], points[part, inside])
                    sums[part, first : first + together, position, rows] = added.view(*shape[:3], points.shape[-1])
        return sums, totals

    def apply(
        self, potentials: Sequence[Potentials], values: Tensor, *, weights: Tensor | None, squared: bool = False
    ) -> list[Sums]:
        """Like :meth:`~onestep_core.fields.affinity.streamed_affinities.Affinities.apply`."""
        products, totals = self._added(potentials, values, weights=weights, squared=squared)
        shape = (*values.shape[:-2], self._apart.n)
        return [
            Sums(products[:, k, 0].reshape(*shape, values.shape[-1]), totals[:, k, 0].reshape(shape))
            for k in range(self._count)
        ]

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
        """Like :meth:`~onestep_core.fields.affinity.streamed_affinities.Affinities.contrasts`."""
        products, totals = self._added(potentials, values, weights=weights, floor=floor, split=negatives)
        away, towards = products.unbind(2)
        s_negative, s_positive = totals.unsqueeze(-1).unbind(2)
        towards = towards.mul_(s_negative * attraction).addcmul_(away, s_positive, value=-repulsion)
        counted = torch.zeros_like(totals[:, :, 0])
        if attraction != repulsion:
            counted = (attraction - repulsion) * totals.prod(2)
        shape = (*values.shape[:-2], self._apart.n)
        return [
            Sums(towards[:, k].reshape(*shape, values.shape[-1]), counted[:, k].reshape(shape))
            for k in range(self._count)
        ]


def _numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on the device, made there without a copy from the host. Cached, except while a graph is captured: then
    the graph owns them."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return _filled(values, device)
    return _kept(values, device)


def _filled(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])


_kept = lru_cache(maxsize=256)(_filled)


def _log2sumexp2(shares: Tensor) -> Tensor:
    """Over the first axis, of at most a few."""
    total = shares[0]
    for share in shares[1:]:
        total = torch.logaddexp2(total, share)
    return total
