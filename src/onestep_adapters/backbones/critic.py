"""A score network and a discriminator head on its features, in one module.

The head takes the input of one layer of the score network (the last layer by default) as
``[batch, location, channel]`` and returns one logit per location. One forward pass gives the score and the logits.
The gradient of the logits reaches the parameters of the score network, so both are trained together. Use the *fake*
score network here: it is trained on the samples of the generator. A teacher never saw these samples.

The score network may be any module: a UNet of ``diffusers``, or a vision transformer without times whose logits alone
are used. ``layer`` and ``output`` say where its features and its prediction are; its conditions are passed on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from onestep_adapters.backbones.conditioning import at_least, draw_linear, zero_linear
from onestep_core.errors import ConfigError


class Judged(NamedTuple):
    """The score network's prediction, in the shape of the state, and the head's logits, ``[batch, location]``."""

    prediction: Tensor
    logits: Tensor


class Critic(nn.Module):
    """``(z, *times, **condition) -> Judged``.

    Args:
        score: the score network, called as ``score(z, *times, **condition)``.
        width: number of channels of the features. ``None``: there is no head, the features have one channel and are the
            logits (a network with a head of its own).
        layer: name of a submodule of ``score`` that is called once per forward pass. The features are its first input:
            ``[batch, channel]``, ``[batch, location, channel]`` or ``[batch, channel, height, width]``. ``""``: the
            features are the prediction itself, as picked by ``output``.
        output: picks the prediction from what ``score`` returns, for example ``lambda result: result.sample``; ``None``
            for a network that returns a tensor.
        generator: draws the weights of the head. Its last layer starts at zero, so all logits start at zero.

    Raises:
        ConfigError: if ``score`` has no such layer; at a call, if the layer is not called exactly once, the prediction
            is no tensor, or the features have another number of channels.

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
        self,
        score: nn.Module,
        *,
        width: int | None,
        layer: str = "output",
        output: Callable[[Any], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width is not None:
            at_least(1, width=width)
        if layer not in dict(score.named_modules()):
            raise ConfigError(
                f"{type(score).__name__} has no layer {layer!r}: give the name of the layer whose input the head uses"
            )
        self.score, self.layer, self.width, self._pick = score, layer, width, output
        self.inner = self.outer = None
        if width is not None:
            self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, 1)
            draw_linear(self.inner, generator)
            zero_linear(self.outer)

    def forward(self, z: Tensor, *times: Tensor, **condition: Any) -> Judged:
        """The prediction and the logits of one forward pass.

        Args:
            z: states, ``[batch, *shape]``.
            times: as many as the score network takes.
            condition: its keyword arguments, for example ``label``, ``class_labels``, ``encoder_hidden_states``.
        """
        if not self.layer:
            prediction = self._prediction(z, times, condition)
            return Judged(prediction, self._logits(prediction))
        seen: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(next(given for given in (*inputs, *named.values()) if isinstance(given, Tensor)))

        handle = self.score.get_submodule(self.layer).register_forward_pre_hook(note, with_kwargs=True)
        try:
            prediction = self._prediction(z, times, condition)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ConfigError(
                f"the layer {self.layer!r} was called {len(seen)} times in one forward pass: expected once"
            )
        return Judged(prediction, self._logits(seen[0]))

    def _prediction(self, z: Tensor, times: tuple[Tensor, ...], condition: dict[str, Any]) -> Tensor:
        result = self.score(z, *times, **condition)
        prediction = result if self._pick is None else self._pick(result)
        if not isinstance(prediction, Tensor):
            raise ConfigError(
                f"{type(self.score).__name__} returned a {type(prediction).__name__}, expected a tensor: select it "
                "with output=, for example output=lambda result: result.sample"
            )
        return prediction

    def _logits(self, features: Tensor) -> Tensor:
        located = _located(features)
        if located.ndim != 3 or located.shape[2] != (self.width or 1):
            raise ConfigError(
                f"features of shape {tuple(features.shape)} at the layer {self.layer!r}: expected {self.width or 1} "
                "channels; give their number as width=, or another layer"
            )
        if self.inner is None or self.outer is None:
            return located.squeeze(-1)
        return self.outer(silu(self.inner(located))).squeeze(-1)


def _located(features: Tensor) -> Tensor:
    """Features as ``[batch, location, channel]``: from a vector, from tokens or from a feature map."""
    if features.ndim == 2:
        return features.unsqueeze(1)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
