"""Runs and their folders: a fresh one, one to look at, one to go on with."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import torch

from onestep_adapters.recipes import Recipe, TwoPlayers, find_method, open_problem
from onestep_adapters.recipes.distribution_matching import knows_a_score
from onestep_adapters.recipes.options import Network, check_names, from_dict
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.run import Run as Run
from onestep_adapters.recipes.setting import Remembering
from onestep_adapters.recipes.teachers import (
    given_teacher,
    learns_from_oracle,
    teacher_folder,
    weights_hash,
)
from onestep_adapters.training import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    new_opponent,
    new_state,
    read_run,
)
from onestep_core.errors import ConfigError, OneStepError


def start_run(method: str, data: str, recipe: Recipe | None = None) -> Run:
    """A fresh run.

    Args:
        method: name in the table.
        data: name of the problem.
        recipe: options; the table's for this data set by default.

    Raises:
        ConfigError: for an unknown name, of an option too, with the nearest ones.

    Example:
        >>> run = start_run("drifting", "8gaussians")
        >>> run.samples(5, generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([5, 2])
    """
    recipe = find_method(method).options(data) if recipe is None else recipe
    check_names(recipe)
    problem = open_problem(data)
    teacher = _teacher(problem, recipe)
    if teacher is not None and given_teacher(recipe):
        recipe = attrs.evolve(recipe, teacher=teacher.recipe)  # type: ignore[type-var]
    if recipe.teacher and not getattr(recipe, "any_teacher", False) and recipe.network != recipe.teacher.network:
        # Only a recipe that may do without the teacher's weights says whether it does; several steps may not.
        paired = hasattr(recipe, "any_teacher") and getattr(recipe, "generator_steps", 1) == 1
        alike = _alike(recipe.network, recipe.teacher.network)
        otherwise = "; or let pairs teach it (--preparation, --regression)" if paired else ""
        raise ConfigError(
            f"the student's network is {recipe.network} and the teacher's {recipe.teacher.network}: the student starts "
            f"from the teacher's weights, so give both the same ({alike}){otherwise}"
        )
    return _fresh(method, problem, recipe, teacher)


def _alike(student: Network, teacher: Network) -> str:
    """How the command line makes the two the same."""
    theirs = attrs.asdict(teacher)
    differing = {name: value for name, value in attrs.asdict(student).items() if value != theirs[name]}
    words = [f"--{name.replace('_', '-')} {theirs[name]}" for name in differing]
    others = [f"--teacher.network.{name.replace('_', '-')} {value}" for name, value in differing.items()]
    return f"{' '.join(words)}, or {' '.join(others)}"


def _fresh(method: str, problem: Problem, recipe: Recipe, teacher: Run | None) -> Run:
    data, options = problem.name, recipe.training
    network = recipe.build(problem, torch.Generator().manual_seed(options.seed))
    config = {"method": method, "data": data, "options": attrs.asdict(recipe)}  # type: ignore[arg-type]
    if teacher is not None and given_teacher(recipe):
        config["teacher_weights"] = weights_hash(teacher.state.ema)
    memory = recipe.memory(problem) if isinstance(recipe, Remembering) else None
    second = recipe.build_opponent(problem) if isinstance(recipe, TwoPlayers) else None
    state = new_state(
        method,
        network,
        learning_rate=options.learning_rate,
        seed=options.seed,
        config=config,
        memory=memory,
        opponent=None if second is None else new_opponent(second, learning_rate=options.learning_rate),
    )
    return Run(method, data, recipe, problem, state, teacher)


def _teacher(problem: Problem, recipe: Recipe) -> Run | None:
    if recipe.teacher is None or learns_from_oracle(recipe):
        return None
    chosen = given_teacher(recipe)
    if not chosen:
        folder = teacher_folder(problem.name, recipe.teacher)
        return resume_or_start(folder, "flow-matching", problem.name, recipe.teacher, resume=True)
    teacher = open_run(chosen)
    if teacher.method != "flow-matching":
        raise ConfigError(
            f"{chosen} is a run of {teacher.method!r}: a teacher predicts the velocity of the linear path, so give a "
            "run of 'flow-matching'"
        )
    if teacher.data != problem.name:
        raise ConfigError(
            f"{chosen} learnt {teacher.data}, samples of {teacher.problem.shape} in {teacher.problem.classes or 'no'} "
            f"classes; {problem.name} has samples of {problem.shape} in {problem.classes or 'no'} classes: give a "
            "teacher of the same data"
        )
    if not teacher.finished:
        raise ConfigError(
            f"{chosen} stopped at {teacher.state.step} of {teacher.recipe.training.steps} updates: finish the teacher "
            "first, by onestep train flow-matching --resume"
        )
    try:
        knows_a_score(teacher.recipe)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{chosen} is no teacher of scores, so choose another run: {error}") from error
    return teacher


def open_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``, at its latest checkpoint.

    Raises:
        CheckpointError: if the folder is not a run, or its checkpoint is damaged.
        ConfigError: if this version does not know the run's method or options.

    Example:
        >>> open_run("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_adapters.training.folder.CheckpointError: /nowhere does not exist...
    """
    method, data, recipe = options_of_run(folder)
    found, problem, teacher = read_run(folder), open_problem(data), None
    if found.step < recipe.training.steps:
        try:
            teacher = _teacher(problem, recipe)
        except OneStepError:
            # It can be sampled: only training on needs the teacher, and says so.
            teacher = None
    if teacher is not None and _of_another_teacher(found.config, teacher):
        teacher = None
    return _loaded(_fresh(method, problem, recipe, teacher), folder, found.config)


def _of_another_teacher(config: dict[str, Any], teacher: Run | None) -> bool:
    known = config.get("teacher_weights")
    return known is not None and teacher is not None and known != weights_hash(teacher.state.ema)


def options_of_run(folder: str | os.PathLike[str]) -> tuple[str, str, Recipe]:
    """Method, data and recipe of the run in ``folder``.

    Raises:
        CheckpointError: if the folder is not a run.
        ConfigError: if this version does not know the run's method or options.
    """
    config: dict[str, Any] = read_run(folder).config
    try:
        method, data, options = config["method"], config["data"], config["options"]
    except KeyError as error:
        raise CheckpointError(
            f"{folder} holds a checkpoint that no recipe wrote: its config lacks {error}; "
            "train with `onestep train`, or load it with onestep_adapters.training.load_checkpoint"
        ) from error
    return method, data, from_dict(type(find_method(method).options(data)), options)


def resume_or_start(folder: str | os.PathLike[str], method: str, data: str, recipe: Recipe, *, resume: bool) -> Run:
    """The run to train into ``folder``: a fresh one, or with ``resume`` the one that is there.

    A run from before an option existed counts as one with the default of the option's class.

    Raises:
        CheckpointError: if the folder holds a run and ``resume`` was not asked for, or one of other options, or is a
            file.
    """
    if Path(folder).is_file():
        raise CheckpointError(f"{folder} is a file: train into another --folder")
    there = Path(folder).exists() and latest_checkpoint(folder) is not None
    if not there:
        return start_run(method, data, recipe)
    if not resume:
        raise CheckpointError(
            f"{folder} already holds a run: continue it with --resume, or train into another --folder"
        )
    found = read_run(folder)
    config = _completed(found.config)
    # What is complete learns nothing more: its teacher may be gone.
    complete = found.step >= recipe.training.steps
    run = _fresh(method, open_problem(data), recipe, None) if complete else start_run(method, data, recipe)
    if _of_another_teacher(config, run.teacher):
        raise CheckpointError(
            f"{folder} learnt from another teacher than the one that is in {given_teacher(recipe)} now: put that one "
            "back, or train into another --folder"
        )
    if _asked(run.state.config) != _asked(config):
        same = (found.method, found.config.get("data")) == (method, data)
        told = f"; {_differences(run.state.config, config)}" if same else ""
        raise CheckpointError(
            f"{folder} holds {found.method} on {found.config.get('data')}, and {method} on {data} was asked for{told}: "
            "give the options that the run has, or train into another --folder"
        )
    return _loaded(run, folder, found.config)


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of what was asked for, as JSON keeps it."""
    return json.loads(json.dumps({name: config.get(name) for name in ("method", "data", "options")}))


def _loaded(run: Run, folder: str | os.PathLike[str], config: dict[str, Any]) -> Run:
    """The run at its latest checkpoint; its config stays as it was saved, whatever options have come since."""
    run.state.config = config
    load_checkpoint(folder, run.state)
    return run


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with defaults for the options it lacks; as it is, where this version cannot read it."""
    try:
        recipe = from_dict(type(find_method(config["method"]).options(config["data"])), config["options"])
    except (KeyError, ConfigError):
        return config
    return {**config, "options": json.loads(json.dumps(attrs.asdict(recipe)))}


def _differences(given: dict[str, Any], there: dict[str, Any]) -> str:
    """Options that two runs do not share, by their dotted names."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    one, other = (flat(json.loads(json.dumps(config.get("options") or {}))) for config in (given, there))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    told = [f"{name} is {other.get(name, 'absent')} there, {one.get(name, 'absent')} here" for name in names]
    return "; ".join(told) or "the options are the same"
