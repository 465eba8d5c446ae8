"""A method that trains an encoder, as small as possible: a convolutional network learns the mean of its images."""

import attrs
from torch import nn

from onestep_adapters.encoders import Encoder
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import Preset
from onestep_adapters.methods.pretraining.base import Pretraining

NAME = "mean-of-images"


@attrs.frozen
class MeanOfImages(Pretraining):
    """Regress the mean of an image."""

    @property
    def calls(self):
        return 1

    def build(self, data, generator):
        network = nn.Sequential(nn.Conv2d(data.shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, 2))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        return network

    def loss(self, context, network, generator):
        images, _ = context.data.batch(self.training.batch, generator)
        return (network(images).mean((1, 2, 3)) - images.mean((1, 2, 3))).square().mean(), {}

    def inner(self, network):
        return network

    def encoder_of(self, network, data, key=""):
        return Encoder(network, ("1", "2"), channels=data.shape[0], size=data.shape[1], mean=(0.2,), key=key)


OPTIONS = MeanOfImages(Training(steps=2, batch=20, checkpoint_every=1))
PRESET = Preset(NAME, "a small encoder", OPTIONS, OPTIONS, "For tests.")
