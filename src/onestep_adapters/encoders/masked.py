"""Masked autoencoding (MAE): patches of images, masks, and the loss on the hidden patches."""

import torch
from einops import rearrange
from torch import Tensor

from onestep_adapters.encoders.floats import widest
from onestep_core.errors import ConfigError

_EPSILON = 1e-6


def patchify(images: Tensor, size: int) -> Tensor:
    """Images as rows of patches; inside a patch the order is (row, column, channel), as in the released code.

    Args:
        images: ``[n, channel, height, width]``.
        size: side of a patch in pixels; it divides height and width.

    Returns:
        ``[n, patch, size * size * channel]``; patches row by row.

    Raises:
        ConfigError: if the images are no batch, or the size is no whole number that divides their sides.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, section 3, https://arxiv.org/abs/2111.06377.

    Example:
        >>> patchify(torch.arange(8.0).reshape(1, 1, 2, 4), 2).tolist()
        [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    if images.ndim != 4:
        raise ConfigError(f"images of shape {tuple(images.shape)}: expected [n, channel, height, width]")
    _check_side(size)
    height, width = images.shape[2:]
    if size < 1 or height % size or width % size:
        raise ConfigError(f"patches of {size} pixels do not divide images of {height} x {width}: choose a divisor")
    return rearrange(images, "n c (h p) (w q) -> n (h w) (p q c)", p=size, q=size)


def unpatchify(patches: Tensor, size: int, *, rows: int | None = None) -> Tensor:
    """The inverse of :func:`patchify`.

    Args:
        patches: ``[n, patch, size * size * channel]``.
        size: side of a patch in pixels.
        rows: rows of patches in an image; by default the images are square.

    Returns:
        ``[n, channel, height, width]``.

    Raises:
        ConfigError: if the patches are not those of an image.

    Example:
        >>> images = torch.randn(2, 3, 4, 8)
        >>> bool((unpatchify(patchify(images, 2), 2, rows=2) == images).all())
        True
    """
    _check_side(size)
    if patches.ndim != 3 or size < 1 or patches.shape[2] % (size * size):
        raise ConfigError(
            f"patches of shape {tuple(patches.shape)} for a side of {size}: expected [n, patch, {size} * {size} * "
            "channel]"
        )
    count = patches.shape[1]
    square = round(count**0.5)
    if (rows is None and square * square != count) or (rows is not None and (rows < 1 or count % rows)):
        raise ConfigError(f"{count} patches in {rows or square} rows: give rows=, a divisor of the number of patches")
    rows = rows or square
    return rearrange(patches, "n (h w) (p q c) -> n c (h p) (w q)", h=rows, p=size, q=size)


def masked_reconstruction(prediction: Tensor, patches: Tensor, mask: Tensor, *, normalize: bool = True) -> Tensor:
    """The mean squared error of the hidden patches, the loss of MAE.

        loss = sum_p mask_p mean((prediction_p - target_p)^2) / sum_p mask_p
        target_p = (patch_p - mean(patch_p)) / sqrt(variance(patch_p) + 1e-6)        with ``normalize``

    Args:
        prediction: ``[n, patch, value]``; float16 and bfloat16 are converted to float32, and float32 to float64 if the
            patches are float64.
        patches: of the images, from :func:`patchify`, ``[n, patch, value]``.
        mask: ``[n, patch]``, 1 for a hidden patch and 0 for a visible one, any dtype.
        normalize: whether a target is its patch with mean 0 and variance 1 (the unbiased variance, over the values of
            the patch). The paper finds better features with it.

    Returns:
        The loss of every image, ``[n]``; zero for an image without a hidden patch.

    Raises:
        ConfigError: for shapes that do not fit, tensors of whole numbers, or normalised patches of a single value.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, section 3, https://arxiv.org/abs/2111.06377.
    The released code averages over the hidden patches of the whole batch, which is the mean of these losses as long as
    every image has the same number of hidden patches.

    Example:
        >>> patches = torch.tensor([[[0.0, 2.0], [1.0, 5.0]]])
        >>> masked_reconstruction(torch.zeros(1, 2, 2), patches, torch.tensor([[0, 1]]), normalize=False)
        tensor([13.])
    """
    if prediction.ndim != 3 or prediction.shape != patches.shape or mask.shape != patches.shape[:2]:
        raise ConfigError(
            f"prediction of shape {tuple(prediction.shape)}, patches of {tuple(patches.shape)}, mask of "
            f"{tuple(mask.shape)}: expected [n, patch, value] twice and [n, patch]"
        )
    if normalize and patches.shape[2] < 2:
        raise ConfigError("patches of one value have no variance: take larger patches, or normalize=False")
    prediction, target = widest(prediction=prediction, patches=patches)
    if normalize:
        mean, variance = target.mean(2, keepdim=True), target.var(2, keepdim=True)
        target = (target - mean) / (variance + _EPSILON).sqrt()
    hidden = mask.to(prediction.dtype)
    errors = (prediction - target).square().mean(2) * hidden
    count = hidden.sum(1)
    return errors.sum(1) / torch.where(count == 0, 1.0, count)


def draw_mask(count: int, patches: int, *, ratio: float = 0.75, generator: torch.Generator) -> Tensor:
    """Random masks with the same number of hidden patches in every image, uniform over all such masks.

    Args:
        count: number of images.
        patches: patches of an image, at least 2.
        ratio: share of hidden patches, between 0 and 1; 0.75 in the paper. ``floor(patches * (1 - ratio))`` patches
            stay visible.
        generator: of the draws; the masks are on its device.

    Returns:
        ``[count, patches]``, float32: 1 for hidden, 0 for visible.

    Raises:
        ConfigError: if no patch would be visible, or none hidden.

    Example:
        >>> draw_mask(3, 16, generator=torch.Generator().manual_seed(0)).sum(1)
        tensor([12., 12., 12.])
    """
    visible = int(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise ConfigError(
            f"ratio = {ratio} leaves {visible} of {patches} patches visible: expected at least one visible and one "
            "hidden; choose another ratio or smaller patches"
        )
    order = torch.rand(count, patches, generator=generator, device=generator.device).argsort(1)
    return (order.argsort(1) >= visible).float()


def visible_places(mask: Tensor) -> Tensor:
    """The indices of the visible patches of every image, in increasing order: ``[n, visible]``.

    Args:
        mask: ``[n, patch]`` with the same number of zeros in every row.

    Example:
        >>> visible_places(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        tensor([[1, 2],
                [0, 2]])
    """
    shown = mask == 0
    counts = shown.sum(1)
    if int(counts.min()) != int(counts.max()):
        raise ConfigError(
            f"masks that leave {int(counts.min())} to {int(counts.max())} patches visible: expected the same number "
            "for every image"
        )
    return shown.nonzero()[:, 1].reshape(len(mask), -1)


def _check_side(size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool):
        raise ConfigError(f"size = {size!r}: expected one whole number; patches are squares, give their side in pixels")
