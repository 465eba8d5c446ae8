"""A convolutional encoder with random, fixed weights. It is not trained.

    h_0 = x,    h_{k+1} = norm(leaky(conv(h_k)))        conv: 3 x 3, stride 2, orthogonal rows, no bias

``norm`` divides the vector of every location by the root mean square of its channels. Stage ``k`` gives two features:
``stage_k``, the vectors of all locations, ``[batch, location, channel]``; and ``moments_k``, the mean and the standard
deviation over the locations, ``[batch, 1, 2 channel]``. Gradients reach the images, but no weight.

These features change less than pixels when an image is shifted a little. Trained encoders lead to much better images
(Deng et al., table on encoders, https://arxiv.org/abs/2602.04770).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from onestep_core.errors import ConfigError

_EPSILON = 1e-6


class RandomConvolutions(nn.Module):
    """``images [batch, channels, height, width] -> {"stage_1": ..., "moments_1": ..., ...}``.

    Args:
        channels: number of channels of the images.
        width: number of channels of the first stage; every next stage has twice as many.
        depth: number of stages; each halves height and width, rounded up.
        generator: draws the weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a size is below 1; at a call, if the images have another number of channels.

    Example:
        >>> encoder = RandomConvolutions(1, width=16, generator=torch.Generator().manual_seed(0))
        >>> {name: tuple(feature.shape) for name, feature in encoder(torch.zeros(3, 1, 8, 8)).items()}
        {'stage_1': (3, 16, 16), 'moments_1': (3, 1, 32), 'stage_2': (3, 4, 32), 'moments_2': (3, 1, 64)}
    """

    def __init__(
        self, channels: int, *, width: int = 32, depth: int = 2, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if min(channels, width, depth) < 1:
            raise ConfigError(f"channels = {channels}, width = {width}, depth = {depth}: expected at least 1 of each")
        sizes = [channels, *(width * 2**k for k in range(depth))]
        self.stages = nn.ModuleList(
            nn.Conv2d(ins, outs, 3, stride=2, padding=1, bias=False) for ins, outs in pairwise(sizes)
        )
        for stage in self.stages:
            nn.init.orthogonal_(stage.weight, generator=generator)  # type: ignore[arg-type]
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The features of ``x``, as a dictionary by name."""
        expected = self.stages[0].weight.shape[1]  # type: ignore[union-attr]
        if x.ndim != 4 or x.shape[1] != expected:
            raise ConfigError(f"images of shape {tuple(x.shape)}: expected [batch, {expected}, height, width]")
        features: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages, 1):
            x = leaky_relu(stage(x), 0.2)
            x = x * (x.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
            local = x.flatten(2).transpose(1, 2)
            mean = local.mean(1, keepdim=True)
            deviation = ((local - mean).square().mean(1, keepdim=True) + _EPSILON).sqrt()
            features[f"stage_{index}"] = local
            features[f"moments_{index}"] = torch.cat([mean, deviation], 2)
        return features
