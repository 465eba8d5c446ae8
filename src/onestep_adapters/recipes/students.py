"""Students: how a network takes over a teacher's weights, at the start and stage by stage.

A teacher here is a velocity on the linear path with one time. A student with the same times gets all of it. One with
a second time gets what fits and ignores the second time at first, so that it starts as the constant average velocity
``a(z, t, s) = v(z, t)``: Euler's jump.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import TrainingState
from onestep_core.errors import ConfigError
from onestep_core.protocols import Velocity


def required_teacher(setting: Setting) -> nn.Module:
    """The setting's teacher.

    Raises:
        ConfigError: if there is none.
    """
    if setting.teacher is None:
        raise ConfigError("this recipe learns from a teacher and the setting has none: train it by a Run, which does")
    return setting.teacher


def teacher_velocity(setting: Setting, labels: Tensor | None) -> Velocity:
    """The teacher's velocity on the linear path, for one batch's classes."""
    return as_velocity(required_teacher(setting), label=labels)


@torch.no_grad()
def take_over(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's weights; where a matrix of the student is wider, the further columns become zero.

    Args:
        student: changed in place.
        teacher: a network of the same backbone and size, with as many times or fewer.

    Raises:
        ConfigError: if the two differ in anything else.

    Example:
        >>> wide, narrow = nn.Linear(3, 1), nn.Linear(2, 1)
        >>> take_over(wide, narrow)
        >>> bool((wide.weight[:, :2] == narrow.weight).all()), wide.weight[0, 2].item()
        (True, 0.0)
    """
    mine, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    fits = mine.keys() == theirs.keys() and all(
        own.shape[:1] == theirs[name].shape[:1]
        and own.shape[2:] == theirs[name].shape[2:]
        and own.shape[1:2] >= theirs[name].shape[1:2]
        for name, own in mine.items()
    )
    if not fits:
        raise ConfigError("a student starts from its teacher's weights: give both the same network")
    for name, own in mine.items():
        if own.ndim < 2:
            own.copy_(theirs[name])
        else:
            own.zero_()[:, : theirs[name].shape[1]] = theirs[name]


def start_from_teacher(setting: Setting, *, part: Callable[[nn.Module], nn.Module] = lambda module: module) -> None:
    """Before the first update: network and average become the teacher. A run that goes on is left as it is.

    Args:
        setting: of the run.
        part: what in the network takes over the weights; all of it by default.

    Raises:
        ConfigError: without a teacher, or with one of another network.
    """
    if setting.state.step == 0:
        for module in (setting.state.network, setting.state.ema):
            take_over(part(module), required_teacher(setting))


class Stage(nn.Module):
    """A student with the teacher of its stage, so that a checkpoint holds both. Called, it is the student."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The student's velocity."""
        return self.student(z, t, label=label)


def begin_stage(state: TrainingState, teacher: nn.Module) -> None:
    """Every copy becomes ``teacher``: what the stage learns from, and where it starts.

    Args:
        state: of a run whose network is a :class:`Stage`.
        teacher: a network like the student, which may be one of the copies.
    """
    source = copy.deepcopy(teacher)
    for module in (state.network, state.ema):
        for copied in (module.student, module.teacher):  # type: ignore[union-attr]
            take_over(copied, source)  # type: ignore[arg-type]
