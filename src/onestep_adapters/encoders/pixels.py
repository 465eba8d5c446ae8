"""Pixels as features, and a function that joins several encoders into one."""

from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.protocols import Features
from onestep_core.validators import require_call


def pixels(x: Tensor) -> dict[str, Tensor]:
    """The flattened sample as a single location: ``{"pixels": [batch, 1, size]}``.

    Raises:
        ConfigError: for a tensor of integers.

    Example:
        >>> import torch
        >>> pixels(torch.zeros(2, 1, 8, 8))["pixels"].shape
        torch.Size([2, 1, 64])
    """
    if not x.is_floating_point():
        raise ConfigError(f"samples of {x.dtype}: expected floating point; for images of bytes .float() / 127.5 - 1")
    return {"pixels": x.flatten(1).unsqueeze(1)}


def joined(*encoders: Features) -> Features:
    """One encoder that returns the features of all given encoders.

    Raises:
        ConfigError: without an encoder, or for what is none; at a call, if two return a feature with the same name.

    Example:
        >>> import torch
        >>> both = joined(pixels, lambda x: {"mean": x.flatten(1).mean(1)[:, None, None]})
        >>> sorted(both(torch.zeros(2, 1, 8, 8)))
        ['mean', 'pixels']
    """

    for encoder in encoders:
        require_call("an encoder", encoder, ("x",))
    if not encoders:
        raise ConfigError("no encoder to join: expected at least one")

    def everything(x: Tensor, /) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for encoder in encoders:
            found = dict(encoder(x))
            if twice := sorted(features.keys() & found.keys()):
                raise ConfigError(f"two encoders return features called {twice}: rename the features of one encoder")
            features |= found
        return features

    return everything
