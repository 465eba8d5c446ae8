"""An image file as an array of one size and one number of channels. Needs Pillow.

In this order: the first frame; the rotation that the EXIF data ask for; 16-bit grey to 8 bits; transparent pixels over
the background colour; grey or colour; the shorter side to the size (bicubic, with antialiasing), and the square in the
middle.
"""

import hashlib
import io
import struct
import zlib

import numpy as np

from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import CorruptImageError, Decoded
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from PIL import Image, ImageColor, ImageOps
except ImportError as error:
    raise MissingExtraError("image files need Pillow: pip install 'onestep[images]'") from error

_ROTATION = 0x0112
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_PROBLEMS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for damaged files."""


def colour_of(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour, 0 to 255.

    Raises:
        ConfigError: for an unknown colour.

    Example:
        >>> colour_of("white"), colour_of("#0080ff")
        ((255, 255, 255), (0, 128, 255))
    """
    try:
        found = ImageColor.getrgb(name)
    except ValueError as error:
        raise ConfigError(f"background = {name!r}: expected a colour, such as white or #0080ff") from error
    return found[0], found[1], found[2]


def decoded(content: bytes, options: ImageOptions) -> Decoded:
    """The image in the bytes of a file, and the hash of these bytes.

    Raises:
        CorruptImageError: if the file is damaged, or no image.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (6, 4), 200).save(file, "PNG")
        >>> found = decoded(file.getvalue(), ImageOptions(size=2, channels=3))
        >>> found.pixels.shape, int(found.pixels.min()), found.size, found.kind
        ((3, 2, 2), 200, (6, 4), 'PNG')
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            turned, kind = upright(image), image.format or "unknown"
            pixels = fitted(turned, options)
    except _PROBLEMS as error:
        raise CorruptImageError(_reason(error)) from error
    return Decoded(pixels, hashlib.sha256(content).digest(), turned.size, kind)


def upright(image: Image.Image) -> Image.Image:
    """The image, rotated and mirrored as its EXIF data say."""
    return ImageOps.exif_transpose(image)


def fitted(image: Image.Image, options: ImageOptions) -> np.ndarray:
    """The image as uint8 ``[channels, size, size]``: see the module."""
    if options.size is None or options.channels is None:
        raise ConfigError(f"size = {options.size}, channels = {options.channels}: expected two numbers")
    image = _eight_bits(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*colour_of(options.background), 255))
        behind.alpha_composite(image)
        image = behind
    image = image.convert("L" if options.channels == 1 else "RGB")
    image = _resized(image, options.size, options.crop)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if options.channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def header(content: io.BufferedIOBase) -> tuple[tuple[int, int], bool]:
    """(width, height), and whether the image may have colour, from the header of a file.

    A palette, or grey with a rotation, is read as it will be decoded: a palette counts as colour, unless it is grey.

    Raises:
        CorruptImageError: if the file is no image.
    """
    try:
        with Image.open(content) as image:
            palette = image.getpalette() if image.mode in ("P", "PA") else None
            grey = image.mode in _GREY or (palette is not None and _is_grey(palette))
            width, height = image.size
            if image.getexif().get(_ROTATION, 1) >= 5:
                width, height = height, width
            return (width, height), not grey
    except _PROBLEMS as error:
        raise CorruptImageError(_reason(error)) from error


def from_array(pixels: np.ndarray, options: ImageOptions) -> np.ndarray:
    """An array uint8 ``[height, width]`` or ``[height, width, 3]`` as uint8 ``[channels, size, size]``."""
    return fitted(Image.fromarray(pixels), options)


def _is_grey(palette: list[int]) -> bool:
    return all(palette[i] == palette[i + 1] == palette[i + 2] for i in range(0, len(palette) - 2, 3))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits: ``round(value / 257)``."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values.clip(0, 65535) / 257).astype(np.uint8))


def _resized(image: Image.Image, size: int, crop: bool) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    box = (0.0, 0.0, float(width), float(height))
    if crop:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # Pillow names the buffer in memory, which says nothing.
    return "not an image that Pillow can read" if text.startswith("cannot identify image file") else text[:200]
