"""Presets: the options of a method for each kind of data, and the networks and trainings that several of them share."""

import re
from typing import Any, NamedTuple, TypeVar

import attrs

from onestep_adapters.backbones.unet import default_multipliers
from onestep_adapters.data import Dataset
from onestep_adapters.methods.method import Method
from onestep_adapters.methods.options import Network, Training

T = TypeVar("T", bound=Method)

SMALL = 16
"""Largest height or width, in pixels, for which the presets were chosen."""

_UNET = 32
"""Largest height or width, in pixels, for which a UNet is the default."""

_TOKENS = 100
"""Most patches of an image: the time of an update grows with their number."""

_LARGEST_RATE = 1e-3
"""Largest learning rate of a UNet or a transformer."""


_PARTS = (f"Images of more than {SMALL} pixels", "Images", "Points")
"""What begins the part of a note that is about some data alone."""


class Preset(NamedTuple):
    """A method under its command-line name, with the options for each kind of data and the reasons for them."""

    name: str
    summary: str
    images: Method
    points: Method
    notes: str
    """What was chosen on the validation split, and why; the report prints it. What comes after ``Images:``, ``Points:``
    or ``Images of more than 16 pixels:`` is about these data alone."""
    larger_images: Method | None = None
    """For images of more than 16 pixels; without it :func:`for_larger_images` of the options for small ones."""

    def options(self, data: Dataset) -> Method:
        """The options for a data set, by its kind and size."""
        if data.kind != "images":
            return self.points
        if _side(data) <= SMALL:
            return self.images
        return for_larger_images(self.images, data) if self.larger_images is None else self.larger_images

    def notes_for(self, data: Dataset) -> str:
        """The notes on the options for a data set.

        Example:
            >>> from onestep_adapters.data import open_dataset
            >>> preset = Preset("a", "", None, None, "For all. Images: small. Points: many. Few.")
            >>> preset.notes_for(open_dataset("8gaussians"))
            'For all. Many. Few.'
        """
        opening, *parts = re.split(rf"({'|'.join(_PARTS)}): ", self.notes)
        kind = _PARTS[2] if data.kind != "images" else _PARTS[1] if _side(data) <= SMALL else _PARTS[0]
        found = [text.strip() for part, text in zip(parts[::2], parts[1::2], strict=True) if part == kind]
        if kind == _PARTS[0] and self.larger_images is None and self.images.generates:
            found.append(
                f"the options for small images with another network (a UNet up to {_UNET} pixels, else a transformer "
                "on patches), not tuned for each method at this size."
            )
        return " ".join([opening.strip(), *(text[:1].upper() + text[1:] for text in found)]).strip()


IMAGE_NETWORK = Network("conv", width=32, depth=3)
"""Small images."""
WIDE_IMAGE_NETWORK = Network("conv", width=32, depth=3, condition=4)
"""With a wider embedding. On the validation split it is better for the baseline, for most methods that learn from it,
and for shortcut, sCM and IMM; worse for the others."""
POINT_NETWORK = Network("mlp", width=192, depth=3, fourier=64)
"""Points, with Fourier features."""
SMOOTH_POINT_NETWORK = Network("mlp", width=192, depth=3)
"""Points, without Fourier features, for scores: with them the score gap is wrong between the modes, where neither
network saw data."""

IMAGE_TRAINING = Training(steps=2400, batch=64, learning_rate=3e-3)
"""Images, every method that takes at most three minutes with it on one core."""
POINT_TRAINING = Training(steps=3000, batch=256, learning_rate=2e-3)
"""Points, the baseline and its distillations."""
LONG_POINT_TRAINING = Training(steps=4000, batch=256, learning_rate=2e-3)
"""Points, from data alone."""


def for_larger_images(options: T, data: Dataset) -> T:
    """The options for images of more than 16 pixels: the same method with another network.

    The network of the presets works at full resolution, and its parameters grow with the square of the number of
    pixels. Instead, with a learning rate of at most 1e-3, and for the teacher likewise:

    - up to 32 pixels, if height and width are even: a UNet. Its update takes twice the time of the transformer's at
      28 x 28, so there are half as many.
    - otherwise: a transformer on at most 100 patches.

    Chosen by MeanFlow on Fashion-MNIST, one seed, 4 minutes of one core each, 2 x 500 images of the validation split:
    Fréchet distance in features 8.9 +- 0.3 (UNet, 250 updates) and 11.9 +- 0.2 (transformer, 480), 1-NN accuracy 0.91
    and 0.95, coverage 0.49 and 0.39. Neither was trained to the end. The commands are in ``docs/data.md``.

    Couplings are made for each batch, because pairs made before training would fill the memory.

    A method that trains an encoder keeps its options.
    """
    if not options.generates:
        return options
    frequency, training = options.network.max_frequency, options.training
    if _side(data) <= _UNET and len(default_multipliers(*data.shape[1:])) > 1:
        network = Network("unet", width=16, depth=1, max_frequency=frequency)
        training = attrs.evolve(training, steps=-(-training.steps // 2))
    else:
        network = Network("dit", width=96, depth=4, max_frequency=frequency, patch=_patch(data))
    rate = min(training.learning_rate, _LARGEST_RATE)
    changes: dict[str, Any] = {"network": network, "training": attrs.evolve(training, learning_rate=rate)}
    if options.teacher is not None:
        changes["teacher"] = for_larger_images(options.teacher, data)
    if getattr(options, "coupling", None) == "precomputed":
        changes["coupling"] = "optimal"
    return attrs.evolve(options, **changes)


def _side(data: Dataset) -> int:
    return max(data.shape[1:], default=0)


def _patch(data: Dataset) -> int:
    """The smallest side of a patch that divides height and width and gives at most 100 patches."""
    _, height, width = data.shape
    sides = [side for side in range(2, min(height, width) + 1) if height % side == 0 and width % side == 0]
    few = [side for side in sides if height * width <= _TOKENS * side**2]
    return few[0] if few else 1
