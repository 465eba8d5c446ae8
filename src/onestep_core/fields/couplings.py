"""Couplings: how a kernel becomes an affinity.

Every coupling here is a diagonal scaling, ``affinity = exp(log_k - row[:, None] - column[None, :])``, so it is a
pair of potentials and never needs the matrix. It finds them from two reductions that the field supplies, dense or
streamed:

    rows(column=None)    = logsumexp_j (log_k - column)     [.., n]
    columns(row=None)    = logsumexp_i (log_k - row)        [.., m]

Masks, sample weights and floors belong to the field. A row or column whose every pair is masked gets the
potential 0 (its affinities are zero whatever the potential).
"""

import torch
from torch import Tensor

from onestep_core.protocols import Potentials, Rows
from onestep_core.validators import require_count


def unnormalized(rows: Rows, columns: Rows) -> Potentials:
    """``affinity = k``: no scaling at all.

    Example:
        >>> log_k = torch.zeros(2, 3)
        >>> unnormalized(lambda c=None: log_k.logsumexp(1), lambda r=None: log_k.logsumexp(0)).column
        tensor([0., 0., 0.])
    """
    return Potentials(torch.zeros_like(rows()), torch.zeros_like(columns()))


def softmax_rows(rows: Rows, columns: Rows) -> Potentials:
    """``affinity = softmax_j(log_k)``: every sample distributes one unit over its targets.

    Example:
        >>> log_k = torch.zeros(2, 3)
        >>> softmax_rows(lambda c=None: log_k.logsumexp(1), lambda r=None: log_k.logsumexp(0)).row
        tensor([1.0986, 1.0986])
    """
    return Potentials(rows(), torch.zeros_like(columns()))


def softmax_both(rows: Rows, columns: Rows) -> Potentials:
    """``affinity = sqrt(softmax_j(log_k) softmax_i(log_k))``: the released drifting models' normalisation.

    Source: Deng et al., Generative Modeling via Drifting, algorithm A1, https://arxiv.org/abs/2602.04770.

    Example:
        >>> log_k = torch.zeros(2, 2)
        >>> row, column = softmax_both(lambda c=None: log_k.logsumexp(1), lambda r=None: log_k.logsumexp(0))
        >>> (log_k - row[:, None] - column).exp()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    return Potentials(rows() / 2, columns() / 2)


def sinkhorn(
    rows: Rows,
    columns: Rows,
    *,
    iterations: int,
    symmetric: bool = True,
    row_sums: Tensor | None = None,
    column_sums: Tensor | None = None,
) -> Potentials:
    """Sinkhorn's scaling: rows and columns both tend to given sums, or to a constant sum.

    It begins with the sums themselves as factors, ``row = -log(row_sums)`` and so on, which is zero without given ones:
    integer sums are then repetitions of points after every number of iterations, and a sum of zero leaves a point out.

    ``symmetric``: both potentials at once, averaged with the old ones, ``row = (row + rows(column)) / 2``; one such
    step is :func:`softmax_both`. Otherwise alternating, ``row = rows(column)`` and then ``column = columns(row)``:
    the sums of the columns are exact. Without given sums and with ``n`` samples and ``m`` targets the symmetric form
    settles at a total mass of ``sqrt(n m)``, so do two sets of given sums with different totals, at their geometric
    mean.

    Args:
        rows: the reduction over targets.
        columns: the reduction over samples.
        iterations: number of iterations, at least 1.
        symmetric: which of the two updates.
        row_sums: sums of the affinity over the targets, ``[.., n]``, not negative; ``None``: 1.
        column_sums: sums of the affinity over the samples, ``[.., m]``, not negative; ``None``: 1.

    Raises:
        ConfigError: if there is no iteration.

    Source: Cuturi, Sinkhorn Distances, https://arxiv.org/abs/1306.0895; the symmetric update: Feydy, Geometric Data
    Analysis beyond Convolutions, section 3.3.

    Example:
        >>> log_k = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> row, column = sinkhorn(
        ...     lambda c=0: (log_k - c).logsumexp(1), lambda r=torch.zeros(2): (log_k - r[:, None]).logsumexp(0),
        ...     iterations=50, row_sums=torch.tensor([0.2, 0.8]), column_sums=torch.tensor([0.5, 0.5]),
        ... )
        >>> (log_k - row[:, None] - column).exp().sum(1).round(decimals=4)
        tensor([0.2000, 0.8000])
    """
    require_count("iterations", iterations, least=1)

    first_row, first_column = (None if sums is None else -sums.log() for sums in (row_sums, column_sums))

    def row_update(column: Tensor | None) -> Tensor:
        reduced = rows() if column is None else rows(column)
        return reduced if first_row is None else reduced + first_row.to(reduced)

    def column_update(row: Tensor | None) -> Tensor:
        reduced = columns() if row is None else columns(row)
        return reduced if first_column is None else reduced + first_column.to(reduced)

    def step(row: Tensor | None, column: Tensor | None) -> Potentials:
        new_row = row_update(column)
        new_column = column_update(row if symmetric else new_row)
        if not symmetric:
            return Potentials(new_row, new_column)
        return Potentials(_halfway(row, new_row), _halfway(column, new_column))

    found = step(first_row, first_column)
    for _ in range(iterations - 1):
        found = step(*found)
    return found


def _halfway(old: Tensor | None, new: Tensor) -> Tensor:
    return new / 2 if old is None else (old.to(new) + new) / 2
