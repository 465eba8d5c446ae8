"""Distances: one number per sample from a prediction and a target.

A distance compares shapes first (nothing broadcasts), works in at least float32, and returns one number per sample,
``[batch]``. A sum and a mean over a sample are different losses as soon as a weight depends on their value, so each has
its own name.
"""

import math

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.shapes import expand_like, largest_entry, per_sample_mean, per_sample_sum
from onestep_core.typing import PerSample, Sample, typed


@typed
def squared_l2(p: Sample, q: Sample) -> PerSample:
    """``sum (p - q)^2`` over a sample.

    Args:
        p: prediction, ``[batch, *shape]``.
        q: target, ``[batch, *shape]``.

    Raises:
        ArgumentError: if the shapes differ.

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
    difference = full(p) - full(q)
    unit = largest_entry(difference)
    square = per_sample_sum((difference / expand_like(unit, difference)).square())
    # Compared with zero, so that NaN stays NaN.
    same = square == 0
    return unit * torch.where(same, 0.0, torch.where(same, 1.0, square).sqrt())


@typed
def cosine(p: Sample, q: Sample) -> PerSample:
    """``1 - <p, q> / (|p| |q|)`` over a sample, between 0 and 2; 1 where one of them is zero.

    Computed as ``|p / |p| - q / |q||^2 / 2``, which loses no digits for two equal directions. Arguments and errors as
    :func:`squared_l2`.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    p, q = full(p), full(q)
    (u, no_p), (v, no_q) = _direction(p), _direction(q)
    # Zero, or NaN where a number is none: beside a sample of zeros, too.
    none = per_sample_sum(0 * (p.detach() + q.detach()))
    return torch.where(no_p | no_q, 1.0 + none, per_sample_sum((u - v).square()) / 2)


@typed
def pseudo_huber(p: Sample, q: Sample, *, c: float) -> PerSample:
    """``sqrt(sum (p - q)^2 + c^2) - c``: quadratic near zero, linear far away.

    Computed as ``d / (sqrt(d + c^2) + c)`` with ``d = sum (p - q)^2``: nothing cancels for a small ``d``.

    Args:
        p: prediction, ``[batch, *shape]``.
        q: target, ``[batch, *shape]``.
        c: where the two regimes meet, in units of the data, positive. Improved consistency training uses
            ``0.00054 * sqrt(dimension)``.

    Raises:
        ConfigError: if ``c`` is not positive: at zero distance the gradient would not exist. :func:`l2` is the limit.
        ArgumentError: if the shapes differ.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, eq. 7,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> pseudo_huber(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2), c=4.0)
        tensor([1.])
    """
    if not 0 < c < math.inf:
        raise ConfigError(f"c = {c}: expected a positive, finite length")
    difference = full(p) - full(q)
    unit = largest_entry(difference).clamp(min=c)
    square = per_sample_sum((difference / expand_like(unit, difference)).square())
    width = c / unit
    return unit * (square / ((square + width.square()).sqrt() + width))


def _direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x / |x|``, and whether a sample is zero, ``[batch]``; its direction is then zero."""
    x = x / expand_like(largest_entry(x), x)
    square = per_sample_sum(x.square())
    nothing = square == 0
    return x / expand_like(torch.where(nothing, 1.0, square).sqrt(), x), nothing
