"""Affinities by the fastest way that there is: in Triton kernels on a CUDA device, else as :mod:`.streaming` does.

Fused, a block of distances is written once, and each reduction reads it once; affinities are written once, with their
sums, and multiplied by torch. Distances keep float32's digits whatever torch is allowed, and those that cancel are
computed anew by subtraction, tile by tile and on the device: nothing waits for a value, and a CUDA graph can hold it.

Used for float32 on NVIDIA's devices where Triton can be imported, outside ``torch.func``, graphs and tracing modes, for
kernels that have a :class:`~onestep_core.fields.kernels.Form`. ``ONESTEP_TRITON=0`` leaves all to torch.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from onestep_core.fields.kernels import CANCELLED, LOG2_E, Form, form, squared_lengths
from onestep_core.fields.streaming import Affinities, Block, Distances, Sums, block_rows, flat, plain, zero_if_masked
from onestep_core.precision import no_autocast
from onestep_core.protocols import Coupling, Kernel, Potentials

SWITCH = "ONESTEP_TRITON"
"""Environment variable that leaves everything to torch where it is 0."""
_KEPT_ELEMENTS = 2**26
"""Of a block of distances (256 MiB), which is kept from pass to pass where it is the only one."""
_INDEXED_ELEMENTS = 2**30
"""Of a block of one group, at most: its offsets are of 32 bits."""
_PROGRAMS = 1024
"""Of a reduction, about: several for each multiprocessor of a large device."""
_SHARE = 512
"""Of a sum, at least, where several programs share it."""
_DIRECT_CHANNELS = 16
"""Up to here every distance is a sum of squared differences."""


class Tiles(NamedTuple):
    """What one program of a kernel holds: rows by columns, by channels at a time."""

    rows: int
    columns: int
    channels: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """Tiles of the three kernels."""

    distances: Tiles
    reduction: Tiles
    affinities: Tiles


WIDE = Plan(Tiles(128, 128, 32, 8, 3), Tiles(32, 128, 0, 4, 2), Tiles(8, 256, 0, 4, 2))
"""Where a program may have 200 KiB of shared memory or more: H100 and its kin."""
NARROW = Plan(Tiles(64, 64, 32, 4, 2), Tiles(32, 128, 0, 4, 2), Tiles(8, 256, 0, 4, 2))


def plan_for(device: torch.device) -> Plan:
    """By the shared memory of the device."""
    if device.type != "cuda":
        return NARROW
    properties = cast(Any, torch.cuda).get_device_properties(device)
    return WIDE if properties.shared_memory_per_block_optin >= 200 * 2**10 else NARROW


def fusible(x: Tensor, y: Tensor) -> bool:
    """Whether these points can be left to the kernels."""
    if not (x.is_cuda and x.dtype == y.dtype == torch.float32 and plain(x, y)) or os.environ.get(SWITCH) == "0":
        return False
    return torch.version.cuda is not None and find_spec("triton") is not None


def distances_of(x: Tensor, y: Tensor, *, themselves: bool, kernels: int, block_size: int | None) -> "AnyDistances":
    """Distances in blocks; arguments as :class:`~onestep_core.fields.streaming.Distances`."""
    if fusible(x, y):
        return FusedDistances(x, y, themselves=themselves, block_size=block_size)
    return Distances(x, y, themselves=themselves, kernels=kernels, block_size=block_size)


def affinities_of(
    x: Tensor,
    y: Tensor,
    kernels: Sequence[Kernel],
    *,
    self_penalties: Sequence[float] | None = None,
    block_size: int | None = None,
    apart: "AnyDistances | None" = None,
) -> "AnyAffinities":
    """Affinities; arguments as :class:`~onestep_core.fields.streaming.Affinities`."""
    if isinstance(apart, Distances):
        return Affinities(x, y, kernels, self_penalties=self_penalties, block_size=block_size, apart=apart)
    if apart is not None or fusible(x, y):
        forms = [known for known in map(form, kernels) if known is not None]
        if len(forms) == len(kernels) and len({(known.shape, known.smallest) for known in forms}) == 1:
            apart = apart or FusedDistances(x, y, themselves=self_penalties is not None, block_size=block_size)
            return FusedAffinities(apart, forms, self_penalties=self_penalties)
    return Affinities(x, y, kernels, self_penalties=self_penalties, block_size=block_size)


def _launch(kernel: str, grid: tuple[int, ...], out: Tensor, *arguments: Any, tiles: Tiles, **constants: Any) -> None:
    """On the device of ``out``, which need not be the current one. Triton is loaded at the first call."""
    function = getattr(import_module("onestep_core.fields.fused_kernels"), kernel)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        function[grid](*arguments, **constants, num_warps=tiles.warps, num_stages=tiles.stages)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """``hi + lo`` of float32, ``hi`` with the eleven bits that a tensor core reads."""
    lead = ((values.view(torch.int32) + 4096) & -8192).view(torch.float32)
    return lead, values - lead


def _numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device, without a copy, so that nothing waits. Kept, but for a graph being captured, which owns them."""
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


def _power(count: int, *, least: int, most: int) -> int:
    """The next power of two, between the two."""
    return min(most, max(least, 1 << max(count - 1, 0).bit_length()))


