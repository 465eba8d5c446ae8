"""Random changes of images, for contrastive learning: every image of a batch is changed differently.

Images are ``[n, channel, height, width]`` in [-1, 1]; results have the same shape and range. Every function draws from
its generator, on the generator's device, which has to be that of the images. Nothing is differentiable on purpose.
:class:`Augmentation` composes them.

On small grey images crops, shifts, brightness and contrast are enough.
"""

import math

import attrs
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from onestep_core.errors import ConfigError
from onestep_core.validators import (
    at_least_and_below,
    count,
    not_negative,
    positive,
    require_count,
    require_share,
    share,
)

_RATIO = 4 / 3


@torch.no_grad()
def crop_and_resize(images: Tensor, *, smallest: float = 0.2, generator: torch.Generator) -> Tensor:
    """A random part of every image, resized to the whole size (bilinear).

        area ~ U(smallest, 1),    log(width / height) ~ U(-log 4/3, log 4/3),    place uniform among those that fit

    Args:
        images: ``[n, channel, height, width]``.
        smallest: smallest area of a part, as a share of the image, above 0; SimCLR: 0.08, MoCo v2 and MAE: 0.2.
        generator: of the draws.

    Raises:
        ConfigError: for images that are no batch, or a share out of range.

    Source: Szegedy et al., Going Deeper with Convolutions, section 6, https://arxiv.org/abs/1409.4842. Their code tries
    again when a part does not fit into the image; here the side that is too long is cut to the image's.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> crop_and_resize(torch.zeros(2, 1, 8, 8), generator=g).shape
        torch.Size([2, 1, 8, 8])
    """
    _check(images)
    if not 0 < smallest <= 1:
        raise ConfigError(f"smallest = {smallest}: expected a share of the area, above 0 and at most 1")
    area = smallest + (1 - smallest) * _uniform(images, generator)
    stretch = ((2 * _uniform(images, generator) - 1) * math.log(_RATIO)).exp()
    wide, high = ((area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1))
    right, down = (2 * _uniform(images, generator) - 1 for _ in range(2))
    return _sampled(images, wide, high, right * (1 - wide), down * (1 - high))


@torch.no_grad()
def horizontal_flip(images: Tensor, *, probability: float = 0.5, generator: torch.Generator) -> Tensor:
    """Mirror left and right with a probability. Not for digits or text.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> horizontal_flip(torch.tensor([[[[0.0, 1.0]]]]), probability=1.0, generator=g)
        tensor([[[[1., 0.]]]])
    """
    _check(images)
    return torch.where(_chosen(images, probability, generator), images.flip(3), images)


