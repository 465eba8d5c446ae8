"""A learned log-variance: a weight that carries a gradient, and so is not among the weights.

Losses of different times differ by orders of magnitude. A small network estimates their size; dividing by its
answer makes them equal, and the added term keeps the answer from growing.
"""

from onestep_core.precision import full
from onestep_core.typing import PerSample, typed


@typed
def uncertainty(loss: PerSample, log_variance: PerSample) -> PerSample:
    """``exp(-u) loss + u``: the loss under a learned log-variance ``u``.

    For a given condition the best ``u`` is ``log E[loss]``, at which the network's gradient is that of
    ``loss / E[loss]``. The gradient reaches both arguments.

    Args:
        loss: raw or weighted losses, ``[batch]``.
        log_variance: ``u``, ``[batch]``, from a small function of the time.

    Returns:
        ``[batch]``, in at least float32; may be negative.

    Raises:
        ArgumentError: if the shapes differ.

    Source: Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, https://arxiv.org/abs/1705.07115;
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models,
    https://arxiv.org/abs/2312.02696; Lu and Song, section 4 (there ``w = -u``), https://arxiv.org/abs/2410.11081.

    Example:
        >>> import torch
        >>> uncertainty(torch.tensor([2.0]), torch.tensor([0.0]))
        tensor([2.])
    """
    u = full(log_variance)
    return (-u).exp() * full(loss) + u
