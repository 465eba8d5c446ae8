"""Image files made in the tests."""

import gzip
import struct

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 40), "green": (40, 200, 50), "blue": (30, 60, 210)}


def noise(size=8, channels=3, seed=0):
    """Random pixels ``[size, size, channels]``, without the last axis for grey."""
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, name, pixels, **keywords):
    """Save pixels as a file of the format that its name says."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **keywords)
    return file


def photos(folder, count=40, *, size=8, channels=3, classes=("cat", "dog"), seed=0):
    """PNG files in a sub-folder for each class, or in the folder itself."""
    for k in range(count):
        name = f"{k:03}.png" if not classes else f"{classes[k % len(classes)]}/{k:03}.png"
        write(folder, name, noise(size, channels, seed=1000 * seed + k))
    return folder


def write_idx(file, array, *, packed=False):
    """An IDX file of unsigned bytes, plain or compressed."""
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    file.write_bytes(gzip.compress(content) if packed else content)
    return file


def mnist_like(folder, train=60, test=12, *, size=6, packed=False, seed=0):
    """The four files of MNIST, with random pixels and three classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random, end = np.random.default_rng(seed), ".gz" if packed else ""
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, size, size), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", images, packed=packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", (np.arange(count) % 3).astype(np.uint8), packed=packed)
    return folder
