"""Sampling in one network evaluation.

A network that predicts an average velocity is evaluated once, at the path's noise end; the jump ends at the data end.
A drifting or distilled generator needs no sampler: ``samples = generator(noise)``.

Samplers draw no random numbers and keep gradients, because distribution matching trains through them. To sample without
a graph, use ``torch.no_grad()`` or ``torch.inference_mode()`` yourself.
"""

from onestep_adapters.networks import as_one_step
from onestep_core.protocols import AverageVelocity, Path
from onestep_core.typing import Sample, typed


@typed
def one_step(average_velocity: AverageVelocity, noise: Sample, *, path: Path) -> Sample:
    """``z + (data_time - noise_time) a(z, noise_time, data_time)`` with ``z = sigma(noise_time) noise``.

    Args:
        average_velocity: ``(z, t, s) -> mean velocity``; called exactly once.
        noise: standard normal, ``[batch, *shape]``.
        path: gives the two ends and the scale of the noise.

    Returns:
        Samples, ``[batch, *shape]``, in at least float32.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, section 4.3,
    https://arxiv.org/abs/2505.13447.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> one_step(lambda z, t, s: z - 3.0, torch.ones(1, 2), path=Linear())
        tensor([[3., 3.]])
    """
    return as_one_step(average_velocity, path=path)(noise)
