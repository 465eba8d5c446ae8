"""Samples as their own features, and several encoders as one."""

from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.protocols import Features


def pixels(x: Tensor) -> dict[str, Tensor]:
    """The whole sample as one location: ``{"pixels": [batch, 1, size]}``.

    Example:
        >>> import torch
        >>> pixels(torch.zeros(2, 1, 8, 8))["pixels"].shape
        torch.Size([2, 1, 64])
    """
    return {"pixels": x.flatten(1).unsqueeze(1)}


def joined(*encoders: Features) -> Features:
    """The features of all encoders together.

    Raises:
        ConfigError: at a call, if two of them give a feature of one name.

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
                raise ConfigError(f"two encoders give features called {twice}: rename those of one")
            features |= found
        return features

    return everything
