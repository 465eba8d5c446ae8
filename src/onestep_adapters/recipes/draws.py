"""What the trajectory recipes draw first: data, noise, classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from onestep_adapters.recipes.problems import Problem


class Draw(NamedTuple):
    """Data and noise ``[count, *shape]``, and classes ``[count]`` or ``None``."""

    data: Tensor
    noise: Tensor
    labels: Tensor | None


def draw(problem: Problem, count: int, generator: torch.Generator) -> Draw:
    """Training data, each with noise of its own.

    Example:
        >>> from onestep_adapters.recipes.problems import open_problem
        >>> draw(open_problem("8gaussians"), 3, torch.Generator().manual_seed(0)).noise.shape
        torch.Size([3, 2])
    """
    data, labels = problem.batch(count, generator)
    return Draw(data, torch.randn(data.shape, generator=generator), labels)
