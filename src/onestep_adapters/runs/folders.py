"""Runs and their folders: start a run, open one, resume one."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.devices import choose_device
from onestep_adapters.encoders import Encoder
from onestep_adapters.files import one_writer, require_path
from onestep_adapters.methods import ENCODERS, METHODS, Method, Teacher, find_preset
from onestep_adapters.methods.options import check_names, pretrained_network
from onestep_adapters.runs.configs import asked, completed, config_of, differences, extended, options_in
from onestep_adapters.runs.datasets import data_of_run, dataset_of
from onestep_adapters.runs.encoders import FoundEncoder, find_encoder, named_encoder, other_encoder
from onestep_adapters.runs.places import check_pipeline, pipeline_of, with_pipeline
from onestep_adapters.runs.resolution import (
    BASELINE,
    Resolved,
    learned_from_object,
    other_weights,
    resolve,
    teacher_place,
)
from onestep_adapters.runs.run import Run
from onestep_adapters.runs.teachers import cache_folder
from onestep_adapters.tracking import Track, untracked
from onestep_adapters.training import CheckpointError, latest_checkpoint, load_checkpoint, new_state, read_run
from onestep_adapters.training.folder import LOCK
from onestep_core.errors import ConfigError, OneStepError


def start_run(
    name: str,
    data: str | Dataset,
    options: Method | None = None,
    *,
    teacher: Teacher | Run | None = None,
    encoder: Encoder | Run | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """Make a new run.

    Args:
        name: name of the method, as on the command line.
        data: name of a data set, or an object of your own with the members of :class:`~onestep_adapters.data.Dataset`.
        options: options of the method; by default the preset for this kind of data.
        teacher: a teacher object, used instead of the teacher that the options describe; or a run with exactly the
            teacher's options, which is trained first if it is not finished.
        encoder: an encoder of your own, or a finished run that trained one, used instead of the one that the options
            name; the options give it a name of yours.
        device: device of the network and of training.

    Raises:
        ConfigError: if a name is unknown (the message lists the most similar names), or teacher or encoder do not fit.

    Example:
        >>> run = start_run("drifting", "8gaussians")
        >>> run.samples(5, generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([5, 2])
    """
    data = dataset_of(data)
    options = find_preset(name).options(data) if options is None else options
    _check_kind(name, options)
    check_names(options)
    found = _encoder(options, data, encoder, device)
    return _fresh(name, data, _resolve(options, data, teacher, device), found, device)


def open_run(
    folder: str | os.PathLike[str],
    *,
    method: type[Method] | None = None,
    data: Dataset | str | None = None,
    teacher: Teacher | Run | None = None,
    encoder: Encoder | Run | None = None,
    pipeline: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    track: Track = untracked,
) -> Run:
    """Load the run in ``folder`` from its latest checkpoint.

    Args:
        folder: folder of the run.
        method: the class of the options, if the run trained a method of your own.
        data: the data set, if the run used a data set object of your own; or the new place of the images,
            ``"folder:PATH"``, if they were moved.
        teacher: the teacher, if the run used a teacher object of your own. Needed only for further training.
        encoder: the encoder, if the run used an object of your own; likewise.
        pipeline: the new place of the pipeline of diffusers that the run was distilled from, if it was moved.
        device: device of the network and of training.
        track: shows the progress if images have to be read again.

    Raises:
        CheckpointError: if the folder is not a run, or its checkpoint is damaged.
        ConfigError: if this version does not know the run's method, data or options; if its images are not in their
            place any more, or are others; likewise for the pipeline that it was distilled from.

    Example:
        >>> open_run("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_adapters.training.folder.CheckpointError: /nowhere does not exist...
    """
    name, data_name, options = options_of_run(folder, method)
    found = read_run(folder)
    data = data_of_run(folder, data_name, data, found.config.get("source"), track=track)
    if pipeline is not None:
        options = with_pipeline(options, pipeline)
    check_pipeline(folder, found.config, options, data, moved=pipeline is not None)
    resolved, missing = Resolved(None, options), ""
    finished = found.step >= options.training.steps
    if not finished and learned_from_object(found.config, options, teacher):
        missing = "it was trained with a teacher object: give the same one, open_run(folder, teacher=...)"
    elif not finished:
        try:
            resolved = _resolve(options, data, teacher, device)
            if other_weights(found.config, resolved):
                given = "it learned from another teacher than the object given"
                there = f"{teacher_place(options, data)} holds another teacher now"
                resolved, missing = Resolved(None, options), there if teacher is None else given
        except OneStepError as error:
            # Sampling works without the teacher. Only further training needs it, and then raises this message.
            missing = f"its teacher is not in {teacher_place(options, data)} any more, or cannot be read ({error})"
    encoding, unknown = FoundEncoder(), ""
    if not finished:
        try:
            encoding = _encoder(options, data, encoder, device)
            if other_encoder(found.config, encoding):
                encoding = FoundEncoder()
                unknown = f"it was trained with another encoder than {options.encoder_from!r} is now"
        except OneStepError as error:
            unknown = f"its encoder is missing ({error})"
    run = _loaded(_fresh(name, data, resolved, encoding, device), folder, found.config)
    run.missing_teacher, run.missing_encoder = missing, unknown
    return run


def options_of_run(folder: str | os.PathLike[str], method: type[Method] | None = None) -> tuple[str, str, Method]:
    """Name of the method, name of the data set, and options of the run in ``folder``.

    Raises:
        CheckpointError: if the folder is not a run.
        ConfigError: if this version does not know the run's method or options.
    """
    config: dict[str, Any] = read_run(folder).config
    try:
        return config["method"], config["data"], options_in(config, method)
    except KeyError as error:
        raise CheckpointError(
            f"{folder} holds a checkpoint that was not written by a method of this library: its config lacks {error}; "
            "train with `onestep train`, or load it with onestep_adapters.training.load_checkpoint"
        ) from error


def resume_or_start(
    folder: str | os.PathLike[str],
    name: str,
    data: str | Dataset,
    options: Method,
    *,
    resume: bool,
    teacher: Teacher | Run | None = None,
    encoder: Encoder | Run | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """The run to train into ``folder``: a new run, or with ``resume=True`` the saved run if there is one.

    If the saved configuration lacks an option, the option has its default value. A pipeline of diffusers may have
    moved: the options name its new place. Options with more updates extend the run, also a finished one: it goes on as
    if it had been begun with that number, so the learning rate rises again to where it then would be.

    Raises:
        CheckpointError: if the folder holds a run and ``resume`` is false; if the saved run has other options, or its
            method cannot be extended; or if ``folder`` is a file.
        LockedError: if ``resume`` is false and another process trains into the folder.
    """
    folder = require_path("folder", folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: choose another --folder")
    data = dataset_of(data)
    if not (folder.exists() and latest_checkpoint(folder) is not None):
        return start_run(name, data, options, teacher=teacher, encoder=encoder, device=device)
    if not resume:
        # Where a process still trains, it is named: to resume there would be refused too.
        with suppress(OSError), one_writer(folder / LOCK):
            pass
        raise CheckpointError(f"{folder} already holds a run: continue it with --resume, or choose another --folder")
    found = read_run(folder)
    saved = completed(found.config)
    config = _moved(saved, options)
    check_names(options)
    check_pipeline(folder, found.config, options, data, moved=config != saved)
    config, longer = _extended(folder, config, options)
    # A finished run is not trained further, so it does not need its teacher.
    finished = found.step >= options.training.steps
    if not finished and learned_from_object(config, options, teacher):
        raise CheckpointError(f"{folder} was trained with a teacher object: give the same one, teacher=...")
    resolved = Resolved(None, options) if finished else _resolve(options, data, teacher, device)
    if other_weights(config, resolved):
        raise CheckpointError(
            f"{folder} was trained with another teacher than the one that is now in "
            f"{teacher_place(options, data)}: put that one back, or choose another --folder"
        )
    encoding = FoundEncoder() if finished else _encoder(options, data, encoder, device)
    if other_encoder(config, encoding):
        raise CheckpointError(
            f"{folder} was trained with another encoder than {options.encoder_from!r} is now: put that one back, or "
            "choose another --folder"
        )
    run = _fresh(name, data, resolved, encoding, device)
    if asked(run.state.config) != asked(config):
        if (found.method, found.config.get("data")) == (name, data.name):
            told = f"{folder} holds this training with other options: {differences(run.state.config, config)}"
        else:
            told = f"{folder} holds {found.method} on {found.config.get('data')}, and you want {name} on {data.name}"
        raise CheckpointError(f"{told}: use the options of the saved run, or choose another --folder")
    run = _loaded(run, folder, found.config)
    if longer:
        run.state.replaced = run.state.config
        run.state.config = extended(run.state.config, options.training.steps)
    return run


def _check_kind(name: str, options: Method) -> None:
    """Refuse options of another method than the name says; a name of your own may have any options."""
    if not isinstance(options, Method):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(options).__name__} as options: expected those of a method, such as MeanFlow()")
    known = {**METHODS, **ENCODERS}
    expected = type(known[name].images) if name in known else Method
    if not isinstance(options, expected):
        raise ConfigError(
            f"options of {type(options).__name__} for the method {name!r}: expected those of {expected.__name__}, or "
            "another name"
        )


def _fresh(name: str, data: Dataset, resolved: Resolved, encoding: FoundEncoder, device: torch.device | str) -> Run:
    options = encoding.started(resolved.options)
    training = options.training
    device = choose_device(str(device))
    generator = torch.Generator().manual_seed(training.seed)
    network = options.build(data, generator)
    companions = options.companions(data, network, generator)
    for module in (network, *(companion.module for companion in companions.values())):
        module.to(device)
    config = config_of(name, data, options)
    if resolved.weights:
        config["teacher_weights"] = resolved.weights
    if encoding.weights:
        config["encoder_weights"] = encoding.weights
    state = new_state(
        name,
        network,
        learning_rate=training.learning_rate,
        seed=training.seed,
        config=config,
        companions=companions,
    )
    cache = encoding.cache if resolved.teacher is None else cache_folder(resolved.teacher.key)
    return Run(
        name,
        options,
        data,
        state,
        resolved.teacher,
        teacher_run=resolved.run,
        teacher_folder=resolved.folder,
        cache=cache,
        encoder=encoding.encoder,
    )


def _moved(config: dict[str, Any], options: Method) -> dict[str, Any]:
    """The saved configuration with the pipeline of diffusers where the options say that it is."""
    try:
        saved = options_in(config, type(options))
        new = pipeline_of(options)
        return config if not new else {**config, "options": attrs.asdict(with_pipeline(saved, new))}
    except (KeyError, ConfigError):
        return config


def _extended(folder: Path, config: dict[str, Any], options: Method) -> tuple[dict[str, Any], bool]:
    """The saved configuration with the options' number of updates, if that is larger; and whether it is."""
    try:
        steps = config["options"]["training"]["steps"]
    except (KeyError, TypeError):
        return config, False
    if not isinstance(steps, int) or options.training.steps <= steps:
        return config, False
    if not options.extends:
        raise CheckpointError(
            f"{folder} holds {config['method']} of {steps:,} updates, whose stages depend on this number: it cannot go "
            f"on to {options.training.steps:,}; train with the new number into another --folder"
        )
    return extended(config, options.training.steps), True


def _loaded(run: Run, folder: str | os.PathLike[str], config: dict[str, Any]) -> Run:
    """Load the latest checkpoint. The config stays as saved, even if this version has more options."""
    run.state.config = config
    load_checkpoint(folder, run.state)
    return run


def _resolve(options: Method, data: Dataset, given: Teacher | Run | None, device: torch.device | str) -> Resolved:
    """Find the teacher; a teacher that is not trained yet gets its run."""

    def started(folder: Path, teacher: Method) -> Run:
        return resume_or_start(folder, BASELINE, data, teacher, resume=True, device=device)

    def pretrained(folder: str) -> nn.Module:
        return pretrained_network(folder, data, 1).to(choose_device(str(device))).eval()

    opened = partial(_opened, data=data, device=device)
    return resolve(options, data, given, opened=opened, started=started, pretrained=pretrained)


def _encoder(options: Method, data: Dataset, given: Encoder | Run | None, device: torch.device | str) -> FoundEncoder:
    """Find the encoder of the options."""
    return find_encoder(options, data, given, opened=partial(_opened, data=data, device=device))


def open_encoder(name: str, data: Dataset, device: torch.device | str = "cpu") -> FoundEncoder:
    """The encoder of a name, a pretrained one or the folder of a run that trained one, and a hash of its weights.

    Args:
        name: the name or the folder.
        data: the images that it is used on.
        device: of a run's network.

    Raises:
        ConfigError: if there is none, its training is not finished, or it does not fit the data.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> open_encoder("efficientnet-lite0", open_dataset("digits")).encoder.channels
        3
    """
    return named_encoder(name, data, opened=partial(_opened, data=data, device=device))


def _opened(folder: str, *, data: Dataset, device: torch.device | str) -> Run:
    """The run in a folder, with this data set if it was trained on it."""
    _, there, _ = options_of_run(folder)
    return open_run(folder, data=data if there == data.name else None, device=device)
