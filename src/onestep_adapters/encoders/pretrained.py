"""Pretrained encoders by name. Each needs an extra, which is imported when the encoder is made."""

from collections.abc import Callable, Mapping

from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.names import choose


def _efficientnet_lite0() -> Encoder:
    from onestep_adapters.encoders.checkpoints.efficientnet import efficientnet_lite0

    return efficientnet_lite0()


PRETRAINED: Mapping[str, Callable[[], Encoder]] = {"efficientnet-lite0": _efficientnet_lite0}
"""A function that makes each pretrained encoder, by name."""


def pretrained_encoder(name: str) -> Encoder:
    """A pretrained encoder by its name.

    Raises:
        ConfigError: if the name is unknown; the message lists the known names.
        MissingExtraError: if the packages of the encoder are not installed.

    Example:
        >>> pretrained_encoder("efficientnet-lite0").channels
        3
    """
    return PRETRAINED[choose(name, PRETRAINED, "pretrained encoder")]()
