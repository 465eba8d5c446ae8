"""Tensors of one precision for a loss: the widest of them, at least float32."""

import torch
from torch import Tensor

from onestep_core.errors import ConfigError


def widest(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest of their precisions, at least float32.

    Args:
        tensors: by the name that a message uses.

    Raises:
        ConfigError: for a tensor that is not floating point.

    Example:
        >>> [t.dtype for t in widest(queries=torch.ones(2), keys=torch.ones(2, dtype=torch.float64))]
        [torch.float64, torch.float64]
    """
    dtype = torch.float32
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConfigError(f"{name} of {tensor.dtype}: expected floating point; convert with .float()")
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors.values())
