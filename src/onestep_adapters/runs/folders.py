"""Runs and their folders: start a run, open one, resume one."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch

from onestep_adapters.data import DATASETS, Dataset, open_dataset
from onestep_adapters.devices import choose_device
from onestep_adapters.methods import (
    METHODS,
    FlowMatching,
    Method,
    Network,
    Teacher,
    exact_teacher,
    find_preset,
    network_teacher,
)
from onestep_adapters.methods.options import check_names
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.runs.configs import asked, completed, config_of, differences, options_in
from onestep_adapters.runs.run import Run
from onestep_adapters.runs.teachers import cache_folder, cache_key, teacher_folder, weights_hash
from onestep_adapters.training import CheckpointError, latest_checkpoint, load_checkpoint, new_state, read_run
from onestep_core.errors import ConfigError, OneStepError

BASELINE = "flow-matching"
"""Name of the method that trains teachers."""


class _Resolved(NamedTuple):
    """A teacher, the method's options including those of the teacher, and the run that trains the teacher."""

    teacher: Teacher | None
    options: Method
    run: Run | None = None
    folder: Path | None = None
    weights: str = ""
    """Hash of the weights of a teacher that the caller gave (object or folder); saved in the run's configuration."""


def start_run(
    name: str,
    data: str | Dataset,
    options: Method | None = None,
    *,
    teacher: Teacher | Run | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """Make a new run.

    Args:
        name: name of the method, as on the command line.
        data: name of a data set, or an object of your own with the members of :class:`~onestep_adapters.data.Dataset`.
        options: options of the method; by default the preset for this kind of data.
        teacher: a teacher object, used instead of the teacher that the options describe; or a run with exactly the
            teacher's options, which is trained first if it is not finished.
        device: device of the network and of training.

    Raises:
        ConfigError: if a name is unknown (the message lists the most similar names), or the teacher does not fit.

    Example:
        >>> run = start_run("drifting", "8gaussians")
        >>> run.samples(5, generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([5, 2])
    """
    data = _dataset(data)
    options = find_preset(name).options(data) if options is None else options
    _check_kind(name, options)
    check_names(options)
    return _fresh(name, data, _resolve(options, data, teacher, device), device)


def open_run(
    folder: str | os.PathLike[str],
    *,
    method: type[Method] | None = None,
    data: Dataset | None = None,
    teacher: Teacher | Run | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """Load the run in ``folder`` from its latest checkpoint.

    Args:
        folder: folder of the run.
        method: the class of the options, if the run trained a method of your own.
        data: the data set, if the run used a data set object of your own.
        teacher: the teacher, if the run used a teacher object of your own. Needed only for further training.
        device: device of the network and of training.

    Raises:
        CheckpointError: if the folder is not a run, or its checkpoint is damaged.
        ConfigError: if this version does not know the run's method, data or options.

    Example:
        >>> open_run("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_adapters.training.folder.CheckpointError: /nowhere does not exist...
    """
    name, data_name, options = options_of_run(folder, method)
    found, data = read_run(folder), _same_data(folder, data_name, data)
    resolved, missing = _Resolved(None, options), ""
    finished = found.step >= options.training.steps
    if not finished and _learned_from_object(found.config, options, teacher):
        missing = "it was trained with a teacher object: give the same one, open_run(folder, teacher=...)"
    elif not finished:
        try:
            resolved = _resolve(options, data, teacher, device)
            if _other_weights(found.config, resolved):
                given = "it learned from another teacher than the object given"
                there = f"{_place(options, data)} holds another teacher now"
                resolved, missing = _Resolved(None, options), there if teacher is None else given
        except OneStepError as error:
            # Sampling works without the teacher. Only further training needs it, and then raises this message.
            missing = f"its teacher is not in {_place(options, data)} any more, or cannot be read ({error})"
    run = _loaded(_fresh(name, data, resolved, device), folder, found.config)
    run.missing_teacher = missing
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
    device: torch.device | str = "cpu",
) -> Run:
    """The run to train into ``folder``: a new run, or with ``resume=True`` the saved run if there is one.

    If the saved configuration lacks an option, the option has its default value.

    Raises:
        CheckpointError: if the folder holds a run and ``resume`` is false; if the saved run has other options; or if
            ``folder`` is a file.
    """
    if Path(folder).is_file():
        raise CheckpointError(f"{folder} is a file: choose another --folder")
    data = _dataset(data)
    if not (Path(folder).exists() and latest_checkpoint(folder) is not None):
        return start_run(name, data, options, teacher=teacher, device=device)
    if not resume:
        raise CheckpointError(f"{folder} already holds a run: continue it with --resume, or choose another --folder")
    found = read_run(folder)
    config = completed(found.config)
    check_names(options)
    # A finished run is not trained further, so it does not need its teacher.
    finished = found.step >= options.training.steps
    if not finished and _learned_from_object(config, options, teacher):
        raise CheckpointError(f"{folder} was trained with a teacher object: give the same one, teacher=...")
    resolved = _Resolved(None, options) if finished else _resolve(options, data, teacher, device)
    if _other_weights(config, resolved):
        raise CheckpointError(
            f"{folder} was trained with another teacher than the one that is now in {_place(options, data)}: put that "
            "one back, or choose another --folder"
        )
    run = _fresh(name, data, resolved, device)
    if asked(run.state.config) != asked(config):
        same = (found.method, found.config.get("data")) == (name, data.name)
        told = f"; {differences(run.state.config, config)}" if same else ""
        raise CheckpointError(
            f"{folder} holds {found.method} on {found.config.get('data')}, and you want {name} on {data.name}{told}: "
            "use the options of the saved run, or choose another --folder"
        )
    return _loaded(run, folder, found.config)


def _dataset(data: str | Dataset) -> Dataset:
    """The data set of a name, or the object itself.

    Raises:
        ConfigError: for what is no data set, or a name that cannot be part of a file name.
    """
    if isinstance(data, str):
        return open_dataset(data)
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"a {type(data).__name__} as data: expected the name of a data set, or an object with the members of "
            "onestep_adapters.data.Dataset, such as ArrayDataset(name, Batch(data, labels))"
        )
    if not re.fullmatch(r"\w[\w .+-]*", data.name):
        raise ConfigError(
            f"a data set is called {data.name!r}: expected letters, digits, spaces and . _ + - (a "
            "folder of its teachers has that name)"
        )
    return data


