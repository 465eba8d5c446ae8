"""Further numbers for a model of diffusers: a second time, a guidance scale; without effect at the start.

A number is embedded as the model embeds its time, by sinusoids and two layers of which the last is zero at the start,
and added to the embedding of the time. The numbers reach the place where it is computed through arguments that the
model hands on untouched, so nothing is kept between calls:

======================== ============================= =====================================================
model                    place                         the numbers come
======================== ============================= =====================================================
``UNet2DModel``          ``class_embedding``           beside the labels, in ``class_labels``
``UNet2DConditionModel`` ``time_embedding``            beside ``timestep_cond``
``SD3Transformer2DModel``, ``time_text_embed``         in ``timestep``, ``[1 + numbers, batch]``
``FluxTransformer2DModel``
``DiTTransformer2DModel`` ``norm1.emb`` of each block  in ``timestep``, ``[1 + numbers, batch]``
======================== ============================= =====================================================
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onestep_adapters.backbones.diffusers.calls import unwrapped
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from diffusers import (
        DiTTransformer2DModel,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
        UNet2DModel,
    )
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
except ImportError as error:
    raise MissingExtraError("models of diffusers need it: pip install 'onestep[diffusers]'") from error

_SINUSOIDS = 256


class Numbers(nn.Module):
    """``[number, batch]`` to the sum of their embeddings, ``[batch, width]``: zero at the start."""

    def __init__(self, count: int, like: TimestepEmbedding) -> None:
        super().__init__()
        self.sinusoids = Timesteps(_SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        weight = like.linear_2.weight
        self.embeddings = nn.ModuleList(
            TimestepEmbedding(_SINUSOIDS, like.linear_2.out_features).to(weight.device, weight.dtype)
            for _ in range(count)
        )
        for embedding in self.embeddings:
            nn.init.zeros_(embedding.linear_2.weight)
            nn.init.zeros_(embedding.linear_2.bias)

    def forward(self, numbers: Tensor) -> Tensor:
        """``[batch, width]``."""
        parts = [
            embedding(self.sinusoids(number).to(embedding.linear_1.weight.dtype))
            for embedding, number in zip(self.embeddings, numbers.unbind(), strict=True)
        ]
        return sum(parts[1:], parts[0])


class BesideLabels(nn.Module):
    """In place of ``class_embedding``: called with ``(labels, numbers)``."""

    def __init__(self, first: nn.Module | None, added: Numbers) -> None:
        super().__init__()
        self.first, self.added = first, added

    def forward(self, given: tuple[Tensor | None, Tensor]) -> Tensor:
        """The embedding, ``[batch, width]``."""
        labels, numbers = given
        added = self.added(numbers)
        if self.first is None:
            if labels is not None:
                raise ConfigError(
                    "class_labels for a UNet2DModel without classes, which would ignore them: give it "
                    "num_class_embeds=, or leave the labels out"
                )
            return added
        return self.first(labels) + added


class BesideTime(nn.Module):
    """In place of ``time_embedding``: called with the first time's sinusoids and ``(timestep_cond, numbers)``."""

    def __init__(self, first: nn.Module, added: Numbers) -> None:
        super().__init__()
        self.first, self.added = first, added

    def forward(self, sample: Tensor, given: tuple[Tensor | None, Tensor]) -> Tensor:
        """The embedding, ``[batch, width]``."""
        condition, numbers = given
        return self.first(sample, condition) + self.added(numbers)


class WithTime(nn.Module):
    """In place of an embedding of time and condition: the first row of ``timestep`` is the time, the others the
    numbers."""

    def __init__(self, first: nn.Module, added: Numbers) -> None:
        super().__init__()
        self.first, self.added = first, added

    def forward(self, timestep: Tensor, *condition: Any, **keywords: Any) -> Tensor:
        """The embedding, ``[batch, width]``."""
        return self.first(timestep[0], *condition, **keywords) + self.added(timestep[1:])


def with_numbers(model: nn.Module, count: int) -> nn.Module:
    """The model with a place for ``count`` further numbers: a copy of it that shares every layer but that place.

    The model itself stays as it is, and shares its weights with the result.

    Raises:
        ConfigError: if the model has no known place for a second number.
    """
    if isinstance(model, UNet2DModel) and model.config.class_embed_type != "timestep":
        return _replaced(
            model, ["class_embedding"], lambda first: BesideLabels(first, Numbers(count, model.time_embedding))
        )
    if isinstance(model, UNet2DConditionModel):
        return _replaced(model, ["time_embedding"], lambda first: BesideTime(first, Numbers(count, first)))
    if isinstance(model, SD3Transformer2DModel | FluxTransformer2DModel):
        return _replaced(model, ["time_text_embed"], lambda first: _with_time(first, count))
    if isinstance(model, DiTTransformer2DModel):
        for index in range(len(model.transformer_blocks)):
            place = ["transformer_blocks", str(index), "norm1", "emb"]
            model = _replaced(model, place, lambda first: _with_time(first, count))
        return model
    if hasattr(model, "merge_and_unload"):
        raise ConfigError(
            f"a {type(model).__name__} of peft has no place for a second time: make the network of the model, and "
            "the adapter of the network, get_peft_model(DiffusersNetwork(model, times=2), LoraConfig(..., "
            'modules_to_save=["added"])); "added" is the embedding of the second time'
        )
    if unwrapped(model) is not model:
        raise ConfigError(
            f"a {type(model).__name__} around the model has no place for a second time: make the network of the model, "
            "and wrap the network, for example torch.compile(DiffusersNetwork(model, times=2))"
        )
    named = (
        "a UNet2DModel whose class_embed_type is 'timestep'"
        if isinstance(model, UNet2DModel)
        else f"a {type(model).__name__}"
    )
    raise ConfigError(
        f"{named} has no known place for a second time or a guidance scale: expected UNet2DModel, "
        "UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel or FluxTransformer2DModel; a module of "
        "your own that takes (z, t, s) needs no DiffusersNetwork, see onestep_adapters.networks.as_average_velocity"
    )


def give(
    model: nn.Module, t: Tensor, numbers: Sequence[Tensor], condition: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """The time argument and the keywords by which the numbers reach their place."""
    if isinstance(model, UNet2DModel):
        return t, {**condition, "class_labels": (condition.get("class_labels"), torch.stack([*numbers]))}
    if isinstance(model, UNet2DConditionModel):
        return t, {**condition, "timestep_cond": (condition.get("timestep_cond"), torch.stack([*numbers]))}
    return torch.stack([t, *numbers]), condition


def _with_time(first: Any, count: int) -> nn.Module:
    return WithTime(first, Numbers(count, first.timestep_embedder))


def _replaced(module: nn.Module, place: list[str], replace: Callable[[Any], nn.Module]) -> nn.Module:
    """A copy along the way to one submodule, which is replaced; everything else is shared."""
    clone = copy.copy(module)
    own = {name: copy.copy(value) for name, value in vars(module).items() if type(value) in {dict, OrderedDict}}
    vars(clone).update(own)
    children: dict[str, Any] = vars(clone)["_modules"]
    head, *rest = place
    children[head] = _replaced(children[head], rest, replace) if rest else replace(children.get(head))
    vars(clone).pop(head, None)
    return clone
