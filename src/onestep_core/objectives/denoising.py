"""Denoising: regression from noisy states onto their clean data.

The minimiser is ``E[data | z]``, from which velocity, noise and score follow (``flow/predictions``). With EDM's
preconditioning and :func:`onestep_core.regression.karras` this is EDM's training loss.
"""

from onestep_core.errors import like_states
from onestep_core.protocols import Denoiser
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def denoising_regression(denoiser: Denoiser, z: Sample, data: Sample, t: Time) -> Regression:
    """``denoiser(z, t)`` against ``sg[data]``.

    Args:
        denoiser: the network, ``(z, t) -> expected data``.
        z: states on a path, ``[batch, *shape]``.
        data: clean samples, ``[batch, *shape]``.
        t: times (noise levels on the variance-exploding path), ``[batch]``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, eq. 2 and 8,
    https://arxiv.org/abs/2206.00364.

    Example:
        >>> import torch
        >>> from onestep_core.flow import VarianceExploding, edm
        >>> from onestep_core.regression import karras, mse
        >>> sigma, data = torch.tensor([0.1, 1.0]), torch.zeros(2, 3)
        >>> z = VarianceExploding()(data, torch.ones(2, 3), sigma).z
        >>> raw = mse(*denoising_regression(edm(lambda z, sigma: 0 * z), z, data, sigma))
        >>> loss = (raw * karras(sigma, sigma_data=0.5)).mean()
    """
    return regression(like_states(denoiser(z, t), z), data)
