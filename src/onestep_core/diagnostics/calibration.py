"""Calibration: whether a denoiser's estimates behave as expected values."""

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.precision import without_gradient
from onestep_core.typing import Sample, typed


@typed
def calibration(denoised: Sample, samples: Sample) -> Float[Tensor, ""]:
    """``sum <F - m, x - m> / sum |F - m|^2``, ``m`` the mean of ``x``: the slope of samples on what was expected of
    them.

    An expected value is uncorrelated with its error, so the slope is 1 for an exact denoiser at every noise level and
    for any mixture of them. Below 1 the estimates are spread too far, as those of a fake score that lags behind samples
    which draw together; above 1 not far enough.

    Args:
        denoised: ``F``, estimates at noised samples, ``[batch, *shape]``.
        samples: ``x``, the samples without noise, ``[batch, *shape]``.

    Returns:
        0-d, without gradient; 1 where all estimates are the mean.

    Raises:
        ArgumentError: if the shapes differ.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> calibration(x / 2, x)
        tensor(2.)
    """
    x, estimates = without_gradient(samples), without_gradient(denoised)
    centre = x.mean(0)
    spread = (estimates - centre).square().sum()
    none = spread == 0
    return torch.where(none, 1.0, ((estimates - centre) * (x - centre)).sum() / torch.where(none, 1.0, spread))
