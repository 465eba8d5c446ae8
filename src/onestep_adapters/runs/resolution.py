"""The teacher of a run: found once, checked against data and options, and handed down as a value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs
from torch import nn

from onestep_adapters.data import Dataset
from onestep_adapters.files import is_pipeline
from onestep_adapters.methods import FlowMatching, Method, Network, Teacher, exact_teacher, network_teacher
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.runs.run import Run
from onestep_adapters.runs.teachers import cache_key, teacher_folder, weights_hash
from onestep_core.errors import ConfigError

BASELINE = "flow-matching"
"""Name of the method that trains teachers."""


class Resolved(NamedTuple):
    """A teacher, the method's options including those of the teacher, and the run that trains the teacher."""

    teacher: Teacher | None
    options: Method
    run: Run | None = None
    folder: Path | None = None
    weights: str = ""
    """Hash of the weights of a teacher that the caller gave (object or folder); saved in the run's configuration."""


def resolve(
    options: Method,
    data: Dataset,
    given: Teacher | Run | None,
    *,
    opened: Callable[[str], Run],
    started: Callable[[Path, Method], Run],
    pretrained: Callable[[str], nn.Module],
) -> Resolved:
    """Find the teacher of a run; the rules are in :mod:`onestep_adapters.runs.teachers`.

    Args:
        options: options of the method.
        data: the data set.
        given: a teacher, or a run that trains it, from the caller.
        opened: opens the run in a folder.
        started: starts or resumes the run of flow matching in a folder.
        pretrained: reads the model of a pipeline of diffusers as a velocity network.

    Raises:
        ConfigError: if the teacher does not fit.
    """
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
        return _checked(Resolved(_teacher_of(given, given.state.config), options, given))
    if given is not None:
        options.check_teacher(given)
        weights = "an object" if given.module is None else weights_hash(given.module)
        return _checked(Resolved(given, _with_teacher(options, None), weights=weights))
    if chosen == EXACT:
        return _checked(Resolved(exact_teacher(data), _with_teacher(options, None)))
    if chosen and is_pipeline(chosen):
        network = Network("pretrained", pretrained=chosen)
        module = pretrained(chosen)
        weights = weights_hash(module)
        teacher = network_teacher(module, key=f"{data.name}-{weights}")
        return _checked(
            Resolved(teacher, attrs.evolve(options, teacher=FlowMatching(network=network)), weights=weights)
        )  # type: ignore[call-arg]
    if chosen:
        run = _finished(opened(chosen), chosen, data)
        weights = weights_hash(run.state.ema)
        teacher = _teacher_of(run, {**run.state.config, "weights": weights})
        try:
            options.check_teacher(teacher)
        except ConfigError as error:
            raise ConfigError(f"{chosen} cannot be the teacher, so choose another run: {error}") from error
        return _checked(Resolved(teacher, attrs.evolve(options, teacher=run.options), weights=weights))  # type: ignore[call-arg]
    if options.teacher is None:
        return Resolved(None, options)
    folder = teacher_folder(data.name, attrs.asdict(options.teacher))
    run = started(folder, options.teacher)
    return _checked(Resolved(_teacher_of(run, run.state.config), options, run, folder))


def learned_from_object(config: dict[str, Any], options: Method, given: Teacher | Run | None) -> bool:
    """Whether the run was trained with a teacher object and the caller did not give it again."""
    return given is None and not options.teacher_from and "teacher_weights" in config


def other_weights(config: dict[str, Any], resolved: Resolved) -> bool:
    """Whether the run was trained with other weights of the teacher than those found now."""
    known = config.get("teacher_weights")
    return known is not None and resolved.teacher is not None and known != resolved.weights


def teacher_place(options: Method, data: Dataset) -> str:
    """The place where the teacher of a run is expected."""
    if options.teacher_from:
        return options.teacher_from
    return "its folder" if options.teacher is None else str(teacher_folder(data.name, attrs.asdict(options.teacher)))


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


def _finished(found: Run, folder: str, data: Dataset) -> Run:
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


def _checked(resolved: Resolved) -> Resolved:
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
