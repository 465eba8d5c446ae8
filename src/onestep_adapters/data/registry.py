"""Data sets by the names of the command line."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from onestep_adapters.data.dataset import Dataset
from onestep_adapters.data.images.latents import LatentDataset
from onestep_adapters.data.images.opening import SOURCES, is_place, open_fashion_mnist, open_images, place_of
from onestep_adapters.data.images.options import ImageOptions, given
from onestep_adapters.data.toys import TOYS, ToyDataset
from onestep_adapters.devices import choose_device
from onestep_adapters.names import choose
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError


def _digits(*, labelled: bool = True) -> Dataset:
    # scikit-learn is an optional dependency: it is imported only when the digits are opened.
    from onestep_adapters.data.digits import digits_dataset

    return digits_dataset(labelled=labelled)


DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "digits-unlabelled": partial(_digits, labelled=False),
    **{name: partial(ToyDataset, name) for name in TOYS},
}
"""A function that opens each data set without options, by name."""

IMAGES: Mapping[str, Callable[..., Dataset]] = {"fashion-mnist": open_fashion_mnist}
"""A function of options and progress that opens each set of images, by name."""

UNLABELLED: Mapping[str, str] = {"digits": "digits-unlabelled"}
"""Names of data sets with classes, and of the same without: ``classes=False``."""

DEFAULT_DATASET = next(iter(DATASETS))
"""The data set of a command without ``--data``."""


def open_dataset(
    name: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    crop: bool = True,
    flip: bool = False,
    background: str = "white",
    classes: bool = True,
    labels: str = "",
    skip_corrupt: bool = False,
    autoencoder: str = "",
    track: Track = untracked,
) -> Dataset:
    """Open a data set by its command-line name.

    Args:
        name: a built-in name; ``folder:PATH``, a folder of images; ``idx:PATH``, IDX files; ``hub:NAME``, a data set of
            the Hugging Face hub or one that ``save_to_disk`` wrote.
        size: height and width of the images in pixels; by default their own, if all are square and of one size of at
            most 64, else 32.
        channels: 1 (grey) or 3 (colour); by default 1 if all images are grey.
        crop: resize the shorter side and keep the square in the middle; ``False``: resize both sides.
        flip: mirror half of the training images, left to right.
        background: colour behind transparent pixels.
        classes: read the classes, where there are some.
        labels: CSV file with the columns ``file`` and ``class``, for a folder.
        skip_corrupt: leave out files that cannot be read; otherwise they are an error that names them.
        autoencoder: folder of a diffusers ``AutoencoderKL``; the data set is then that of its latents.
        track: shows the progress of reading images.

    Raises:
        ConfigError: if the name is unknown (the message lists the most similar names), if an option is given to data
            that have none, or if images cannot be read.
        MissingExtraError: if the data need a library that is not installed.

    Example:
        >>> open_dataset("checkerboard").shape
        (2,)
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"a {type(name).__name__} as data: expected a name, such as {DEFAULT_DATASET!r} or 'folder:PATH'"
        )
    options = ImageOptions(size, channels, crop, flip, background, classes, labels, skip_corrupt)
    if name not in (*DATASETS, *IMAGES) and not is_place(name) and (place := place_of(name)):
        raise ConfigError(f"{name!r} is a folder or a file: to open it as data, write {place}")
    if is_place(name):
        data: Dataset = open_images(name, options, track=track)
    elif choose(name, [*DATASETS, *IMAGES], "data set") in IMAGES:
        data = IMAGES[name](options, track=track)
    elif name in UNLABELLED and not classes:
        return open_dataset(UNLABELLED[name], track=track)
    elif chosen := [*given(options), *(["autoencoder"] if autoencoder else [])]:
        words = ", ".join(f"--{option.replace('_', '-')}" for option in chosen)
        raise ConfigError(
            f"{words} with the data {name!r}: these options are for images, {':..., '.join(SOURCES)}:... or "
            f"{', '.join(IMAGES)}"
        )
    else:
        return DATASETS[name]()
    if not autoencoder:
        return data
    # diffusers is an optional dependency.
    from onestep_adapters.data.images.autoencoders import load_autoencoder

    source = {**data.source, "autoencoder": str(Path(autoencoder).expanduser().resolve())}  # type: ignore[attr-defined]
    module = load_autoencoder(autoencoder).to(choose_device())
    return LatentDataset(data, module, source=source, track=track)  # type: ignore[arg-type]
