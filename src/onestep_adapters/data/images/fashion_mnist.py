"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, ten classes of clothing (Xiao et al., 2017).

The official 60,000 training images are divided into ``train`` and ``validation`` by the hash of their pixels; the
official 10,000 test images are ``test``. Every way to get the images gives the same splits: the hash of the contents is
compared with the expected one.

Source: https://arxiv.org/abs/1708.07747, https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

import os
from pathlib import Path

from onestep_adapters.data.images.idx import IdxSource
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import Source
from onestep_core.errors import ConfigError, OneStepError

NAME = "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

FOLDER = "ONESTEP_FASHION_MNIST"
"""Environment variable with a folder of the four IDX files."""

HUB = "zalando-datasets/fashion_mnist"
"""Name on the Hugging Face hub."""

CLASS_NAMES = (
    "T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

CONTENTS = "e0a919d431b1c026e47fa79c7eaad1d8"
"""Hash of the 70,000 images and their official splits."""

HOW = (
    "Fashion-MNIST is not on this machine. Type one of:\n"
    "  sudo apt-get install dataset-fashion-mnist          (Debian, Ubuntu: 31 MB)\n"
    f"  export {FOLDER}=FOLDER               (a folder with the four files *-ubyte.gz)\n"
    "  pip install 'onestep[hub]'                          (then it is downloaded from the Hugging Face hub)"
)
"""What to do if the images are not there."""


def fashion_mnist_source(options: ImageOptions) -> Source:
    """The images: from the folder of ``ONESTEP_FASHION_MNIST``, from Debian's package, or from the hub.

    Raises:
        ConfigError: if they are nowhere; the message has the commands.
    """
    if chosen := os.environ.get(FOLDER):
        if not Path(chosen).is_dir():
            raise ConfigError(f"{FOLDER} is {chosen!r}, which is no folder.\n{HOW}")
        return IdxSource(chosen, options, stem=NAME, class_names=CLASS_NAMES)
    if DEBIAN.is_dir():
        return IdxSource(DEBIAN, options, stem=NAME, class_names=CLASS_NAMES)
    try:
        # The library datasets is an optional dependency, and the hub may not be reachable.
        from onestep_adapters.data.images.hub import HubSource

        return HubSource(HUB, options, by_pixels=True, stem=NAME, class_names=CLASS_NAMES)
    except OneStepError as error:
        raise ConfigError(f"{HOW}\n(tried the hub: {error})") from error


def check_contents(found: str, origin: str) -> None:
    """Refuse other images under the name.

    Args:
        found: hash of the contents that were read.
        origin: where they were read.

    Raises:
        ConfigError: if it is not the expected one.
    """
    if found != CONTENTS:
        raise ConfigError(
            f"the images of {origin} are not those of Fashion-MNIST (hash {found[:12]}, expected {CONTENTS[:12]}): "
            "correct the files, or open them under another name, idx:FOLDER"
        )
