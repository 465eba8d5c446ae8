"""A score network and a discriminator head on its features, in one module.

The head takes the input of one layer of the score network (the last layer by default) as
``[batch, location, channel]`` and returns one logit per location. One forward pass gives the score and the logits.
The gradient of the logits reaches the parameters of the score network, so both are trained together. Use the *fake*
score network here: it is trained on the samples of the generator. A teacher never saw these samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from onestep_adapters.backbones.conditioning import Labels, at_least, draw_linear, zero_linear
from onestep_core.errors import ConfigError


class Judged(NamedTuple):
    """The score network's prediction, in the shape of the state, and the head's logits, ``[batch, location]``."""

    prediction: Tensor
    logits: Tensor


class Critic(nn.Module):
    """``(z, t, label=None) -> Judged``.

    Args:
        score: the score network, ``(z, *times, label=None) -> [batch, *shape]``.
        width: number of channels of the input of ``layer``.
        layer: name of a submodule of ``score`` that is called once per forward pass. The head uses its first input:
            ``[batch, channel]``, ``[batch, location, channel]`` or ``[batch, channel, height, width]``.
        generator: draws the weights of the head. Its last layer starts at zero, so all logits start at zero.

    Raises:
        ConfigError: if ``score`` has no such layer; at a call, if the layer is not called exactly once.

    Source: Yin et al., Improved Distribution Matching Distillation, section 4.3, https://arxiv.org/abs/2405.14867;
    there the head uses the bottleneck of a UNet.

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
            raise ConfigError(
                f"{type(score).__name__} has no layer {layer!r}: give the name of the layer whose input the head uses"
            )
        self.score, self.layer = score, layer
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, 1)
        draw_linear(self.inner, generator)
        zero_linear(self.outer)

    def forward(self, z: Tensor, *times: Tensor, label: Labels | None = None) -> Judged:
        """The prediction and the logits of one forward pass."""
        seen: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self.score.get_submodule(self.layer).register_forward_pre_hook(note)
        try:
            prediction = self.score(z, *times, label=label)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ConfigError(
                f"the layer {self.layer!r} was called {len(seen)} times in one forward pass: expected once"
            )
        return Judged(prediction, self.outer(silu(self.inner(_located(seen[0])))).squeeze(-1))


def _located(features: Tensor) -> Tensor:
    """Features as ``[batch, location, channel]``: from a vector, from tokens or from a feature map."""
    if features.ndim == 2:
        return features.unsqueeze(1)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