def _check_kind(name: str, options: Method) -> None:
    """Refuse options of another method than the name says; a name of your own may have any options."""
    if not isinstance(options, Method):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(options).__name__} as options: expected those of a method, such as MeanFlow()")
    expected = type(METHODS[name].images) if name in METHODS else Method
    if not isinstance(options, expected):
        raise ConfigError(
            f"options of {type(options).__name__} for the method {name!r}: expected those of {expected.__name__}, or "
            "another name"
        )


def _fresh(name: str, data: Dataset, resolved: _Resolved, device: torch.device | str) -> Run:
    options, training = resolved.options, resolved.options.training
    device = choose_device(str(device))
    generator = torch.Generator().manual_seed(training.seed)
    network = options.build(data, generator)
    companions = options.companions(data, network, generator)
    for module in (network, *(companion.module for companion in companions.values())):
        module.to(device)
    config = config_of(name, data.name, options)
    if resolved.weights:
        config["teacher_weights"] = resolved.weights
    state = new_state(
        name,
        network,
        learning_rate=training.learning_rate,
        seed=training.seed,
        config=config,
        companions=companions,
    )
    cache = None if resolved.teacher is None else cache_folder(resolved.teacher.key)
    return Run(name, options, data, state, resolved.teacher, resolved.run, resolved.folder, cache)


def _loaded(run: Run, folder: str | os.PathLike[str], config: dict[str, Any]) -> Run:
    """Load the latest checkpoint. The config stays as saved, even if this version has more options."""
    run.state.config = config
    load_checkpoint(folder, run.state)
    return run


def _resolve(options: Method, data: Dataset, given: Teacher | Run | None, device: torch.device | str) -> _Resolved:
    """Find the teacher of a run; the rules are in :mod:`onestep_adapters.runs.teachers`."""
    chosen = options.teacher_from
    if given is not None and not isinstance(given, Teacher | Run):
        raise ConfigError(
            f"a {type(given).__name__} as teacher: expected network_teacher(module), exact_teacher(data) or a run of "
            f"{BASELINE!r}"
        )
    if isinstance(given, Run):
        if given.data.name != data.name or given.data.shape != data.shape:
            raise ConfigError(
                f"the teacher's run is on {given.data.name}, samples of {given.data.shape}; the student's data are "
                f"{data.name}, samples of {data.shape}: give a teacher of the same data"
            )
        if given.options != options.teacher:
            raise ConfigError("the run given as teacher has other options than options.teacher: give both the same")
        return _checked(_Resolved(_teacher_of(given, given.state.config), options, given))
    if given is not None:
        options.check_teacher(given)
        weights = "an object" if given.module is None else weights_hash(given.module)
        return _checked(_Resolved(given, _with_teacher(options, None), weights=weights))
    if chosen == EXACT:
        return _checked(_Resolved(exact_teacher(data), _with_teacher(options, None)))
    if chosen:
        run = _finished_teacher(chosen, data, device)
        weights = weights_hash(run.state.ema)
        teacher = _teacher_of(run, {**run.state.config, "weights": weights})
        try:
            options.check_teacher(teacher)
        except ConfigError as error:
            raise ConfigError(f"{chosen} cannot be the teacher, so choose another run: {error}") from error
        return _checked(_Resolved(teacher, attrs.evolve(options, teacher=run.options), weights=weights))  # type: ignore[call-arg]
    if options.teacher is None:
        return _Resolved(None, options)
    folder = teacher_folder(data.name, attrs.asdict(options.teacher))
    run = resume_or_start(folder, BASELINE, data, options.teacher, resume=True, device=device)
    return _checked(_Resolved(_teacher_of(run, run.state.config), options, run, folder))