class FusedDistances:
    """``|x_i - y_j|`` in blocks ``[group, rows, m]``: leading axes are one. Blocks are to be left as they are.

    A lone block is kept from pass to pass; several share one buffer: read each before the next comes.

    Args:
        x: points, ``[.., n, channel]``, float32.
        y: points, ``[.., m, channel]``.
        themselves: the first ``n`` of ``y`` are ``x``.
        block_size: rows a block; ``None`` chooses by shape.
    """

    def __init__(self, x: Tensor, y: Tensor, *, themselves: bool, block_size: int | None) -> None:
        self.lead, self.themselves = x.shape[:-2], themselves
        self.y = flat(y).contiguous()
        self.x = self.y if themselves else flat(x).contiguous()
        self.groups, self.n, self.m = len(self.y), x.shape[-2], y.shape[-2]
        self.plan = plan_for(x.device)
        whole = max(1, _KEPT_ELEMENTS // (self.n * self.m))
        together = max(1, min(self.groups, whole))
        rows = block_rows(together, self.n, self.m, block_size, most=_KEPT_ELEMENTS)
        rows = max(1, min(rows, _INDEXED_ELEMENTS // self.m))
        self.blocks: list[Block] = [
            (slice(g, min(g + together, self.groups)), slice(r, min(r + rows, self.n)))
            for g in range(0, self.groups, together)
            for r in range(0, self.n, rows)
        ]
        self._buffer: Tensor | None = None
        self._filled = False

    @property
    def largest(self) -> int:
        """Elements of the largest block."""
        return max(((p.stop - p.start) * (r.stop - r.start) for p, r in self.blocks), default=0) * self.m

    def __iter__(self) -> Iterator[tuple[Block, Tensor]]:
        """One pass."""
        for part, rows in self.blocks:
            shape = (part.stop - part.start, rows.stop - rows.start, self.m)
            if self._buffer is None:
                self._buffer = self.x.new_empty(self.largest)
            apart = self._buffer[: math.prod(shape)].view(shape)
            if not self._filled:
                self._write(part, rows, apart)
                self._filled = len(self.blocks) == 1
            yield (part, rows), apart

    @cached_property
    def _of_points(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Points, their two halves and squared lengths; the second cloud begins with the first where that repels
        itself."""
        y = (self.y, *_halves(self.y), squared_lengths(self.y))
        return (y if self.themselves else (self.x, *_halves(self.x), squared_lengths(self.x))), y

    def _write(self, part: slice, rows: slice, out: Tensor) -> None:
        tiles = self.plan.distances
        of_x, of_y = self._of_points
        high = _power(out.shape[1], least=16, most=tiles.rows)
        wide = _power(self.m, least=16, most=tiles.columns)
        grid = (len(out) * -(-out.shape[1] // high), -(-self.m // wide))
        _launch(
            "distances",
            grid,
            out,
            *(each[part] for each in of_x),
            *(each[part] for each in of_y),
            out,
            of_x[0].shape[1],
            rows.start,
            out.shape[1],
            self.m,
            self.x.shape[-1],
            CANCELLED,
            OWN=self.themselves,
            DIRECT=self.x.shape[-1] <= _DIRECT_CHANNELS,
            ROWS=high,
            COLUMNS=wide,
            DEPTH=tiles.channels,
            tiles=tiles,
        )


class FusedAffinities:
    """The pairs of two clouds under one or several kernels of one shape, with the interface of
    :class:`~onestep_core.fields.streaming.Affinities`.

    Args:
        apart: their distances.
        forms: of the kernels, all of one shape and smallest distance.
        self_penalties: as there.
    """

    def __init__(
        self, apart: FusedDistances, forms: Sequence[Form], *, self_penalties: Sequence[float] | None = None
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
            at_once = _power(ones, least=16, most=tiles.columns if of_columns else tiles.rows)
            in_turn = _power(others, least=16, most=tiles.rows if of_columns else tiles.columns)
            shift = None if shifts is None else shifts[part][..., rows if of_columns else slice(None)].contiguous()
            programs = len(block) * -(-ones // at_once)
            # Few programs leave a device idle: several then share the sum.
            share = -(-others // max(1, min(_PROGRAMS // (programs * count), others // _SHARE)))
            share = -(-share // in_turn) * in_turn
            found = block.new_empty(-(-others // share), len(block), count, ones)
            _launch(
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
        """What ``coupling`` makes of the two reductions of each kernel."""
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
        together = count if count * largest <= _KEPT_ELEMENTS else 1
        work = points.new_empty(together * largest)
        for (part, rows), block in apart:
            groups, high, m = block.shape
            tile = _power(high, least=16, most=tiles.rows)
            for first in range(0, count, together):
                shape = (groups, together, high, m)
                stack = work[: math.prod(shape)].view(shape)
                _launch(
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
                    COLUMNS=_power(m, least=16, most=tiles.columns),
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
        """As :meth:`~onestep_core.fields.streaming.Affinities.apply`."""
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
        """As :meth:`~onestep_core.fields.streaming.Affinities.contrasts`."""
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


AnyDistances: TypeAlias = Distances | FusedDistances
AnyAffinities: TypeAlias = Affinities | FusedAffinities