@torch.no_grad()
def shift(images: Tensor, *, pixels: int = 1, generator: torch.Generator) -> Tensor:
    """Move every image by whole pixels, ``-pixels`` to ``pixels`` in both directions; the edge is repeated.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> shift(torch.zeros(2, 1, 8, 8), pixels=1, generator=g).shape
        torch.Size([2, 1, 8, 8])
    """
    _check(images)
    require_count("pixels", pixels)
    n, _, height, width = images.shape
    moves = torch.randint(-pixels, pixels + 1, (2, n, 1), generator=generator, device=generator.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    moved = images.gather(2, rows[:, None, :, None].expand_as(images))
    return moved.gather(3, columns[:, None, None, :].expand_as(images))


@torch.no_grad()
def brightness(images: Tensor, *, strength: float = 0.4, generator: torch.Generator) -> Tensor:
    """Multiply every image by a factor, uniform in ``1 - strength`` to ``1 + strength``; black is 0 for this.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> brightness(-torch.ones(1, 1, 2, 2), generator=g).unique()
        tensor([-1.])
    """
    _check(images)
    return _within((images + 1) * _factor(images, strength, generator) - 1)


@torch.no_grad()
def contrast(images: Tensor, *, strength: float = 0.4, generator: torch.Generator) -> Tensor:
    """Multiply the distance of every pixel from the image's mean by a factor, as in :func:`brightness`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> contrast(torch.full((1, 1, 2, 2), 0.5), generator=g).unique()
        tensor([0.5000])
    """
    _check(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    return _within(mean + (images - mean) * _factor(images, strength, generator))


@torch.no_grad()
def blur(
    images: Tensor, *, largest: float = 1.0, probability: float = 0.5, generator: torch.Generator, smallest: float = 0.1
) -> Tensor:
    """Convolve with a Gaussian, with a probability; its width in pixels is uniform in ``smallest`` to ``largest``.

    SimCLR blurs half of the images with 0.1 to 2 pixels at a size of 224.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> blur(torch.ones(2, 3, 8, 8), generator=g).unique()
        tensor([1.])
    """
    _check(images)
    if not 0 < smallest <= largest < math.inf:
        raise ConfigError(f"blur of {smallest} to {largest} pixels: expected 0 < smallest <= largest")
    n, channels, height, width = images.shape
    reach = min(math.ceil(2 * largest), height - 1, width - 1)
    sigma = smallest + (largest - smallest) * _uniform(images, generator)
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(channels, 0)
    rows = images.reshape(1, n * channels, height, width)
    rows = conv2d(pad(rows, (reach, reach, 0, 0), "replicate"), kernel[:, None, None, :], groups=n * channels)
    rows = conv2d(pad(rows, (0, 0, reach, reach), "replicate"), kernel[:, None, :, None], groups=n * channels)
    blurred = _within(rows.reshape_as(images))
    return torch.where(_chosen(images, probability, generator), blurred, images)


@torch.no_grad()
def cutout(images: Tensor, *, side: float = 0.3, probability: float = 0.5, generator: torch.Generator) -> Tensor:
    """Set a square to the image's mean, with a probability; ``side`` is a share of the shorter side of the image.

    Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
    https://arxiv.org/abs/1708.04552. There the square may leave the image and is zero after normalisation.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cutout(torch.ones(1, 1, 4, 4), generator=g).unique()
        tensor([1.])
    """
    _check(images)
    require_share("side", side)
    _, _, height, width = images.shape
    length = max(1, round(side * min(height, width)))

    def covered(size: int) -> Tensor:
        start = (_uniform(images, generator) * (size - length + 1)).long()[:, None]
        place = torch.arange(size, device=images.device)
        return (place >= start) & (place < start + length)

    square = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.where(square & _chosen(images, probability, generator), mean, images)


@attrs.frozen
class Augmentation:
    """The random changes that make a view of an image: ``augmentation(images, generator)``.

    In this order: crop, shift, flip, brightness, contrast, blur, cutout. A change whose number says "none" is left out.

    Example:
        >>> view = Augmentation(shift=1, contrast=0.4)
        >>> view(torch.zeros(2, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 8, 8])
    """

    crop_area: float = attrs.field(default=1.0, validator=[share, positive])
    """Smallest area of a random crop, as a share of the image, above 0 to 1; 1: no crop. SimCLR: 0.08, MoCo v2: 0.2."""
    shift: int = attrs.field(default=0, validator=count)
    """Largest random shift in pixels; 0: none."""
    flip_probability: float = attrs.field(default=0.0, validator=share)
    """Probability of a horizontal flip, 0 to 1; 0.5 in the papers. Not for digits or text."""
    brightness: float = attrs.field(default=0.0, validator=at_least_and_below(0.0, 1.0))
    """Brightness is multiplied by 1 - b to 1 + b, b at least 0 and below 1. MoCo v2: 0.4, SimCLR: 0.8."""
    contrast: float = attrs.field(default=0.0, validator=at_least_and_below(0.0, 1.0))
    """Contrast is multiplied by 1 - c to 1 + c, c at least 0 and below 1. MoCo v2: 0.4, SimCLR: 0.8."""
    blur: float = attrs.field(default=0.0, validator=not_negative)
    """Largest standard deviation of a Gaussian blur of half of the images, in pixels; 0: none. Papers: 2 at 224
    pixels."""
    cutout: float = attrs.field(default=0.0, validator=at_least_and_below(0.0, 1.0))
    """Side of a square that is set to the mean in half of the images, as a share of the image's side; 0: none. Papers:
    none."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A view of every image ``[n, channel, height, width]``, in [-1, 1]."""
        if self.crop_area < 1:
            images = crop_and_resize(images, smallest=self.crop_area, generator=generator)
        if self.shift:
            images = shift(images, pixels=self.shift, generator=generator)
        if self.flip_probability:
            images = horizontal_flip(images, probability=self.flip_probability, generator=generator)
        if self.brightness:
            images = brightness(images, strength=self.brightness, generator=generator)
        if self.contrast:
            images = contrast(images, strength=self.contrast, generator=generator)
        if self.blur:
            images = blur(images, largest=self.blur, smallest=min(0.1, self.blur), generator=generator)
        if self.cutout:
            images = cutout(images, side=self.cutout, generator=generator)
        return images


def _check(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ConfigError(
            f"images of shape {tuple(images.shape)} and {images.dtype}: expected [n, channel, height, width], floating "
            "point in [-1, 1]"
        )


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=generator.device)


def _chosen(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    require_share("probability", probability)
    return (_uniform(images, generator) < probability)[:, None, None, None]


def _factor(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    require_share("strength", strength)
    return (1 + strength * (2 * _uniform(images, generator) - 1)).to(images.dtype)[:, None, None, None]


def _within(images: Tensor) -> Tensor:
    return images.clamp(-1, 1)


def _sampled(images: Tensor, wide: Tensor, high: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The parts of size ``(wide, high)`` around ``(right, down)``, in units where the image is [-1, 1]^2."""
    zero = torch.zeros_like(wide)
    maps = torch.stack([torch.stack([wide, zero, right], 1), torch.stack([zero, high, down], 1)], 1)
    grid = affine_grid(maps.to(images.dtype), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
