"""Encoders: functions from samples to a dictionary of features, each ``[batch, location, channel]``."""

from onestep_adapters.encoders.convolutional import RandomConvolutions as RandomConvolutions
from onestep_adapters.encoders.pixels import joined as joined
from onestep_adapters.encoders.pixels import pixels as pixels
