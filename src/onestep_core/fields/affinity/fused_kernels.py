# pyright: basic, reportOperatorIssue=false, reportGeneralTypeIssues=false
"""Triton kernels of :mod:`onestep_core.fields.affinity.dispatch`. Importing this file imports Triton.

The product of points is made of three products of a tensor core's short floats: with ``a = hi + lo``, where ``hi`` has
the eleven leading bits, ``a b = hi hi' + hi lo' + lo hi'`` to about 2^-22, which is what float32 itself keeps of a sum.
"""

import triton
import triton.language as tl


@triton.jit
def _at_least(values, floor):
    """The larger of the two; NaN stays NaN."""
    return tl.where(values < floor, floor, values)


@triton.jit
def _log2_kernel(r, inverse, KIND: tl.constexpr):
    """``log2 k`` of distances; ``inverse`` of the kernel's length."""
    s = r * inverse
    if KIND == "laplace":
        log_k = s * -1.4426950408889634
    elif KIND == "gaussian":
        log_k = s * s * -0.7213475204444817
    elif KIND == "matern-1.5":
        s = s * 1.7320508075688772
        log_k = tl.log2(1.0 + s) - s * 1.4426950408889634
    elif KIND == "matern-2.5":
        s = s * 2.23606797749979
        log_k = tl.log2(1.0 + s + s * s / 3.0) - s * 1.4426950408889634
    else:
        tl.static_assert(KIND == "inverse-multiquadric")
        log_k = tl.log2(1.0 + s * s) * -0.5
    return log_k


