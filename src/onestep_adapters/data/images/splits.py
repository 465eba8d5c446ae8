"""The split of every image, from the hash of its content: it never moves.

The first eight bytes of the SHA-256 hash, as a number from 0 to 1: below 0.1 the image is in ``test``, below 0.2 in
``validation``, else in ``train``. Other images, names, orders, sizes and random seeds do not change it, and copies of
one image are in one split.

Where the source has a split ``test`` itself, that one is kept; the rest is divided into ``train`` and, from 0.1 to 0.2,
``validation``. Where it has a split ``validation`` too, all three are kept.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from onestep_adapters.data.dataset import SplitName

TEST, VALIDATION = 0.1, 0.2
"""Upper ends of the hashes of the test and the validation split."""

_TRAIN, _VALIDATION, _TEST = 0, 1, 2


def split_rows(hashes: np.ndarray, parts: np.ndarray | None = None) -> dict[SplitName, Tensor]:
    """The images of every split, in the order of ``hashes``.

    Args:
        hashes: SHA-256 of every image, uint8 ``[n, 32]``.
        parts: the source's own splits ``[n]``: 0 train, 1 validation, 2 test, -1 none.

    Example:
        >>> hashes = np.zeros((3, 32), dtype=np.uint8)
        >>> hashes[:, 0] = 0, 30, 200
        >>> {name: rows.tolist() for name, rows in split_rows(hashes).items()}
        {'train': [2], 'validation': [1], 'test': [0]}
    """
    position = np.ascontiguousarray(hashes[:, :8]).view(">u8")[:, 0].astype(np.float64) / 2.0**64
    chosen = np.where(position < TEST, _TEST, np.where(position < VALIDATION, _VALIDATION, _TRAIN))
    if parts is not None and (parts >= 0).any():
        own_validation = bool((parts == _VALIDATION).any())
        held = (position >= TEST) & (position < VALIDATION) & (not own_validation)
        within = np.where(held, _VALIDATION, _TRAIN)
        if not (parts == _TEST).any():
            within = np.where(position < TEST, _TEST, within)
        chosen = np.where(parts == _TRAIN, within, np.where(parts < 0, chosen, parts))
    codes: dict[SplitName, int] = {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}
    return {name: torch.from_numpy(np.flatnonzero(chosen == code)) for name, code in codes.items()}


def hashes_of(images: np.ndarray) -> np.ndarray:
    """SHA-256 of the pixels of every image, uint8 ``[n, 32]``.

    Example:
        >>> hashes_of(np.zeros((2, 1, 4, 4), dtype=np.uint8)).shape
        (2, 32)
    """
    found = b"".join(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images)
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, 32)
