"""Distances of near-duplicates, eagerly and in a given buffer: every pair as exact as one of distant points."""

from typing import Any, cast

import torch
from torch import Tensor

from onestep_core.fields.euclidean import DIRECT_CHANNELS
from onestep_core.precision import no_autocast

CANCELLED = 0.02
"""Share of ``|x|^2 + |y|^2`` below which a squared distance is computed by subtraction."""
_COST_OF_SUBTRACTION = 128
"""Number of pairs of a product that cost as much as one pair by subtraction."""
_PAIRS = 2**12


def squared_lengths(x: Tensor) -> Tensor:
    """``|x_i|^2``, without a copy of the points."""
    return cast(Tensor, cast(Any, torch.linalg).vector_norm(x, dim=-1)).square()


def near(x: Tensor, y: Tensor, y_squares: Tensor, *, own: int | None, out: Tensor) -> Tensor:
    """``|x_i - y_j|`` of ``[group, n, channel]`` and ``[group, m, channel]``, written to ``out [group, n, m]``.

    Eager, without gradient. The expansion in the points' own precision, and again by subtraction wherever it cancels,
    so that every pair is as exact as one of distant points; where many of float32 cancel, the whole is expanded in
    float64. ``own``: ``x`` is ``y[:, own : own + n]``, at distance zero from itself. ``y_squares``: ``|y_j|^2``.
    """
    if x.shape[-1] <= DIRECT_CHANNELS:
        torch.sub(x[..., :1], y[..., 0].unsqueeze(-2), out=out).square_()
        for channel in range(1, x.shape[-1]):
            difference = x[..., channel : channel + 1] - y[..., channel].unsqueeze(-2)
            out.addcmul_(difference, difference)
        return out.sqrt_()
    x_squares = squared_lengths(x)
    _expanded(x, y, y_squares * (1 - CANCELLED), out)
    itself = None if own is None else out.diagonal(own, -2, -1)
    if itself is not None:
        itself.fill_(torch.inf)
    group, row = (out.amin(-1) < x_squares * (CANCELLED - 1)).nonzero(as_tuple=True)
    out.add_(x_squares.unsqueeze(-1)).add_((y_squares * CANCELLED).unsqueeze(-2))
    if len(row):
        bound = CANCELLED * (x_squares[group, row].unsqueeze(-1) + y_squares[group])
        suspect, column = (out[group, row] < bound).nonzero(as_tuple=True)
        if len(suspect) * _COST_OF_SUBTRACTION > out.numel() and out.dtype != torch.float64:
            a, b = x.double(), y.double()
            exact = _expanded(a, b, b.square().sum(-1), torch.empty_like(out, dtype=torch.float64))
            out.copy_(exact.add_(a.square().sum(-1).unsqueeze(-1)))
        else:
            group, row = group[suspect], row[suspect]
            for start in range(0, len(row), _PAIRS):
                g, i, j = (index[start : start + _PAIRS] for index in (group, row, column))
                out[g, i, j] = (x[g, i] - y[g, j]).square().sum(-1)
    if itself is not None:
        itself.zero_()
    return out.clamp_(min=0.0).sqrt_()


def _expanded(x: Tensor, y: Tensor, squares: Tensor, out: Tensor) -> Tensor:
    """``squares_j - 2 x_i . y_j``, written to ``out``."""
    with no_autocast(x):
        if len(x) == 1:
            torch.addmm(squares[0], x[0], y[0].mT, alpha=-2, out=out[0])
        else:
            torch.baddbmm(squares.unsqueeze(-2), x, y.mT, alpha=-2, out=out)
    return out
