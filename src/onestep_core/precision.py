"""Precision: targets, fields and distances are computed in at least float32.

Half precision is for networks. In half precision ``v - (t - s) du/dt``, or ``x - y`` of two near-duplicates, loses
every digit. So what the core computes around a network is at least float32, whatever autocast gives, and float64 where
the inputs are float64.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: float16 and bfloat16 are converted, float32 and float64 returned as they are.

    Example:
        >>> full(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def double(x: Tensor) -> Tensor:
    """``x`` in float64, or in at least float32 on a device without float64 (Apple's ``mps``).

    Example:
        >>> double(torch.ones(2)).dtype
        torch.float64
    """
    return full(x.float()) if x.device.type == "mps" else x.double()


def without_gradient(x: Tensor) -> Tensor:
    """``x`` in at least float32 and without gradient, in reverse and in forward mode: the stop-gradient ``sg``."""
    return full(x).detach()


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which matrix products of tensors like ``x`` keep their precision under an outer autocast."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


def network_dtype(x: Tensor) -> torch.dtype:
    """The type in which a network computes that is given ``x``: autocast's where it is on, else that of ``x``."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
