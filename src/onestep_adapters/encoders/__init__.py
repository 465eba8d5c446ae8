"""Encoders: functions from samples to a dictionary of features, each ``[batch, location, channel]``.

And what trains them: contrastive losses (MoCo, SimCLR), masked reconstruction (MAE), augmentations, a queue of keys,
heads, and two architectures in plain torch. The commands are in :mod:`onestep_adapters.methods.pretraining`.
"""

from onestep_adapters.encoders.augmentations import Augmentation as Augmentation
from onestep_adapters.encoders.augmentations import blur as blur
from onestep_adapters.encoders.augmentations import brightness as brightness
from onestep_adapters.encoders.augmentations import contrast as contrast
from onestep_adapters.encoders.augmentations import crop_and_resize as crop_and_resize
from onestep_adapters.encoders.augmentations import cutout as cutout
from onestep_adapters.encoders.augmentations import horizontal_flip as horizontal_flip
from onestep_adapters.encoders.augmentations import shift as shift
from onestep_adapters.encoders.contrastive import info_nce as info_nce
from onestep_adapters.encoders.contrastive import nt_xent as nt_xent
from onestep_adapters.encoders.contrastive import symmetric_info_nce as symmetric_info_nce
from onestep_adapters.encoders.convolutional import RandomConvolutions as RandomConvolutions
from onestep_adapters.encoders.encoder import Encoder as Encoder
from onestep_adapters.encoders.heads import Head as Head
from onestep_adapters.encoders.heads import locations as locations
from onestep_adapters.encoders.heads import pooled as pooled
from onestep_adapters.encoders.keys import KeyQueue as KeyQueue
from onestep_adapters.encoders.loading import load_encoder as load_encoder
from onestep_adapters.encoders.masked import draw_mask as draw_mask
from onestep_adapters.encoders.masked import masked_reconstruction as masked_reconstruction
from onestep_adapters.encoders.masked import patchify as patchify
from onestep_adapters.encoders.masked import unpatchify as unpatchify
from onestep_adapters.encoders.masked import visible_places as visible_places
from onestep_adapters.encoders.multiscale import Multiscale as Multiscale
from onestep_adapters.encoders.multiscale import features_of as features_of
from onestep_adapters.encoders.multiscale import multiscale as multiscale
from onestep_adapters.encoders.multiscale import unmasked as unmasked
from onestep_adapters.encoders.pixels import joined as joined
from onestep_adapters.encoders.pixels import pixels as pixels
from onestep_adapters.encoders.pooled_features import pooled_features as pooled_features
from onestep_adapters.encoders.pretrained import PRETRAINED as PRETRAINED
from onestep_adapters.encoders.pretrained import pretrained_encoder as pretrained_encoder
from onestep_adapters.encoders.residual import ResidualEncoder as ResidualEncoder
from onestep_adapters.encoders.transformer import MaskedDecoder as MaskedDecoder
from onestep_adapters.encoders.transformer import VisionTransformer as VisionTransformer