@triton.jit(do_not_specialize=["x_pitch", "start", "rows"])
def distances(
    x,
    x_lead,
    x_rest,
    x_squares,
    y,
    y_lead,
    y_rest,
    y_squares,
    out,
    x_pitch,
    start,
    rows,
    m,
    channels,
    cancelled_share,
    OWN: tl.constexpr,
    DIRECT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``|x_i - y_j|`` of the rows from ``start``, ``[group, rows, m]``: by expansion, or by subtraction where that
    cancels. ``OWN``: ``x`` is the first of ``y``. ``x_pitch``: how many points lie between groups of ``x``."""
    tiles = tl.cdiv(rows, ROWS)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    first, first_column = (tl.program_id(0) % tiles) * ROWS, tl.program_id(1) * COLUMNS
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    here, there = i < rows - first, j < m - first_column
    # Of 64 bits are the offsets of a tile alone: within it they would be two registers each.
    of_x, of_y = group * x_pitch + start + first, group * m + first_column
    x, x_lead, x_rest = x + of_x * channels, x_lead + of_x * channels, x_rest + of_x * channels
    y, y_lead, y_rest = y + of_y * channels, y_lead + of_y * channels, y_rest + of_y * channels
    own = (start + first - first_column + i)[:, None] == j[None, :]
    apart = tl.zeros((ROWS, COLUMNS), tl.float32)
    if DIRECT:
        for c in range(channels):
            a = tl.load(x + i * channels + c, mask=here, other=0.0)
            b = tl.load(y + j * channels + c, mask=there, other=0.0)
            difference = a[:, None] - b[None, :]
            apart += difference * difference
    else:
        for c in range(0, channels, DEPTH):
            k = c + tl.arange(0, DEPTH)
            at_x = i[:, None] * channels + k[None, :]
            at_y = j[:, None] * channels + k[None, :]
            in_x = here[:, None] & (k < channels)[None, :]
            in_y = there[:, None] & (k < channels)[None, :]
            a_lead = tl.load(x_lead + at_x, mask=in_x, other=0.0)
            a_rest = tl.load(x_rest + at_x, mask=in_x, other=0.0)
            b_lead = tl.trans(tl.load(y_lead + at_y, mask=in_y, other=0.0))
            b_rest = tl.trans(tl.load(y_rest + at_y, mask=in_y, other=0.0))
            apart = tl.dot(a_rest, b_lead, apart, input_precision="tf32")
            apart = tl.dot(a_lead, b_rest, apart, input_precision="tf32")
            apart = tl.dot(a_lead, b_lead, apart, input_precision="tf32")
        squares = tl.load(x_squares + of_x + i, mask=here, other=0.0)[:, None]
        squares = squares + tl.load(y_squares + of_y + j, mask=there, other=0.0)[None, :]
        apart = squares - 2.0 * apart
        cancelled = (apart < cancelled_share * squares) & here[:, None] & there[None, :]
        if OWN:
            cancelled = cancelled & (own == 0)
        if tl.max(tl.max(cancelled.to(tl.int32), 1), 0) > 0:
            exact = tl.zeros((ROWS, COLUMNS), tl.float32)
            for c in range(channels):
                a = tl.load(x + i * channels + c, mask=here, other=0.0)
                b = tl.load(y + j * channels + c, mask=there, other=0.0)
                difference = a[:, None] - b[None, :]
                exact += difference * difference
            apart = tl.where(cancelled, exact, apart)
    if OWN:
        apart = tl.where(own, 0.0, apart)
    at = i[:, None] * m + j[None, :]
    tl.store(
        out + (group * rows + first) * m + first_column + at,
        tl.sqrt(_at_least(apart, 0.0)),
        mask=here[:, None] & there[None, :],
    )


@triton.jit(do_not_specialize=["own"])
def log2sumexp2(
    apart,
    other,
    inverse,
    penalty,
    out,
    groups,
    count,
    others,
    stride,
    stride_other,
    share,
    own,
    smallest,
    KERNELS: tl.constexpr,
    KIND: tl.constexpr,
    OWN: tl.constexpr,
    SHIFTED: tl.constexpr,
    LAST: tl.constexpr,
    ONES: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """``log2 sum_j exp2(log2 k_ij - other_j)`` for each kernel, over every ``share`` of the ``j``, ``[share, group,
    kernel, count]``; of rows or columns, as the strides say. ``own``: ``i + own`` is the index ``j`` of the pair of a
    point with itself. ``other`` is in natural units; ``LAST``: so is the result, 0 where there is no pair."""
    tiles = tl.cdiv(count, ONES)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * ONES + tl.arange(0, ONES)
    kernel = tl.program_id(1)
    here = i < count
    length = tl.load(inverse + kernel)
    lowered = tl.load(penalty + kernel)
    base = apart + group * count * others
    shift = other + (group * KERNELS + kernel) * others
    top = tl.full((ONES,), float("-inf"), tl.float32)
    total = tl.zeros((ONES,), tl.float32)
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, others)
    for begin in range(first, last, OTHERS):
        j = begin + tl.arange(0, OTHERS)
        inside = here[:, None] & (j < last)[None, :]
        r = tl.load(base + (i[:, None] * stride + j[None, :] * stride_other), mask=inside, other=0.0)
        log_k = _log2_kernel(_at_least(r, smallest), length, KIND)
        if OWN:
            log_k = tl.where((i + own)[:, None] == j[None, :], log_k - lowered, log_k)
        if SHIFTED:
            log_k = log_k - 1.4426950408889634 * tl.load(shift + j, mask=j < last, other=0.0)[None, :]
        log_k = tl.where(inside, log_k, float("-inf"))
        higher = tl.maximum(top, tl.max(log_k, 1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - reference) + tl.sum(tl.exp2(log_k - reference[:, None]), 1)
        top = higher
    reference = tl.where(top == float("-inf"), 0.0, top)
    reduced = reference + tl.log2(total)
    if LAST:
        reduced = reduced * 0.6931471805599453
        reduced = tl.where(total == 0.0, 0.0, reduced)
    else:
        reduced = tl.where(total == 0.0, float("-inf"), reduced)
    of_share = (tl.program_id(2) * groups + group) * KERNELS + kernel
    tl.store(out + of_share * count + i, reduced, mask=here)


@triton.jit
def _affinity(apart, row, column, weights, length, lowered, floor, smallest, i, j, m, own, inside, KIND, OWN, WEIGHTED):
    there = j < m
    r = tl.load(apart + (i[:, None] * m + j[None, :]), mask=inside, other=0.0)
    log_k = _log2_kernel(_at_least(r, smallest), length, KIND)
    if OWN:
        log_k = tl.where((i + own)[:, None] == j[None, :], log_k - lowered, log_k)
    of_column = tl.load(column + j, mask=there, other=0.0) * 1.4426950408889634
    affinity = _at_least(tl.exp2(log_k - row[:, None] - of_column[None, :]), floor)
    if WEIGHTED:
        affinity = affinity * tl.load(weights + j, mask=there, other=0.0)[None, :]
    return tl.where(inside, affinity, 0.0)


@triton.jit(do_not_specialize=["n", "start", "rows", "split", "first"])
def affinities(
    apart,
    row,
    column,
    weights,
    inverse,
    penalty,
    out,
    totals,
    n,
    start,
    rows,
    m,
    split,
    first,
    floor,
    smallest,
    KERNELS: tl.constexpr,
    SOME: tl.constexpr,
    PARTS: tl.constexpr,
    KIND: tl.constexpr,
    OWN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Affinities of ``SOME`` of the kernels from ``first`` on, ``[group, some, rows, m]``, and their sums over the
    columns before ``split`` and those from it on, or over all of them, ``[group, kernel, part, n]``. ``SQUARED``: the
    squares of the shares that affinities have of their row. Potentials are in natural units."""
    tiles = tl.cdiv(rows, ROWS)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = (tl.program_id(0) % tiles) * ROWS
    kernel = first + tl.program_id(1)
    i = tl.arange(0, ROWS)
    here = i < rows - tile
    length = tl.load(inverse + kernel)
    lowered = tl.load(penalty + kernel)
    of_pair = group * KERNELS + kernel
    # Of 64 bits are the offsets of a tile alone: within it they would be two registers each.
    apart += (group * rows + tile) * m
    out += ((group * SOME + tl.program_id(1)) * rows + tile) * m
    column += of_pair * m
    weights += group * m
    of_row = tl.load(row + of_pair * n + start + tile + i, mask=here, other=0.0) * 1.4426950408889634
    own = start + tile
    mass = tl.full((ROWS,), 1.0, tl.float32)
    if SQUARED:
        mass = tl.zeros((ROWS,), tl.float32)
        for begin in range(0, m, COLUMNS):
            j = begin + tl.arange(0, COLUMNS)
            inside = here[:, None] & (j < m)[None, :]
            found = _affinity(
                apart, of_row, column, weights, length, lowered, floor, smallest, i, j, m, own, inside, KIND, OWN,
                WEIGHTED,
            )  # fmt: skip
            mass += tl.sum(found, 1)
        mass = tl.where(mass == 0.0, 1.0, mass)
    for part in tl.static_range(PARTS):
        begin_part, end_part = 0, m
        if PARTS == 2:
            begin_part = split if part == 1 else 0
            end_part = m if part == 1 else split
        total = tl.zeros((ROWS,), tl.float32)
        for begin in range(begin_part, end_part, COLUMNS):
            j = begin + tl.arange(0, COLUMNS)
            inside = here[:, None] & (j < end_part)[None, :]
            found = _affinity(
                apart, of_row, column, weights, length, lowered, floor, smallest, i, j, m, own, inside, KIND, OWN,
                WEIGHTED,
            )  # fmt: skip
            if SQUARED:
                found = found / mass[:, None]
                found = found * found
            total += tl.sum(found, 1)
            tl.store(out + (i[:, None] * m + j[None, :]), found, mask=inside)
        tl.store(totals + (of_pair * PARTS + part) * n + start + tile + i, total, mask=here)
