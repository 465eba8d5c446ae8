"""Training times that several methods share."""

import torch
from torch import Tensor

from onestep_core import sample_logit_normal, sample_uniform


def mixed_times(count: int, uniform_share: float, generator: torch.Generator, *, mean: float = 0.0) -> Tensor:
    """Times of which a share is uniform on (0, 1); the others are logit-normal(mean, 1).

    Args:
        count: number of times.
        uniform_share: probability that a time is uniform, 0 to 1.
        generator: random generator.
        mean: mean of the logit-normal times' logits.

    Example:
        >>> mixed_times(4, 0.5, torch.Generator().manual_seed(0)).shape
        torch.Size([4])
    """
    device = generator.device
    central = sample_logit_normal(count, mean=mean, std=1.0, generator=generator, device=device)
    anywhere = sample_uniform(count, generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < uniform_share, anywhere, central)
