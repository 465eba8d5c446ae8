"""The last step of every grid: from float64 to the wanted type, without two equal times."""

import torch
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.validators import readable


def rounded_grid(times: Tensor, *, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """A grid computed in float64 on the CPU, rounded to ``dtype`` and moved to ``device``.

    Args:
        times: strictly monotone, ``[points]``.
        device: device of the result.
        dtype: type of the result; torch's default one where ``None``.

    Raises:
        ConfigError: if two neighbours become equal in ``dtype``; not while compiling.

    Example:
        >>> rounded_grid(torch.tensor([1.0, 0.999, 0.0], dtype=torch.float64), device=None, dtype=torch.bfloat16)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: 1 of 3 times repeat in torch.bfloat16: take fewer steps or another dtype
    """
    kind = dtype or torch.get_default_dtype()
    rounded = times.to(kind)
    # While compiling, values cannot be read.
    repeated = int((rounded.double().diff() == 0).sum()) if readable(rounded) else 0
    if repeated:
        raise ConfigError(f"{repeated} of {len(times)} times repeat in {kind}: take fewer steps or another dtype")
    return rounded.to(device)
