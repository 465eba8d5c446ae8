"""Real images without a download: the 1,797 handwritten digits of 8 x 8 pixels in scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49). A pixel is a number of dots from 0 to 16. It is scaled to ``dots / 8 - 1``, in
[-1, 1], which is exact in float32.

There are three fixed, disjoint, stratified splits of 1097, 350 and 350 images. Each class is divided in this proportion
(largest remainder method). Within a class the images are sorted by the SHA-256 hash of seed and pixels. Therefore a
split does not depend on a random number generator, a library version or the order of the images in scikit-learn. Every
load compares a hash of the splits with the expected one. The images of a split are in the same hash order, which mixes
the classes.

Train on ``train``, choose options on ``validation``, and use ``test`` only once, for the report.
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
"""Numbers of images for training, validation and test."""

SEED = b"onestep digits 1"
"""Hashed together with every image; another seed gives other splits."""

DIGEST = "7f3276b494cb9b3c0d8a6942317b995a0f08402293d3f99b6b838feb38c30d79"
"""SHA-256 of the indices of the three splits."""


class Splits(NamedTuple):
    """Three disjoint sets of images ``[n, 1, 8, 8]``, float32 in [-1, 1], with their digits ``[n]``, int64."""

    train: Batch
    validation: Batch
    test: Batch


def load_digits() -> Splits:
    """The three splits of 1,097, 350 and 350 images, the same on every machine.

    Raises:
        OneStepError: if the installed scikit-learn contains other images.
        MissingExtraError: when this module is imported without scikit-learn.

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
            f"the splits of this scikit-learn's digits have the hash {digest[:12]}, expected {DIGEST[:12]}: the images "
            "differ and results would not be comparable; install another version of scikit-learn"
        )
    images = (pixels.float() / 8 - 1)[:, None]
    return Splits(*(Batch(images[part], labels[part]) for part in parts))


def quantize(images: Tensor) -> Tensor:
    """Clamp to [-1, 1], then round to the nearest of the 17 grey levels ``k / 8 - 1`` of the real digits.

    Without rounding, a metric that compares distances could separate samples from data by their small decimals alone.

    Args:
        images: of any shape and floating dtype.

    Example:
        >>> quantize(torch.tensor([-3.0, -0.99, 0.07, 0.2]))
        tensor([-1.0000, -1.0000,  0.1250,  0.2500])
    """
    return ((images.clamp(-1, 1) + 1) * 8).round() / 8 - 1


def digits_dataset(*, labelled: bool = True) -> ArrayDataset:
    """The digits as a data set: dequantised for training; generated samples are rounded to the 17 grey levels.

    Args:
        labelled: with the classes. Without, its name is ``digits-unlabelled``.

    Example:
        >>> digits_dataset().shape
        (1, 8, 8)
    """
    splits = load_digits()
    return ArrayDataset(
        "digits" if labelled else "digits-unlabelled",
        *(splits if labelled else [Batch(split.data, None) for split in splits]),
        level=1 / 8,
        finish=quantize,
        title="scikit-learn's handwritten digits, 8 x 8",
    )


def _split(pixels: Tensor, labels: Tensor) -> list[list[int]]:
    """Indices of the three splits; see the module docstring."""
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
    """Number of images of each class in each split; rows sum to ``sizes``, columns to ``SIZES``."""
    held_out = [_apportion(sizes, total) for total in SIZES[1:]]
    return [(size - v - t, v, t) for size, v, t in zip(sizes, *held_out, strict=True)]


def _apportion(sizes: list[int], total: int) -> list[int]:
    """Divide ``total`` in proportion to ``sizes`` (largest remainder method; ties go to the smaller class number)."""
    whole = sum(sizes)
    counts = [size * total // whole for size in sizes]
    remainders = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * total % whole), i))
    for index in remainders[: total - sum(counts)]:
        counts[index] += 1
    return counts
