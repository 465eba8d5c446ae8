"""Students: copy a teacher's weights into a network, before the first update and at every stage.

A teacher is a velocity on the linear path with one time. A student with the same times gets all of its weights. One
with a second time gets the weights that fit; the columns of the second time are zero, so that the student starts as the
constant average velocity ``a(z, t, s) = v(z, t)``, which is Euler's step.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from onestep_adapters.methods.method import Context
from onestep_adapters.training import Companion, TrainingState, not_trained
from onestep_core.errors import ConfigError

STAGE_TEACHER = "stage_teacher"
"""Name of the companion that is the teacher of a stage."""


@torch.no_grad()
def take_over(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's weights; where a matrix of the student is wider, its further columns become zero.

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
    mine, theirs = _parameters(student), _parameters(teacher)
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


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name; of a pretrained model without those of a second time, which starts without effect."""
    pretrained = getattr(network, "pretrained_parameters", None)
    return dict(network.named_parameters()) if pretrained is None else pretrained()


def start_from_teacher(context: Context) -> None:
    """Before the first update, copy the teacher into the network and its average. A resumed run is not changed.

    Raises:
        ConfigError: without a teacher, or with one of another network.
    """
    if context.state.step == 0:
        module = context.required_teacher().required_module()
        take_over(context.state.network, module)
        take_over(context.state.ema, module)


def stage_companion(network: nn.Module) -> Mapping[str, Companion]:
    """The teacher of a stage: a copy of the network that is saved with the run and never trained."""
    return {STAGE_TEACHER: not_trained(copy.deepcopy(network))}


def begin_stage(state: TrainingState, stage_teacher: nn.Module, source: nn.Module) -> None:
    """Start a stage: copy ``source`` into its teacher, the network and the average.

    Args:
        state: of the run.
        stage_teacher: the companion that the stage learns from.
        source: a network of the same architecture; it may be the average itself.
    """
    source = copy.deepcopy(source)
    for module in (state.network, stage_teacher, state.ema):
        take_over(module, source)
