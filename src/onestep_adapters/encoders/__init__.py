"""Encoders: functions from samples to a dictionary of features, each ``[batch, location, channel]``."""

from onestep_adapters.encoders.convolutional import RandomConvolutions as RandomConvolutions
from onestep_adapters.encoders.encoder import Encoder as Encoder
from onestep_adapters.encoders.loading import load_encoder as load_encoder
from onestep_adapters.encoders.multiscale import Multiscale as Multiscale
from onestep_adapters.encoders.multiscale import features_of as features_of
from onestep_adapters.encoders.multiscale import multiscale as multiscale
from onestep_adapters.encoders.multiscale import unmasked as unmasked
from onestep_adapters.encoders.pixels import joined as joined
from onestep_adapters.encoders.pixels import pixels as pixels
from onestep_adapters.encoders.pretrained import PRETRAINED as PRETRAINED
from onestep_adapters.encoders.pretrained import pretrained_encoder as pretrained_encoder
