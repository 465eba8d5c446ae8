"""The result of every objective here: a prediction and a frozen target.

A method of one-step generation regresses an output of the network onto a target that may be computed with the network
but carries no gradient. :class:`Regression` holds the two; a distance makes one number per
sample of them; a weight scales those numbers; the caller takes the mean:

    loss = (weight * distance(*regression)).mean()

That both halves have one shape is checked by the distance, not here: a named tuple can be built inside a
compiled region and under every ``torch.func`` transform.
"""

from typing import NamedTuple

from torch import Tensor

from onestep_core.precision import full, without_gradient
from onestep_core.typing import Sample, typed


class Regression(NamedTuple):
    """A prediction that carries the gradient and a target that does not, both ``[batch, *shape]``."""

    prediction: Tensor
    target: Tensor


@typed
def regression(prediction: Sample, target: Sample) -> Regression:
    """Pair ``prediction`` with ``sg(target)``, both in at least float32.

    A batch without samples has no losses, ``[0]``: those of its parts can be joined by ``torch.cat``. Its mean is NaN.

    Args:
        prediction: output of the network, ``[batch, *shape]``.
        target: what the output should be, ``[batch, *shape]``; its gradient is cut, in reverse and forward mode.

    Raises:
        ArgumentError: if the shapes differ, or one is not floating point.

    Example:
        >>> import torch
        >>> pair = regression(torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True))
        >>> pair.prediction.requires_grad, pair.target.requires_grad
        (True, False)
    """
    return Regression(full(prediction), without_gradient(target))


@typed
def field_regression(samples: Sample, field: Sample) -> Regression:
    """Regress ``samples`` onto ``sg(samples + field)``.

    With :func:`squared_l2` the value is ``|field|^2`` and the gradient in the samples ``-2 field``: a step of
    gradient descent moves every sample along its displacement. Drift fields and score gaps end here.

    Args:
        samples: points that carry the gradient, ``[batch, *shape]``.
        field: their displacement, ``[batch, *shape]``, taken as given.

    Raises:
        ArgumentError: if the shapes differ.

    Source: Deng et al., Generative Modeling via Drifting, eq. of the training objective,
    https://arxiv.org/abs/2602.04770.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 2, requires_grad=True)
        >>> prediction, target = field_regression(x, torch.tensor([[1.0, 2.0]]))
        >>> (prediction - target).pow(2).sum().backward()
        >>> x.grad
        tensor([[-2., -4.]])
    """
    x = full(samples)
    return Regression(x, without_gradient(x) + without_gradient(field))
