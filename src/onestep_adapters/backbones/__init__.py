"""Networks in plain torch. Every derivative of the core works on them."""

from onestep_adapters.backbones.conditioning import Conditioning as Conditioning
from onestep_adapters.backbones.convolutional import ConvNet as ConvNet
from onestep_adapters.backbones.critic import Critic as Critic
from onestep_adapters.backbones.critic import Judged as Judged
from onestep_adapters.backbones.decoder import Decoder as Decoder
from onestep_adapters.backbones.dit import DiT as DiT
from onestep_adapters.backbones.dit import plain_attention as plain_attention
from onestep_adapters.backbones.mlp import MLP as MLP
from onestep_adapters.backbones.unet import UNet as UNet
