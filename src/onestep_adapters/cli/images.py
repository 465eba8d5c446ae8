"""The options of images on the command line: of ``onestep train`` beside the method's, and of ``onestep data``."""

import argparse
from typing import Any, get_args, get_type_hints

import attrs

from onestep_adapters.data import IMAGES, TOYS, ImageOptions

PLACES = (
    ("digits", "8 x 8 images, ten classes; digits-unlabelled: without the classes"),
    (", ".join(TOYS), "2-D toys"),
    (", ".join(IMAGES), "28 x 28 images, ten classes"),
    ("folder:PATH", "files in a folder; its sub-folders are the classes"),
    ("idx:PATH", "IDX files, as of MNIST: a folder or one file of images"),
    ("hub:NAME", "a Hugging Face data set, or a folder that save_to_disk wrote"),
)
"""What ``--data`` can be, for help texts."""

OPTIONS = (
    ("--size N", "height and width, in pixels"),
    ("--channels 1|3", "grey or colour"),
    ("--flip", "mirror half of the training images"),
    ("--no-crop", "resize both sides, instead of keeping the square in the middle"),
    ("--background C", "colour behind transparent pixels (default: white)"),
    ("--labels CSV", "table with the columns file and class"),
    ("--no-classes", "without classes"),
    ("--skip-corrupt", "leave out files that cannot be read"),
    ("--autoencoder PATH", "train on the latents of a diffusers AutoencoderKL in this folder"),
)
"""The options of images, for help texts."""


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of images; those that are not given are absent from the result."""
    hints = get_type_hints(ImageOptions)
    for field in attrs.fields(ImageOptions):
        kind = next((part for part in (hints[field.name], *get_args(hints[field.name])) if isinstance(part, type)), str)
        word = "--" + field.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(word, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        else:
            parser.add_argument(word, type=kind, default=argparse.SUPPRESS)
    parser.add_argument("--autoencoder", default=argparse.SUPPRESS)


def image_options(found: argparse.Namespace) -> dict[str, Any]:
    """The options of images that were given, as arguments of ``open_dataset``."""
    names = [*(field.name for field in attrs.fields(ImageOptions)), "autoencoder"]
    return {name: getattr(found, name) for name in names if hasattr(found, name)}
