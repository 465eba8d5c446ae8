"""Autoencoders of diffusers, from a folder on this machine."""

import os

from torch import nn

from onestep_adapters.files import require_path
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from diffusers import AutoencoderKL
except ImportError as error:
    raise MissingExtraError("an autoencoder needs diffusers: pip install 'onestep[diffusers]'") from error


def load_autoencoder(folder: str | os.PathLike[str]) -> nn.Module:
    """The ``AutoencoderKL`` that ``save_pretrained`` wrote; of a pipeline, the one in its folder ``vae``.

    Raises:
        ConfigError: if the folder has none.
    """
    place = require_path("folder", folder).expanduser()
    place = place / "vae" if (place / "vae" / "config.json").is_file() else place
    if not (place / "config.json").is_file():
        raise ConfigError(
            f"{place} has no config.json: expected the folder of a diffusers AutoencoderKL, by save_pretrained"
        )
    try:
        return AutoencoderKL.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{place} cannot be loaded as an AutoencoderKL: {str(error).splitlines()[0]}") from error
