"""Presets: the options of a method for each kind of data, and the networks and trainings that several of them share."""

from typing import NamedTuple

from onestep_adapters.data import Dataset
from onestep_adapters.methods.method import Method
from onestep_adapters.methods.options import Network, Training


class Preset(NamedTuple):
    """A method under its command-line name, with the options for each kind of data and the reasons for them."""

    name: str
    summary: str
    images: Method
    points: Method
    notes: str
    """What was chosen on the validation split, and why; the report prints it."""

    def options(self, data: Dataset) -> Method:
        """The options for a data set, by its kind."""
        return self.images if data.kind == "images" else self.points


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
