"""How a model of diffusers is called: ``(states, times, keywords) -> tensor``, whatever its own arguments are."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onestep_core.errors import ConfigError, MissingExtraError

try:
    from diffusers import (
        DiTTransformer2DModel,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
        UNet2DModel,
    )
except ImportError as error:
    raise MissingExtraError("models of diffusers need it: pip install 'onestep[diffusers]'") from error

FLUX_TIMES = 1000
"""``FluxTransformer2DModel`` multiplies its times by this number, so it expects 0 to 1 where the others expect 0 to
1000."""


class Call(NamedTuple):
    """``by_name``: the time is given as ``timestep=``. ``flat``: ``return_dict=False`` gives a tuple. ``packed``: the
    model takes tokens of 2 x 2 latents (Flux). ``guided``: it has a ``guidance`` of its own. ``needs``: conditions that
    it cannot do without."""

    by_name: bool
    flat: bool
    packed: bool
    guided: bool
    needs: tuple[str, ...]


def unwrapped(model: Any) -> Any:
    """The module under ``torch.compile``, ``frozen``, data-parallel wrappers and an adapter of peft."""
    while True:
        inner = vars(model).get("__wrapped__") if callable(model) and hasattr(model, "__dict__") else None
        if isinstance(model, nn.Module):
            inner = model._modules.get("_orig_mod")
            if isinstance(model, DistributedDataParallel | nn.DataParallel):
                inner = model.module
            if hasattr(model, "merge_and_unload") and hasattr(model, "get_base_model"):
                inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


def call_of(model: Callable[..., Any]) -> Call:
    """Read from the signature of the model."""
    plain = unwrapped(model)
    try:
        names = inspect.signature(plain.forward if isinstance(plain, nn.Module) else plain).parameters
    except (TypeError, ValueError):
        names = {}
    packed = isinstance(plain, FluxTransformer2DModel)
    # Flux takes the argument also where it has no embedding of it.
    guided = "guidance" in names and not (packed and not plain.config.guidance_embeds)
    return Call("timestep" in names, "return_dict" in names, packed, guided, _needs(plain))


MEANINGS = {
    "class_labels": "classes, [batch], integers",
    "encoder_hidden_states": "embeddings of a text, [batch, token, channel]",
    "pooled_projections": "the pooled embedding of a text, [batch, channel]",
}
"""Conditions of a whole batch, and what they are."""


def _needs(model: Any) -> tuple[str, ...]:
    if isinstance(model, SD3Transformer2DModel | FluxTransformer2DModel):
        return "encoder_hidden_states", "pooled_projections"
    labelled = isinstance(model, UNet2DModel) and (model.config.num_class_embeds or model.config.class_embed_type)
    if isinstance(model, DiTTransformer2DModel) or labelled:
        return ("class_labels",)
    return ("encoder_hidden_states",) if isinstance(model, UNet2DConditionModel) else ()


def require_conditions(call: Call, model: Any, condition: dict[str, Any]) -> None:
    """Refuse a call without a condition that the model needs.

    Raises:
        ConfigError: it names the conditions.
    """
    if missing := [name for name in call.needs if condition.get(name) is None]:
        told = " and ".join(f"{name}= ({MEANINGS[name]})" for name in missing)
        also = "; a PretrainedVelocity takes label=" if "class_labels" in missing else ""
        raise ConfigError(
            f"{type(unwrapped(model)).__name__} was called without a condition that it needs: expected {told}{also}"
        )


def evaluate(call: Call, model: Callable[..., Any], z: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
    """The model's prediction for states ``z`` at the times ``t``, as a tensor of the shape of ``z``.

    Raises:
        ConfigError: if the output is no tensor of that shape, with or without a predicted variance behind it.
    """
    if call.flat:
        condition = {"return_dict": False, **condition}
    states = z
    if call.packed and z.dim() == 4:
        states, condition = packed(z), {**_positions(z, condition), **condition}
    answer = model(states, timestep=t, **condition) if call.by_name else model(states, t, **condition)
    prediction = _first_half(_tensor(answer), states)
    return unpacked(prediction, z) if states is not z else prediction


def _tensor(answer: Any) -> Tensor:
    found = answer[0] if isinstance(answer, tuple | list) and answer else getattr(answer, "sample", answer)
    if isinstance(answer, Tensor):
        return answer
    if isinstance(found, Tensor):
        return found
    raise ConfigError(
        f"the model returned a {type(answer).__name__}: expected a tensor, a tuple that starts with one, or an object "
        "with the attribute `sample`"
    )


def _first_half(prediction: Tensor, z: Tensor) -> Tensor:
    """Without the variance that some models predict in as many channels again."""
    if prediction.shape == z.shape:
        return prediction
    if z.dim() > 1 and prediction.shape == (z.shape[0], 2 * z.shape[1], *z.shape[2:]):
        return prediction.narrow(1, 0, z.shape[1])
    raise ConfigError(
        f"the model returned shape {tuple(prediction.shape)} for states of shape {tuple(z.shape)}: expected equal "
        "shapes, or twice the channels (a predicted variance)"
    )


def packed(z: Tensor) -> Tensor:
    """Latents ``[batch, channel, height, width]`` as Flux's tokens ``[batch, height width / 4, 4 channel]``.

    Raises:
        ConfigError: if height or width is odd.
    """
    batch, channels, height, width = z.shape
    if height % 2 or width % 2:
        raise ConfigError(f"latents of {height} x {width}: Flux packs 2 x 2 of them into a token; expected even sizes")
    z = z.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(batch, height * width // 4, 4 * channels)


def unpacked(tokens: Tensor, z: Tensor) -> Tensor:
    """The inverse of :func:`packed`, for latents of the shape of ``z``."""
    batch, channels, height, width = z.shape
    tokens = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tokens.reshape(batch, channels, height, width)


def _positions(z: Tensor, condition: dict[str, Any]) -> dict[str, Tensor]:
    """Flux's ``img_ids`` and ``txt_ids``: row and column of every token; zero for the text."""
    text: Tensor = condition["encoder_hidden_states"]
    height, width = z.shape[2] // 2, z.shape[3] // 2
    rows = torch.arange(height, device=z.device, dtype=z.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=z.device, dtype=z.dtype)[None, :].expand(height, width)
    image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return {"img_ids": image, "txt_ids": image.new_zeros(text.shape[1], 3)}
