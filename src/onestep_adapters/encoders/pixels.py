"""Pixels as features, and a function that joins several encoders into one."""

from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.protocols import Features


def pixels(x: Tensor) -> dict[str, Tensor]:
    """The flattened sample as a single location: ``{"pixels": [batch, 1, size]}``.

    Example:
        >>> import torch
        >>> pixels(torch.zeros(2, 1, 8, 8))["pixels"].shape
        torch.Size([2, 1, 64])
    """
    return {"pixels": x.flatten(1).unsqueeze(1)}


def joined(*encoders: Features) -> Features:
    """One encoder that returns the features of all given encoders.

    Raises:
        ConfigError: at a call, if two encoders return a feature with the same name.

    Example:
        >>> import torch
        >>> both = joined(pixels, lambda x: {"mean": x.flatten(1).mean(1)[:, None, None]})
        >>> sorted(both(torch.zeros(2, 1, 8, 8)))
        ['mean', 'pixels']
    """

    def everything(x: Tensor, /) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for encoder in encoders:
            found = dict(encoder(x))
            if twice := sorted(features.keys() & found.keys()):
                raise ConfigError(f"two encoders return features called {twice}: rename the features of one encoder")
            features |= found
        return features

    return everything
