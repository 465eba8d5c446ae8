"""Layers of diffusers whose code asks for the size of the batch, in a form that does not: for ``torch.export``.

``Upsample2D`` and ``ResnetBlock2D`` copy their input into contiguous memory from 64 samples on, and ``Upsample2D``
from 2**31 numbers on. A program of ``torch.export`` would hold for the batch sizes of one branch only.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from onestep_core.errors import MissingExtraError

try:
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D
except ImportError as error:
    raise MissingExtraError("models of diffusers need it: pip install 'onestep[diffusers]'") from error


class _Upsample(Upsample2D):
    """The branch of large batches for all: the input is contiguous."""

    def forward(self, hidden_states: Tensor, output_size: Any = None) -> Tensor:
        """Twice the height and width, or ``output_size``."""
        layers: Any = self
        if self.norm is not None:
            hidden_states = layers.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.use_conv_transpose:
            return layers.conv(hidden_states)
        if self.interpolate:
            sizes = {"scale_factor": 2.0} if output_size is None else {"size": output_size}
            hidden_states = functional.interpolate(hidden_states.contiguous(), mode="nearest", **sizes)
        if not self.use_conv:
            return hidden_states
        return layers.conv(hidden_states) if self.name == "conv" else layers.Conv2d_0(hidden_states)


def free_batch(model: nn.Module) -> None:
    """Change the layers of ``model`` in place, weights untouched: give a copy.

    Example:
        >>> import torch
        >>> layer = Upsample2D(2, use_conv=True)
        >>> before = layer(torch.ones(1, 2, 4, 4))
        >>> free_batch(layer)
        >>> bool((layer(torch.ones(1, 2, 4, 4)) == before).all())
        True
    """
    for module in model.modules():
        if type(module) is Upsample2D:
            module.__class__ = _Upsample
        elif isinstance(module, ResnetBlock2D) and module.upsample is not None:
            # Its code for downsampling is that for upsampling, without the question.
            module.upsample, module.downsample = None, module.upsample