def _with_teacher(options: Method, teacher: FlowMatching | None) -> Method:
    """Set the option ``teacher`` of a method that can be trained with or without a teacher."""
    if options.teacher is not None:
        return options
    if "teacher" not in attrs.fields_dict(type(options)):
        raise ConfigError(f"{type(options).__name__} learns from data alone: leave teacher= out")
    return attrs.evolve(options, teacher=teacher or FlowMatching(network=options.network))  # type: ignore[call-arg]


def _teacher_of(run: Run, config: dict[str, Any]) -> Teacher:
    coupling = run.options.coupling  # type: ignore[attr-defined]
    return network_teacher(run.state.ema, coupling=coupling, key=cache_key(config))


def _finished_teacher(folder: str, data: Dataset, device: torch.device | str) -> Run:
    _, data_name, _ = options_of_run(folder)
    found = open_run(folder, data=data if data_name == data.name else None, device=device)
    if found.name != BASELINE:
        raise ConfigError(
            f"{folder} is a run of {found.name!r}: a teacher has to predict the velocity of the linear path, so give a "
            f"run of {BASELINE!r}"
        )
    if found.data.name != data.name:
        raise ConfigError(
            f"{folder} learned {found.data.name}, with samples of shape {found.data.shape} and "
            f"{found.data.classes or 'no'} classes; {data.name} has samples of shape {data.shape} and "
            f"{data.classes or 'no'} classes: give a teacher that was trained on the same data"
        )
    if not found.finished:
        raise ConfigError(
            f"{folder} stopped at {found.state.step} of {found.options.training.steps} updates: finish the teacher "
            f"first, with onestep train {BASELINE} --folder {folder} --resume"
        )
    return found


def _checked(resolved: _Resolved) -> _Resolved:
    """Before training, check that the student can start from the teacher's weights, if it has to."""
    options, teacher = resolved.options, resolved.teacher
    if teacher is None or not options.starts_from_teacher:
        return resolved
    if teacher.module is None:
        teacher.required_module()
    if options.network != options.teacher.network:
        raise ConfigError(
            f"the student's network is {options.network} and the teacher's {options.teacher.network}: the student "
            "starts from the teacher's weights, so give both the same "
            f"({_alike(options.network, options.teacher.network)})"
        )
    return resolved


def _alike(student: Network, teacher: Network) -> str:
    """The command-line options that make the two networks the same."""
    theirs = attrs.asdict(teacher)
    differing = {name: value for name, value in attrs.asdict(student).items() if value != theirs[name]}
    words = [f"--{name.replace('_', '-')} {theirs[name]}" for name in differing]
    others = [f"--teacher.network.{name.replace('_', '-')} {value}" for name, value in differing.items()]
    return f"{' '.join(words)}, or {' '.join(others)}"


def _learned_from_object(config: dict[str, Any], options: Method, given: Teacher | Run | None) -> bool:
    """Whether the run was trained with a teacher object and the caller did not give it again."""
    return given is None and not options.teacher_from and "teacher_weights" in config


def _other_weights(config: dict[str, Any], resolved: _Resolved) -> bool:
    known = config.get("teacher_weights")
    return known is not None and resolved.teacher is not None and known != resolved.weights


def _place(options: Method, data: Dataset) -> str:
    """The place where the teacher of a run is expected."""
    if options.teacher_from:
        return options.teacher_from
    return "its folder" if options.teacher is None else str(teacher_folder(data.name, attrs.asdict(options.teacher)))


def _same_data(folder: str | os.PathLike[str], name: str, data: Dataset | None) -> Dataset:
    if data is None and name not in DATASETS:
        raise ConfigError(f"{folder} is a run on {name!r}, an object of your own: give it, open_run(folder, data=...)")
    if data is None:
        return open_dataset(name)
    if data.name != name:
        raise ConfigError(
            f"{folder} is a run on {name!r}, the data set given is {data.name!r}: give the data set of the run"
        )
    return data
