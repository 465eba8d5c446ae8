"""Real images without a download: the 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49). Pixels count 0 to 16 dots and become ``dots / 8 - 1``, in [-1, 1], exactly.

Three fixed, disjoint splits, stratified: each class is shared out in the proportion 1097 : 350 : 350, the
roundings falling to the classes with the largest remainders. Within a class the images stand in the order of
the SHA-256 of seed and pixels, so that a split depends on no random number generator, no library version and
not on the order in which the images come; a digest of the outcome is compared at every load. Each split is
itself in that order, which mixes the classes.

Train on ``train``, choose on ``validation``, and read ``test`` once, in the report.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onestep_adapters.data.arrays import ArrayDataset
from onestep_adapters.data.dataset import Batch
from onestep_core.errors import MissingExtraError, OneStepError

try:
    from sklearn import datasets
except ImportError as error:
    raise MissingExtraError(
        "the digits come with scikit-learn, which is not installed: pip install 'onestep[digits]'"
    ) from error

SIZES = (1097, 350, 350)
"""Images for training, validation and test."""

SEED = b"onestep digits 1"
"""Hashed with every image; another seed is another split."""

DIGEST = "7f3276b494cb9b3c0d8a6942317b995a0f08402293d3f99b6b838feb38c30d79"
"""SHA-256 of the indices of the three splits, one after the other."""


class Splits(NamedTuple):
    """Three disjoint sets of images ``[n, 1, 8, 8]``, float32 in [-1, 1], with their digits ``[n]``, int64."""

    train: Batch
    validation: Batch
    test: Batch


def load_digits() -> Splits:
    """The three splits of 1,097, 350 and 350 images, the same on every machine.

    Raises:
        OneStepError: if the installed scikit-learn carries other images.
        MissingExtraError: at the import of this module, without scikit-learn.

    Example:
        >>> splits = load_digits()
        >>> splits.train.data.shape, splits.test.labels.shape
        (torch.Size([1097, 1, 8, 8]), torch.Size([350]))
    """
    source: Any = datasets.load_digits()
    pixels = torch.from_numpy(source.images).to(torch.uint8)
    labels = torch.from_numpy(source.target).long()
    parts = _split(pixels, labels)
    digest = hashlib.sha256(str(parts).encode()).hexdigest()
    if digest != DIGEST:
        raise OneStepError(
            f"the digits of this scikit-learn split to {digest[:12]}, expected {DIGEST[:12]}: its data differ, and "
            "results would not compare with published ones; install another version"
        )
    images = (pixels.float() / 8 - 1)[:, None]
    return Splits(*(Batch(images[part], labels[part]) for part in parts))


def quantize(images: Tensor) -> Tensor:
    """The nearest of the 17 grey levels ``k / 8 - 1`` that real digits have, after clamping to [-1, 1].

    A measurement that compares distances would otherwise tell samples from data by their digits after the point.

    Args:
        images: of any shape and floating dtype.

    Example:
        >>> quantize(torch.tensor([-3.0, -0.99, 0.07, 0.2]))
        tensor([-1.0000, -1.0000,  0.1250,  0.2500])
    """
    return ((images.clamp(-1, 1) + 1) * 8).round() / 8 - 1


def digits_dataset() -> ArrayDataset:
    """The digits as a data set: dequantised for training, samples rounded to the 17 grey levels.

    Example:
        >>> digits_dataset().shape
        (1, 8, 8)
    """
    return ArrayDataset(
        "digits",
        *load_digits(),
        level=1 / 8,
        finish=quantize,
        title="scikit-learn's handwritten digits, 8 x 8",
    )


def _split(pixels: Tensor, labels: Tensor) -> list[list[int]]:
    """Indices of the three splits; see the module."""
    keys = [hashlib.sha256(SEED + bytes(image.flatten().tolist())).digest() for image in pixels]
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    members = [[index for index in order if labels[index] == digit] for digit in range(10)]
    counts = _shares([len(member) for member in members])
    parts: list[set[int]] = [set(), set(), set()]
    for member, shares in zip(members, counts, strict=True):
        start = 0
        for part, share in zip(parts, shares, strict=True):
            part.update(member[start : start + share])
            start += share
    return [[index for index in order if index in part] for part in parts]


def _shares(sizes: list[int]) -> list[tuple[int, int, int]]:
    """How many images of each class go to each split; rows sum to ``sizes``, columns to ``SIZES``."""
    held_out = [_apportion(sizes, total) for total in SIZES[1:]]
    return [(size - v - t, v, t) for size, v, t in zip(sizes, *held_out, strict=True)]


def _apportion(sizes: list[int], total: int) -> list[int]:
    """``total`` in proportion to ``sizes``, by largest remainders; ties go to the smaller class number."""
    whole = sum(sizes)
    counts = [size * total // whole for size in sizes]
    remainders = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * total % whole), i))
    for index in remainders[: total - sum(counts)]:
        counts[index] += 1
    return counts
