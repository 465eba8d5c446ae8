"""Encoders from published checkpoints of self-supervised training.

======== ============================================================ ==========================================
kind     keys                                                         module of ``transformers``
======== ============================================================ ==========================================
moco     ``module.encoder_q.conv1.weight`` (v1 and v2, ResNet)        ``ResNetModel``
moco-v3  ``module.base_encoder.`` or ``module.momentum_encoder.``,    ``ResNetModel`` or ``ViTModel``
         a ResNet by torchvision's or a ViT by timm's names
simclr   torchvision's names, plain or under ``backbone.``            ``ResNetModel``
mae      timm's names, plain; pretrained or fine-tuned               ``ViTModel`` (nothing is masked)
dinov2   timm's names with ``ls1.gamma``, ``register_tokens``         ``Dinov2Model``, ``Dinov2WithRegistersModel``
======== ============================================================ ==========================================

MAE fine-tuned with global pooling holds ``fc_norm`` in place of ``norm``. It becomes the last layer normalisation: here
it is applied to every token, there to the mean of the tokens. DINOv2's blocks may be in chunks (``blocks.0.3.``). A
ResNet has four stages.

Weights of projection heads, predictors, queues, classifiers and of MAE's decoder are left out. Everything else has to
fit. A network of ``timm`` or ``torchvision`` needs none of this:
:func:`~onestep_adapters.encoders.multiscale.multiscale` takes any module.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from onestep_adapters.encoders.checkpoints.key_layouts import Layout, State, dinov2, resnet, vit
from onestep_adapters.names import choose
from onestep_core.errors import ConfigError


class _Kind(NamedTuple):
    """Prefixes of the encoder's keys, in the order in which they are tried; keys of other parts; layouts by a key."""

    prefixes: tuple[str, ...]
    others: str
    layouts: dict[str, Callable[[State, int | None], Layout]]


_RESNET: dict[str, Callable[[State, int | None], Layout]] = {"conv1.weight": resnet}
_MAE_HEADS = {1280: 16}
_MOCO_V3_HEADS = {384: 12}

KINDS: Mapping[str, _Kind] = {
    "moco": _Kind(("module.encoder_q.", "encoder_q."), r"fc\..*", _RESNET),
    "moco-v3": _Kind(
        ("module.base_encoder.", "base_encoder.", "module.momentum_encoder.", "momentum_encoder."),
        r"(fc|head)\..*",
        {**_RESNET, "patch_embed.proj.weight": vit(_MOCO_V3_HEADS)},
    ),
    "simclr": _Kind(("module.backbone.", "backbone.", "module.", ""), r"(fc|head|projection)\..*", _RESNET),
    "mae": _Kind(("module.", ""), r"(decoder_.*|mask_token|head\..*)", {"patch_embed.proj.weight": vit(_MAE_HEADS)}),
    "dinov2": _Kind(
        ("module.", "backbone.", ""),
        r"(head|dino_head|ibot_head)\..*",
        {"blocks.0.ls1.gamma": dinov2, "blocks.0.0.ls1.gamma": dinov2},
    ),
}
"""What is known of each kind of checkpoint."""

_HOLDERS = ("state_dict", "model", "teacher")
"""Keys under which a checkpoint file holds the weights."""


def load_encoder(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any], *, kind: str, heads: int | None = None
) -> nn.Module:
    """The encoder in a checkpoint, in evaluation mode, on the CPU.

    Args:
        checkpoint: a file ``.pt``, ``.pth``, ``.tar`` (read with ``weights_only=True``) or ``.safetensors``, or its
            content; the weights may be under ``state_dict``, ``model`` or ``teacher``. An ``argparse.Namespace`` beside
            them is read, objects of other classes are refused.
        kind: ``"moco"`` (v1 and v2), ``"moco-v3"``, ``"simclr"``, ``"mae"`` or ``"dinov2"``.
        heads: number of attention heads; no checkpoint holds it. ``None``: that of the published models (12 of 384
            channels for MoCo v3, 16 of 1280 for MAE, else 64 channels a head).

    Raises:
        ConfigError: if the kind is unknown, the file does not exist or cannot be read, it holds no weights of this
            kind, or keys, blocks or stages are missing, unexpected or of another shape.
        MissingExtraError: if transformers is not installed.

    Source of the names: facebookresearch/moco, moco-v3, mae, dinov2; sthalles/SimCLR.

    Example:
        >>> load_encoder({"conv1.weight": nn.Conv2d(3, 4, 7).weight}, kind="mae")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: no weights of kind 'mae' in the checkpoint: ...
    """
    known = KINDS[choose(kind, KINDS, "kind of checkpoint")]
    # The library of the modules is an extra.
    from onestep_adapters.encoders.checkpoints.transformers_modules import filled, read

    content = checkpoint if isinstance(checkpoint, Mapping) else read(checkpoint)
    state = _weights(content)
    found = _part(state, known)
    if found is None:
        fitting = [name for name, other in KINDS.items() if _part(state, other) is not None]
        meant = f"it looks like {' or '.join(map(repr, fitting))}" if fitting else f"its keys are {_some(state)}"
        wanted = [prefix + key for prefix in known.prefixes for key in known.layouts]
        raise ConfigError(f"no weights of kind {kind!r} in the checkpoint: {meant}; expected one of {wanted}")
    part, make = found
    return filled(make(part, heads))


def _weights(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for holder in _HOLDERS:
            if isinstance(content.get(holder), Mapping):
                return _weights(content[holder])
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise ConfigError(f"a {type(content).__name__} without tensors: expected a state dict, or a file that holds one")


def _part(state: State, kind: _Kind) -> tuple[dict[str, Tensor], Callable[[State, int | None], Layout]] | None:
    """The encoder's weights without the prefix and without other parts, and their layout."""
    for prefix in kind.prefixes:
        for key, layout in kind.layouts.items():
            if prefix + key in state:
                inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
                return {name: value for name, value in inside.items() if not re.fullmatch(kind.others, name)}, layout
    return None


def _some(state: State) -> str:
    return ", ".join(list(state)[:4]) + (", ..." if len(state) > 4 else "")
