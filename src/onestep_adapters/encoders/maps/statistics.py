"""The features that drifting uses of one feature map: vectors of locations, and statistics over groups of locations.

For a map ``m`` of ``c`` channels and ``h x w`` locations:

    location        m at every location                             [batch, h w, c]
    mean, std       over all locations                              [batch, 1, c]
    patchk-mean     over patches of k x k locations                 [batch, ceil(h / k) ceil(w / k), c]
    patchk-std      likewise

Standard deviations are those of the population (division by the number of locations). Their gradient is zero where the
deviation is zero. Patches do not overlap; at the right and lower edge they are smaller where ``k`` does not divide the
map. Statistics that would only repeat another feature are left out: those of a map of one location, and of a patch that
covers the map.

Source: Deng et al., Generative Modeling via Drifting, appendix A.5, https://arxiv.org/abs/2602.04770.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


def map_statistics(features: Tensor, *, patches: Sequence[int] = (2, 4), locations: bool = True) -> dict[str, Tensor]:
    """The features of a map by name, each ``[batch, location, channel]``.

    Args:
        features: ``[batch, channel, height, width]``.
        patches: sides of the patches, in locations, each at least 2.
        locations: whether the vectors of all locations are among the features.

    Example:
        >>> found = map_statistics(torch.zeros(3, 8, 4, 4))
        >>> {name: tuple(feature.shape[1:]) for name, feature in found.items()}
        {'location': (16, 8), 'mean': (1, 8), 'std': (1, 8), 'patch2-mean': (4, 8), 'patch2-std': (4, 8)}
    """
    height, width = features.shape[2:]
    vectors = _vectors(features)
    if height * width == 1:
        return {"location" if locations else "mean": vectors}
    mean = vectors.mean(1, keepdim=True)
    # The gradient of a norm is zero at zero; that of the root of a variance is infinite.
    std = torch.linalg.vector_norm(vectors - mean, dim=1, keepdim=True) / (height * width) ** 0.5
    found = {"location": vectors} if locations else {}
    found |= {"mean": mean, "std": std}
    for side in patches:
        if side < max(height, width):
            found |= _patches(features, side)
    return found


def mean_square(images: Tensor) -> Tensor:
    """The mean over the pixels of the square of every channel, ``[batch, 1, channel]``.

    Example:
        >>> mean_square(2 * torch.ones(1, 3, 4, 4))
        tensor([[[4., 4., 4.]]])
    """
    return images.square().mean((2, 3))[:, None]


def _vectors(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def _patches(features: Tensor, side: int) -> dict[str, Tensor]:
    height, width = features.shape[2:]

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)

    middle = mean(features)
    spread = middle.repeat_interleave(side, 2)[:, :, :height].repeat_interleave(side, 3)[..., :width]
    variance = mean((features - spread).square())
    positive = variance > 0
    std = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return {f"patch{side}-mean": _vectors(middle), f"patch{side}-std": _vectors(std)}
