"""What is done to images when they are read: size, colour, crop, flips, background, classes, corrupt files."""

from typing import Any

import attrs

from onestep_core.errors import ConfigError
from onestep_core.validators import positive_count

CHANNELS = (1, 3)
"""Numbers of channels: grey or colour."""


def _channels(_: object, attribute: "attrs.Attribute[Any]", value: int) -> None:
    if value not in CHANNELS:
        raise ConfigError(f"{attribute.name} = {value!r}: expected 1 (grey) or 3 (colour)")


@attrs.frozen
class ImageOptions:
    """How images are read."""

    size: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_count))
    """Height and width of the images, in pixels. Default: their own, if all are square and of one size of at most 64
    pixels; else 32."""
    channels: int | None = attrs.field(default=None, validator=attrs.validators.optional(_channels))
    """1: grey. 3: colour (red, green, blue). Default: 1 if all images are grey, else 3."""
    crop: bool = True
    """Resize the shorter side to the size and keep the square in the middle. False: resize both sides, which changes
    the proportions of an image that is not square."""
    flip: bool = False
    """Mirror half of the training images, left to right; not for digits or text."""
    background: str = "white"
    """Colour behind transparent pixels: a name, or #rrggbb."""
    classes: bool = True
    """Read the classes, where there are some. False: images without classes."""
    labels: str = ""
    """CSV file with the columns file and class, for a folder; files are relative to the folder. Empty: the sub-folders
    are the classes."""
    skip_corrupt: bool = False
    """Leave out files that cannot be read. False: they are an error that names them."""

    @property
    def pixels(self) -> dict[str, Any]:
        """The options that change the pixels or the classes of the cached images."""
        values = attrs.asdict(self)
        return {name: value for name, value in values.items() if name not in ("flip", "skip_corrupt", "labels")}


def given(options: ImageOptions) -> dict[str, Any]:
    """The options that differ from their defaults, by name.

    Example:
        >>> given(ImageOptions(size=16))
        {'size': 16}
    """
    default = ImageOptions()
    return {name: value for name, value in attrs.asdict(options).items() if value != getattr(default, name)}
