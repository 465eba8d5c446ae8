"""Distances: one number per sample from a prediction and a target.

A distance compares shapes first (nothing broadcasts), works in at least float32, and returns one number per sample,
``[batch]``. A sum and a mean over a sample are different losses as soon as a weight depends on their value, so each has
its own name.
"""

import torch

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.shapes import per_sample_mean, per_sample_sum
from onestep_core.typing import PerSample, Sample, typed


@typed
def squared_l2(p: Sample, q: Sample) -> PerSample:
    """``sum (p - q)^2`` over a sample.

    Args:
        p: prediction, ``[batch, *shape]``.
        q: target, ``[batch, *shape]``.

    Raises:
        jaxtyping.TypeCheckError: if the shapes differ.

    Example:
        >>> squared_l2(torch.ones(1, 4), torch.zeros(1, 4))
        tensor([4.])
    """
    return per_sample_sum((full(p) - full(q)).square())


@typed
def mse(p: Sample, q: Sample) -> PerSample:
    """``mean (p - q)^2`` over a sample. Arguments and errors as :func:`squared_l2`.

    Example:
        >>> mse(torch.ones(1, 4), torch.zeros(1, 4))
        tensor([1.])
    """
    return per_sample_mean((full(p) - full(q)).square())


@typed
def l1(p: Sample, q: Sample) -> PerSample:
    """``mean |p - q|`` over a sample. Arguments and errors as :func:`squared_l2`.

    Example:
        >>> l1(-torch.ones(1, 4), torch.zeros(1, 4))
        tensor([1.])
    """
    return per_sample_mean((full(p) - full(q)).abs())


@typed
def l2(p: Sample, q: Sample) -> PerSample:
    """``sqrt(sum (p - q)^2)`` over a sample; its gradient at ``p = q`` is zero, not NaN.

    Arguments and errors as :func:`squared_l2`.

    Example:
        >>> l2(torch.ones(1, 4), torch.zeros(1, 4))
        tensor([2.])
    """
    square = per_sample_sum((full(p) - full(q)).square())
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)


@typed
def cosine(p: Sample, q: Sample) -> PerSample:
    """``1 - <p, q> / (|p| |q|)`` over a sample, between 0 and 2; 1 where one of them is zero.

    Arguments and errors as :func:`squared_l2`.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    p, q = full(p).flatten(1), full(q).flatten(1)
    norms = per_sample_sum(p.square()) * per_sample_sum(q.square())
    apart = norms > 0
    return 1 - torch.where(apart, per_sample_sum(p * q) / torch.where(apart, norms, 1.0).sqrt(), 0.0)


@typed
def pseudo_huber(p: Sample, q: Sample, *, c: float) -> PerSample:
    """``sqrt(sum (p - q)^2 + c^2) - c``: quadratic near zero, linear far away.

    Args:
        p: prediction, ``[batch, *shape]``.
        q: target, ``[batch, *shape]``.
        c: where the two regimes meet, in units of the data, positive. Improved consistency training uses
            ``0.00054 * sqrt(dimension)``.

    Raises:
        ConfigError: if ``c`` is not positive: at zero distance the gradient would not exist. :func:`l2` is the limit.
        jaxtyping.TypeCheckError: if the shapes differ.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, eq. 7,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> pseudo_huber(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2), c=4.0)
        tensor([1.])
    """
    if not c > 0:
        raise ConfigError(f"c = {c}: expected a positive length")
    return (per_sample_sum((full(p) - full(q)).square()) + c**2).sqrt() - c
