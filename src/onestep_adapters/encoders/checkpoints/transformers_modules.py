"""Modules of ``transformers``, built for the sizes of a checkpoint and filled with its weights."""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onestep_adapters.encoders.checkpoints.key_layouts import Layout, published_name
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from safetensors.torch import load_file
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
    )
except ImportError as error:
    raise MissingExtraError("published encoders need transformers: pip install 'onestep[transformers]'") from error

_SHOWN = 6

_NOT_USED = ("num_batches_tracked", "mask_token")
"""Ends of names that evaluation does not use; conversions leave them out."""


def read(file: str | os.PathLike[str]) -> Any:
    """The content of a checkpoint file; nothing in it is executed.

    An ``argparse.Namespace`` beside the weights, which is only a holder of values, is read as well.

    Raises:
        ConfigError: if the file does not exist, is a folder, cannot be read, or holds objects of another class.

    Example:
        >>> read("/nowhere.pth")
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: /nowhere.pth does not exist
    """
    if not isinstance(file, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(file).__name__} as checkpoint: expected a file or a state dict")
    path = Path(file)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected a file: give the file of the weights in it")
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read as a checkpoint of tensors ({_reason(error)}); if you trust it, load it yourself "
            "and give its state dict"
        ) from error


def filled(layout: Layout) -> nn.Module:
    """The module of a layout with its weights, in evaluation mode, in the precision of the weights (float32 at least).

    Raises:
        ConfigError: if keys are missing, unexpected or of another shape.
    """
    module = _module(layout)
    floats = [value.dtype for value in layout.weights.values() if value.is_floating_point()]
    module.to(torch.float64 if torch.float64 in floats else torch.float32)
    own = module.state_dict()
    missing = [
        published_name(name, layout.rules)
        for name in own
        if name not in layout.weights and not name.endswith(_NOT_USED)
    ]
    unexpected = [published_name(name, layout.rules) for name in layout.weights if name not in own]
    shapes = [
        f"{published_name(name, layout.rules)} ({name}) {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in layout.weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        told = [
            f"{title}: {_listed(names)}"
            for title, names in (
                ("missing", dict.fromkeys(missing)),
                ("unexpected", dict.fromkeys(unexpected)),
                ("of another shape", shapes),
            )
            if names
        ]
        raise ConfigError(
            f"the checkpoint does not fit {type(module).__name__}, by its own names without a prefix; {'; '.join(told)}"
        )
    module.load_state_dict({name: layout.weights.get(name, value) for name, value in own.items()})
    return module.eval()


def _module(layout: Layout) -> nn.Module:
    config = layout.config
    if layout.family == "resnet":
        return ResNetModel(ResNetConfig(**config))
    if layout.family == "vit":
        return ViTModel(ViTConfig(**config), add_pooling_layer=False)
    if "num_register_tokens" in config:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config))
    return Dinov2Model(Dinov2Config(**config))


def _reason(error: Exception) -> str:
    """One line; torch's own has several, with escapes for a terminal."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if found := re.search(r"GLOBAL (\S+)", said):
        return f"it holds an object of {found[1]}, which is no tensor"
    if found := re.search(r"WeightsUnpickler error: (.+)", said):
        return found[1]
    return said.splitlines()[0] if said else type(error).__name__


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + rest
