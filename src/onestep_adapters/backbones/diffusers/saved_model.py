"""What all networks of this folder share: how they are written to a folder."""

import functools
import os
import re
from pathlib import Path
from typing import Any

from torch import nn

from onestep_adapters.backbones.diffusers.calls import unwrapped
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from diffusers import ConfigMixin, ModelMixin
except ImportError as error:
    raise MissingExtraError("models of diffusers need it: pip install 'onestep[diffusers]'") from error


class SavedModel(ModelMixin, ConfigMixin):
    """A model of diffusers around another one, whose class and arguments are ``config["model"]``."""

    # That of ModelMixin finds entries of the config before submodules of the same name.
    __getattr__ = nn.Module.__getattr__

    # A pipeline passes only the keywords that it finds in the signature: `variant`, `max_shard_size`, ...
    @functools.wraps(ModelMixin.save_pretrained, assigned=())
    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *arguments: Any, **keywords: Any
    ) -> None:
        """Weights and config in a folder, as every model of diffusers; ``from_pretrained`` reads them.

        Weights of the same variant that an earlier save left there are removed.

        Raises:
            ConfigError: if the model is no model of diffusers: its config could not be written; if it has an adapter of
                peft or is compiled or wrapped, which the config does not describe.
        """
        self.require_saveable()
        if is_main_process:
            _remove_weights(Path(save_directory), keywords.get("variant"))
        super().save_pretrained(save_directory, is_main_process, *arguments, **keywords)

    def require_saveable(self) -> None:
        """Refuse what a file could not describe, before anything is written.

        Raises:
            ConfigError: as :meth:`save_pretrained`.
        """
        if any(".base_layer." in name for name, _ in self.named_parameters()):
            raise ConfigError(
                f"the model in the {type(self).__name__} has adapters of peft: merge them before it is saved, by "
                "network = peft_network.merge_and_unload(), or for model.add_adapter by model.fuse_lora() and "
                "model.unload_lora()"
            )
        for module in self.modules():
            model = module._modules.get("model") if isinstance(module, SavedModel) else None
            if model is None:
                continue
            if unwrapped(model) is not model:
                raise ConfigError(
                    f"the model in the {type(module).__name__} is wrapped by a {type(model).__name__}, which a file "
                    "does not describe: make the network of the model itself, and wrap the network, for example "
                    "torch.compile(DiffusersNetwork(model))"
                )
            if module.config["model"] is None:
                raise ConfigError(
                    f"{type(model).__name__} has no config of diffusers, so it cannot be made anew from a file: "
                    "save the state_dict() yourself, or make it a diffusers.ModelMixin and ConfigMixin"
                )


def _remove_weights(folder: Path, variant: str | None) -> None:
    """Diffusers prefers an index of pieces to one file, and safetensors to another format, also where it is older."""
    kind = "" if variant is None else rf"\.{re.escape(variant)}"
    weights = rf"diffusion_pytorch_model{kind}(-\d+-of-\d+)?\.(safetensors|bin)"
    index = rf"diffusion_pytorch_model\.(safetensors|bin)\.index{kind}\.json"
    for file in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(f"{weights}|{index}", file.name):
            file.unlink(missing_ok=True)
