"""Divergences between clouds: one number for how far samples are from data.

Use them as measurements where a loss does not show progress, or differentiate them as objectives. All are estimators
from samples: an unbiased one, of two clouds of one distribution, scatters around zero and is negative half of the time.
Every sum runs over blocks of rows, so ten thousand points against ten thousand need little memory.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.affinity.streamed_affinities import Affinities
from onestep_core.fields.affinity.streamed_distances import block_rows
from onestep_core.fields.euclidean import distances
from onestep_core.precision import full
from onestep_core.protocols import Kernel
from onestep_core.shapes import expand_like, largest_entry
from onestep_core.typing import typed
from onestep_core.validators import readable, require_count, require_length


def _mean_over_pairs(kernel: Kernel, x: Tensor, y: Tensor, *, without_diagonal: bool) -> Tensor:
    n, m = x.shape[-2], y.shape[-2]
    size = block_rows(1, n, m, None)
    total = x.new_zeros(())
    for start in range(0, n, size):
        total = total + kernel(x[start : start + size], y).sum()
    return total / (n * (m - 1) if without_diagonal else n * m)


def _enough(x: Tensor, y: Tensor, least: int) -> None:
    if min(x.shape[-2], y.shape[-2]) < least:
        raise ConfigError(f"clouds of {x.shape[-2]} and {y.shape[-2]} points: expected at least {least} in each")


@typed
def energy_distance(
    x: Float[Tensor, "n channel"], y: Float[Tensor, "m channel"], *, unbiased: bool = True
) -> Float[Tensor, ""]:
    """``2 E|x - y| - E|x - x'| - E|y - y'|``, the squared energy distance; zero only for equal distributions.

    Args:
        x: samples, ``[n, channel]``, at least two.
        y: samples, ``[m, channel]``, at least two.
        unbiased: leave out the zero distance of every point to itself.

    Raises:
        ConfigError: with fewer than two points.

    Source: Szekely and Rizzo, Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018.

    Example:
        >>> energy_distance(torch.zeros(2, 1), torch.ones(2, 1))
        tensor(2.)
    """
    _enough(x, y, 2)
    x, y = full(x), full(y)
    return (
        2 * _mean_over_pairs(distances, x, y, without_diagonal=False)
        - _mean_over_pairs(distances, x, x, without_diagonal=unbiased)
        - _mean_over_pairs(distances, y, y, without_diagonal=unbiased)
    )


@typed
def mmd(
    x: Float[Tensor, "n channel"], y: Float[Tensor, "m channel"], *, kernel: Kernel, unbiased: bool = True
) -> Float[Tensor, ""]:
    """``E k(x, x') + E k(y, y') - 2 E k(x, y)``, the squared maximum mean discrepancy.

    Args:
        x: samples, ``[n, channel]``, at least two.
        y: samples, ``[m, channel]``, at least two.
        kernel: a log-kernel with ``k(x, x) = 1``, for example ``partial(gaussian, bandwidth=1.0)``.
        unbiased: leave out the pairs of every point with itself.

    Raises:
        ConfigError: with fewer than two points.

    Source: Gretton et al., A Kernel Two-Sample Test, lemma 6, https://jmlr.org/papers/v13/gretton12a.html.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import gaussian
        >>> far = mmd(torch.zeros(2, 1), torch.full((2, 1), 99.0), kernel=partial(gaussian, bandwidth=1.0))
        >>> far
        tensor(2.)
    """
    _enough(x, y, 2)
    x, y = full(x), full(y)

    def within(points: Tensor) -> Tensor:
        count = points.shape[0]
        everything = _mean_over_pairs(k, points, points, without_diagonal=unbiased)
        return everything - 1 / (count - 1) if unbiased else everything

    def k(a: Tensor, b: Tensor, /) -> Tensor:
        return kernel(a, b).exp()

    return within(x) + within(y) - 2 * _mean_over_pairs(k, x, y, without_diagonal=False)


@typed
def sliced_wasserstein(
    x: Float[Tensor, "n channel"],
    y: Float[Tensor, "m channel"],
    *,
    directions: Float[Tensor, "direction channel"],
    power: float = 2.0,
) -> Float[Tensor, ""]:
    """``(mean over directions of W_power^power of the projections)^(1 / power)``, exact in one dimension.

    Args:
        x: samples, ``[n, channel]``.
        y: samples, ``[m, channel]``; the counts may differ.
        directions: ``[direction, channel]``, none of them zero, drawn by the caller; brought to unit length here.
        power: at least 1.

    Raises:
        ConfigError: on an empty cloud, without a direction, for one that is zero (on the CPU, outside of compiled
            functions and ``torch.func``), or a power that is below 1 or infinite.

    Source: Bonneel et al., Sliced and Radon Wasserstein Barycenters, https://doi.org/10.1007/s10851-014-0506-3.

    Example:
        >>> sliced_wasserstein(torch.zeros(2, 1), torch.full((3, 1), 2.0), directions=torch.ones(4, 1))
        tensor(2.)
    """
    _enough(x, y, 1)
    if not 1 <= power < math.inf:
        raise ConfigError(f"power = {power}: expected a finite number of at least 1")
    directions = full(directions)
    zero = int((directions == 0).all(1).sum()) if readable(directions) else 0
    if zero or not len(directions):
        raise ConfigError(
            f"{zero} of {len(directions)} directions are zero: expected at least one, and none of them zero, such as "
            "torch.randn(100, x.shape[1])"
        )
    unit = directions / expand_like(largest_entry(directions), directions)
    unit = unit / unit.square().sum(1, keepdim=True).sqrt()
    a, b = ((full(points) @ unit.T).sort(0).values for points in (x, y))
    n, m = len(a), len(b)
    # Between consecutive quantile levels of either cloud, in units of 1 / (n m), both quantile functions are constant.
    counts = (torch.arange(1, each + 1, device=a.device) * other for each, other in ((n, m), (m, n)))
    ends = torch.cat(list(counts)).sort().values
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    share = ((ends - starts).to(a.dtype) / (n * m)).unsqueeze(1)
    a, b = a[(starts // m).clamp(max=n - 1)], b[(starts // n).clamp(max=m - 1)]
    return ((a - b).abs().pow(power) * share).sum(0).mean().pow(1 / power)


@typed
def sinkhorn_divergence(
    x: Float[Tensor, "n channel"], y: Float[Tensor, "m channel"], *, epsilon: float, iterations: int = 100
) -> Float[Tensor, ""]:
    """``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2`` with cost ``|x - y|^2 / 2`` and entropy ``epsilon``, uniform weights.

    Symmetric log-domain updates from zero; the value is that of the dual after ``iterations`` of them.

    Args:
        x: samples, ``[n, channel]``.
        y: samples, ``[m, channel]``.
        epsilon: in units of a squared length, positive.
        iterations: at least 1; more for a smaller ``epsilon``.

    Raises:
        ConfigError: on an empty cloud, or numbers out of range.

    Source: Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, eq. 3,
    https://arxiv.org/abs/1810.08278.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> sinkhorn_divergence(x, x + 2, epsilon=1.0).round(decimals=3)
        tensor(2.)
    """
    _enough(x, y, 1)
    require_length("epsilon", epsilon)
    require_count("iterations", iterations, least=1)
    x, y = full(x), full(y)

    def kernel(a: Tensor, b: Tensor, /) -> Tensor:
        return distances(a, b).square() / (-2 * epsilon)

    def transport(a: Tensor, b: Tensor) -> Tensor:
        pairs = Affinities(a, b, [kernel])
        log_n, log_m = (torch.tensor(float(len(c)), device=a.device).log().to(a) for c in (a, b))
        f, g = a.new_zeros(len(a)), b.new_zeros(len(b))
        for _ in range(iterations):
            # In units of epsilon, with the uniform weights inside: f = -logsumexp_j(g_j + log_k - log m).
            new_f, new_g = log_m - pairs.rows(-g), log_n - pairs.columns(-f)
            f, g = (f + new_f) / 2, (g + new_g) / 2
        return epsilon * (f.mean() + g.mean())

    return transport(x, y) - (transport(x, x) + transport(y, y)) / 2
