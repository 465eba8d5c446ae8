"""One vector for each image from an encoder: what distances between sets of images are measured in."""

from collections.abc import Callable

import torch
from torch import Tensor

from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.encoders.multiscale import features_of

CHUNK = 250
"""Images in one evaluation of the encoder."""


def pooled_features(
    encoder: Encoder, *, device: torch.device | str = "cpu", chunk: int = CHUNK
) -> Callable[[Tensor], Tensor]:
    """The mean over the locations of the encoder's last layer, ``[n, channel, height, width] -> [n, feature]``.

    The network is copied once, see :func:`~onestep_adapters.encoders.multiscale.multiscale`; grey images are repeated
    to its number of channels and small ones enlarged, as :class:`~onestep_adapters.encoders.encoder.Encoder` says. No
    gradient is computed.

    Args:
        encoder: network, layers and normalisation.
        device: of the copy; images are moved there.
        chunk: images in one evaluation, at least 1.

    Raises:
        ConfigError: for another value than an encoder; at a call, for images that do not fit.

    Example:
        >>> from torch import nn
        >>> encoder = Encoder(nn.Conv2d(1, 4, 2, stride=2), ("",), channels=1)
        >>> pooled_features(encoder)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 4])
    """
    features = features_of(encoder, encoder.layers[-1:], patches=(), locations=False, chunk=chunk).to(device)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        found = features(images.to(device))
        (mean,) = (value for name, value in found.items() if name.endswith("/mean"))
        return mean.flatten(1)

    return encode
