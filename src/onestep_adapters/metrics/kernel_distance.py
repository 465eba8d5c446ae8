"""The kernel distance between two sets of feature vectors: a maximum mean discrepancy with a polynomial kernel.

What it sees: all moments of the features up to the third; the Fréchet distance sees the first two. The estimate is
unbiased: numbers of different counts may be compared, and two sets of one distribution have a distance below zero about
half of the time.
"""

from jaxtyping import Float
from torch import Tensor

from onestep_adapters.metrics.estimates import require_finite_rows
from onestep_core.errors import ConfigError
from onestep_core.typing import typed


@typed
def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Unbiased squared MMD with the kernel ``k(a, b) = (a.b / d + 1)^3``.

    ``sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_ij k(x_i, y_j)``

    over all samples. The paper's KID, in Inception features, is the mean of this number over random subsets of 1,000
    samples; its expectation is the same.

    Args:
        x: feature vectors, ``[n, d]``, at least two.
        y: feature vectors, ``[m, d]``, at least two.

    Returns:
        A float64 scalar; zero in expectation if the distributions are equal, so also below zero.

    Raises:
        ConfigError: for fewer than two samples in a set, or rows that are not finite.

    Source: Binkowski et al., Demystifying MMD GANs, section 4, https://arxiv.org/abs/1801.01401; the estimator is that
    of Gretton et al., lemma 6, https://jmlr.org/papers/v13/gretton12a.html.

    Example:
        The kernel is 1 and 8 within the two sets, and 1 between them:

        >>> import torch
        >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1)).item()
        7.0
    """
    if min(len(x), len(y)) < 2:
        raise ConfigError(
            f"an unbiased distance needs at least two samples; got {len(x)} and {len(y)}: draw more samples"
        )
    require_finite_rows(x=x, y=y)
    x, y = x.detach().double(), y.detach().double()
    return _within(x) + _within(y) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    """The mean over all pairs of different points."""
    values, count = _kernel(x, x), len(x)
    return (values.sum() - values.diagonal().sum()) / (count * (count - 1))
