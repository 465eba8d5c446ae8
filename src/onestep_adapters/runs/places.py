"""Where the pipeline of diffusers is that a run was distilled from: the place in its options, or a new one."""

import os
from pathlib import Path
from typing import Any

import attrs

from onestep_adapters.data import Dataset
from onestep_adapters.files import is_pipeline
from onestep_adapters.methods import Method
from onestep_adapters.methods.options import pretrained_network
from onestep_adapters.runs.teachers import weights_hash
from onestep_core.errors import ConfigError


def pipeline_of(options: Method) -> str:
    """The folder of the pipeline whose model is the network, or the teacher's network; empty for none.

    Example:
        >>> from onestep_adapters.methods import FlowMatching
        >>> pipeline_of(FlowMatching())
        ''
    """
    return _pretrained(options) or ("" if options.teacher is None else _pretrained(options.teacher))


def _pretrained(options: Any) -> str:
    """The pipeline whose model is the network; the network of an encoder is never one."""
    return getattr(options.network, "pretrained", "")


def with_pipeline(options: Method, pipeline: str | os.PathLike[str]) -> Method:
    """The options with another place of the pipeline.

    Raises:
        ConfigError: if they name none.
    """
    old, new = pipeline_of(options), str(Path(pipeline).expanduser().resolve())
    if not old:
        raise ConfigError(f"pipeline {pipeline}: the run was not made from a pipeline of diffusers, so leave it out")

    def moved(part: Any) -> Any:
        return attrs.evolve(part, network=attrs.evolve(part.network, pretrained=new))

    if _pretrained(options) == old:
        options = moved(options)
    if options.teacher is not None and _pretrained(options.teacher) == old:
        options = attrs.evolve(options, teacher=moved(options.teacher))  # type: ignore[call-arg]
    return attrs.evolve(options, teacher_from=new) if options.teacher_from == old else options  # type: ignore[call-arg]


def check_pipeline(
    folder: str | os.PathLike[str], config: dict[str, Any], options: Method, data: Dataset, *, moved: bool
) -> None:
    """Refuse a run whose network is the model of a pipeline that is not there, or is another one in its new place.

    Args:
        folder: of the run, for messages.
        config: saved with the run.
        options: with the place where the pipeline is now.
        data: of the run.
        moved: whether that is another place than the saved one.

    Raises:
        ConfigError: with what to do.
    """
    place = _pretrained(options)
    if not place:
        return
    if not is_pipeline(place):
        raise ConfigError(
            f"{folder} was made from the pipeline of diffusers in {place}; there is none{'' if moved else ' any more'}"
            ": give its place, --pipeline PLACE or open_run(folder, pipeline=PLACE); onestep distill PLACE --resume "
            "continues the training"
        )
    known = config.get("teacher_weights")
    if moved and known is not None and weights_hash(pretrained_network(place, data, 1)) != known:
        raise ConfigError(
            f"{folder} was made from another pipeline of diffusers than the one in {place}: give the place of its own"
        )
