"""A score network with a head that reads its features: fake score and discriminator in one.

The head sees what enters one layer of the score network, the last by default, as ``[batch, location, channel]``, and
gives every location a logit. One pass gives both, and the gradient of the logits reaches the score network's
parameters: in an adversarial game the two learn together, which is why the features have to be those of the *fake*
score, that follows the generator, and not of a teacher, that was never shown its samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from onestep_adapters.backbones.conditioning import Labels, at_least, draw_linear, zero_linear
from onestep_core.errors import ConfigError


class Judged(NamedTuple):
    """What the score network says, in the shape of the state, and the head's logits, ``[batch, location]``."""

    prediction: Tensor
    logits: Tensor


class Critic(nn.Module):
    """``(z, t, label=None) -> Judged``.

    Args:
        score: the network that is read, ``(z, *times, label=None) -> [batch, *shape]``.
        width: channels of what enters ``layer``.
        layer: name of a submodule of ``score`` that is called once a pass; its first input is read:
            ``[batch, channel]``, ``[batch, location, channel]`` or ``[batch, channel, height, width]``.
        generator: of the head's weights. The last layer starts at zero: a fresh head knows nothing.

    Raises:
        ConfigError: if ``score`` has no such layer, or, at a call, the layer is not reached.

    Source: Yin et al., Improved Distribution Matching Distillation, section 4.3, https://arxiv.org/abs/2405.14867;
    there the bottleneck of a UNet is read.

    Example:
        >>> from onestep_adapters.backbones import MLP
        >>> critic = Critic(MLP((2,), width=16, depth=1), width=16)
        >>> prediction, logits = critic(torch.randn(5, 2), torch.ones(5))
        >>> prediction.shape, logits.shape
        (torch.Size([5, 2]), torch.Size([5, 1]))
    """

    def __init__(
        self, score: nn.Module, *, width: int, layer: str = "output", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        at_least(1, width=width)
        if layer not in dict(score.named_modules()):
            raise ConfigError(f"{type(score).__name__} has no layer {layer!r}: name the one whose input is to be read")
        self.score, self.layer = score, layer
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, 1)
        draw_linear(self.inner, generator)
        zero_linear(self.outer)

    def forward(self, z: Tensor, *times: Tensor, label: Labels | None = None) -> Judged:
        """Prediction and logits of one pass."""
        seen: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self.score.get_submodule(self.layer).register_forward_pre_hook(note)
        try:
            prediction = self.score(z, *times, label=label)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ConfigError(f"the layer {self.layer!r} was called {len(seen)} times in a pass: expected once")
        return Judged(prediction, self.outer(silu(self.inner(_located(seen[0])))).squeeze(-1))


def _located(features: Tensor) -> Tensor:
    """``[batch, location, channel]`` of a vector, of tokens or of an image of features."""
    if features.ndim == 2:
        return features.unsqueeze(1)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
