"""The encoder of a run: found once, checked against the data, and handed down as a value.

A method names its encoder (``encoder_from``). The first rule that applies is used:

1. The caller gives an object: an ``Encoder``, or a run that trained one.
2. The name of a pretrained encoder (:data:`~onestep_adapters.encoders.PRETRAINED`).
3. The folder of a finished run of a method that trains encoders.

A hash of the weights is kept in the configuration of the run, so that it is not continued with another encoder.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from onestep_adapters.data import Dataset
from onestep_adapters.encoders import PRETRAINED, Encoder, pretrained_encoder
from onestep_adapters.methods import Method
from onestep_adapters.methods.pretraining.base import Pretraining
from onestep_adapters.methods.registry import ENCODERS
from onestep_adapters.runs.run import Run
from onestep_adapters.runs.teachers import cache_folder, weights_hash
from onestep_core.errors import ConfigError


class FoundEncoder(NamedTuple):
    """An encoder and a hash of its weights; nothing for a method without one."""

    encoder: Encoder | None = None
    weights: str = ""
    network: Any = None
    """Options of its architecture, if a run trained it."""

    def started(self, options: Method) -> Method:
        """Options of a method that trains this encoder further: they have its architecture."""
        if self.network is None or not isinstance(options, Pretraining):
            return options
        return attrs.evolve(options, network=self.network)

    @property
    def cache(self) -> Path | None:
        """The folder for features computed with this encoder; ``None`` without an encoder or for one without a key."""
        if self.encoder is None or not self.encoder.key:
            return None
        return cache_folder(f"encoder-{hashlib.sha256(self.encoder.key.encode()).hexdigest()[:12]}")


def find_encoder(
    options: Method, data: Dataset, given: Encoder | Run | None, *, opened: Callable[[str], Run]
) -> FoundEncoder:
    """Find the encoder of a run.

    Args:
        options: options of the method.
        data: the data set.
        given: an encoder, or a run that trained one, from the caller.
        opened: opens the run in a folder.

    Raises:
        ConfigError: if it is not found, is not finished, or does not fit the data.
    """
    name = options.encoder_from
    if given is not None and not isinstance(given, Encoder | Run):
        raise ConfigError(f"a {type(given).__name__} as encoder: expected an Encoder, or a run that trained one")
    if given is not None and not name:
        raise ConfigError(
            f"{type(options).__name__} with these options uses no encoder: leave encoder= out, or give the option "
            'encoder a name of yours, encoder="mine"'
        )
    if not name:
        return FoundEncoder()
    if given is None:
        return named_encoder(name, data, opened=opened)
    if isinstance(given, Encoder):
        return _found(name, given, data)
    return _found(name, _trained(given, "the run given as encoder"), data, given)


def named_encoder(name: str, data: Dataset, *, opened: Callable[[str], Run]) -> FoundEncoder:
    """The encoder of a name: a pretrained one, or the folder of a run that trained one.

    Args:
        name: the name or the folder.
        data: the data set.
        opened: opens the run in a folder.

    Raises:
        ConfigError: if it is not found, is not finished, or does not fit the data.
    """
    if name in PRETRAINED:
        return _found(name, pretrained_encoder(name), data)
    if os.path.isdir(name):
        run = opened(name)
        return _found(name, _trained(run, name), data, run)
    raise ConfigError(
        f"no encoder {name!r}: it is no pretrained one ({', '.join(PRETRAINED)}) and no folder of a run of "
        f"{', '.join(ENCODERS) or 'a method that trains encoders'}; an object of your own is given again, encoder="
    )


def _found(name: str, encoder: Encoder, data: Dataset, run: Run | None = None) -> FoundEncoder:
    _check_data(name, encoder, data)
    return FoundEncoder(encoder, weights_hash(encoder.module), None if run is None else run.options.network)


def other_encoder(config: dict[str, Any], found: FoundEncoder) -> bool:
    """Whether the run was trained with other weights of the encoder than those found now."""
    known = config.get("encoder_weights")
    return known is not None and found.encoder is not None and known != found.weights


def _trained(run: Run, place: str) -> Encoder:
    if not isinstance(run.options, Pretraining):
        raise ConfigError(
            f"{place} is a run of {run.name!r}, which trains no encoder: give a run of "
            f"{', '.join(ENCODERS) or 'a method that trains encoders'}"
        )
    if not run.finished:
        raise ConfigError(
            f"{place} stopped at {run.state.step} of {run.options.training.steps} updates: finish the encoder first, "
            f"with onestep train {run.name} --resume"
        )
    return run.options.encoder_of(run.state.ema, run.data, key=weights_hash(run.state.ema))


def _check_data(name: str, encoder: Encoder, data: Dataset) -> None:
    if len(data.shape) != 3:
        raise ConfigError(f"encoder {name!r} needs images, {data.name} has samples of {data.shape}")
    if data.shape[0] not in (1, encoder.channels):
        raise ConfigError(
            f"encoder {name!r} takes images of {encoder.channels} channels and {data.name} has {data.shape[0]}: only a "
            "grey channel is repeated; choose an encoder of such images"
        )
