"""Distances between two clouds by a Triton kernel, and what all kernels of :mod:`.fused_kernels` are started with.

They keep float32's digits, whatever matrix precision torch is set to. Those that cancel are computed again by
subtraction, tile by tile on the device: the host never waits for a value, so a CUDA graph can record them.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from onestep_core.fields.affinity.near import CANCELLED, squared_lengths
from onestep_core.fields.affinity.streamed_distances import Block, block_rows, flat

_KEPT_ELEMENTS = 2**26
"""Elements of a block of distances (256 MiB); a lone block is kept from pass to pass."""
_INDEXED_ELEMENTS = 2**30
"""Largest number of elements in a block of one group: its offsets have 32 bits."""
_DIRECT_CHANNELS = 16
"""Largest number of channels for which every distance is a sum of squared differences."""


class Tiles(NamedTuple):
    """Size of the tile of one program of a kernel: rows, columns, and channels at a time."""

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
"""For devices with 200 KiB of shared memory or more a program: H100 and similar ones."""
NARROW = Plan(Tiles(64, 64, 32, 4, 2), Tiles(32, 128, 0, 4, 2), Tiles(8, 256, 0, 4, 2))


def plan_for(device: torch.device) -> Plan:
    """The plan for a device, by its shared memory."""
    if device.type != "cuda":
        return NARROW
    properties = cast(Any, torch.cuda).get_device_properties(device)
    return WIDE if properties.shared_memory_per_block_optin >= 200 * 2**10 else NARROW


def launch(kernel: str, grid: tuple[int, ...], out: Tensor, *arguments: Any, tiles: Tiles, **constants: Any) -> None:
    """Start a kernel on the device of ``out``, which need not be the current one. The first call loads Triton."""
    function = getattr(import_module("onestep_core.fields.affinity.fused_kernels"), kernel)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        function[grid](*arguments, **constants, num_warps=tiles.warps, num_stages=tiles.stages)


def power(count: int, *, least: int, most: int) -> int:
    """The next power of two, between the two."""
    return min(most, max(least, 1 << max(count - 1, 0).bit_length()))


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """``hi + lo`` of float32, ``hi`` with the eleven bits that a tensor core reads."""
    lead = ((values.view(torch.int32) + 4096) & -8192).view(torch.float32)
    return lead, values - lead


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
    def budget(self) -> int:
        """Elements that a buffer may have."""
        return _KEPT_ELEMENTS

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
        high = power(out.shape[1], least=16, most=tiles.rows)
        wide = power(self.m, least=16, most=tiles.columns)
        grid = (len(out) * -(-out.shape[1] // high), -(-self.m // wide))
        launch(
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
