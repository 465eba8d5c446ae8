"""Companions: further modules of a run, saved together with its network.

There are three kinds, by how they are trained:

    trained_in_turns    by a loss and an optimiser of its own, before each update of the network (a fake score)
    trained_jointly     in the network's own update, by the same loss and optimiser (a discriminator)
    not_trained         not at all; it is only saved and loaded (the teacher of a stage, a queue of samples)

Only the network has a moving average (EMA).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
from torch import nn
from torch.optim import AdamW, Optimizer

from onestep_core.errors import ConfigError


@attrs.define(eq=False)
class Companion:
    """A further module of a run, saved together with the network.

    Made by :func:`trained_in_turns`, :func:`trained_jointly` or :func:`not_trained`.

    Attributes:
        module: any module.
        optimizer: optimiser of the module's parameters if it is trained in turns, else ``None``.
        joint: whether the optimiser of the network updates this module too.
    """

    module: nn.Module
    optimizer: Optimizer | None = None
    joint: bool = False

    @property
    def trained(self) -> Literal["in turns", "jointly", "never"]:
        """How the module is trained."""
        if self.optimizer is not None:
            return "in turns"
        return "jointly" if self.joint else "never"


def trained_in_turns(
    module: nn.Module,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> Companion:
    """A companion with an AdamW of its own, updated by a :class:`~onestep_adapters.training.Turn` of ``train``.

    Args:
        module: trained in place.
        learning_rate: positive; the schedule of the turn replaces it.
        betas: AdamW's, each in [0, 1).
        weight_decay: AdamW's, per unit of learning rate, not negative.

    Raises:
        ConfigError: for a number out of range, or a module without a parameter that takes a gradient.

    Example:
        >>> fake_score = trained_in_turns(nn.Linear(2, 2), learning_rate=1e-4, betas=(0.0, 0.999))
        >>> fake_score.trained, fake_score.optimizer.defaults["betas"]
        ('in turns', (0.0, 0.999))
    """
    return Companion(module, adamw([module], learning_rate, betas, weight_decay))


def trained_jointly(module: nn.Module) -> Companion:
    """A companion whose parameters are updated with the network's: one loss, one optimiser, one gradient norm.

    Args:
        module: trained in place.

    Raises:
        ConfigError: if no parameter of the module takes a gradient.

    Example:
        >>> trained_jointly(nn.Linear(2, 1)).trained
        'jointly'
    """
    trainable(module)
    return Companion(module, joint=True)


def not_trained(module: nn.Module) -> Companion:
    """A companion that is saved and loaded with the run. Its parameters, if it has any, take no gradient from now on.

    Args:
        module: ``requires_grad_(False)`` is called on it; buffers are left alone.

    Example:
        >>> teacher = not_trained(nn.Linear(2, 2))
        >>> teacher.trained, teacher.module.weight.requires_grad
        ('never', False)
    """
    return Companion(require_module("a companion", module).requires_grad_(False))


def require_module(name: str, module: object) -> nn.Module:
    """The module as given.

    Raises:
        ConfigError: if it is none.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name} is a {type(module).__name__}: expected an nn.Module")
    return module


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that take a gradient, in the order of ``module.parameters()``.

    Raises:
        ConfigError: if there is none.
    """
    parameters = [
        parameter for parameter in require_module("the network", module).parameters() if parameter.requires_grad
    ]
    if not parameters:
        raise ConfigError(
            f"{type(module).__name__} has no parameter that takes a gradient: nothing to train; "
            "call requires_grad_(True) on what should learn"
        )
    return parameters


def adamw(
    modules: Sequence[nn.Module], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """AdamW of the trainable parameters of ``modules``, in that order, as one group.

    Raises:
        ConfigError: for a number out of range, or a module without a parameter that takes a gradient.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"learning_rate = {learning_rate!r}: expected a positive number")
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas = {betas!r}: expected two numbers in [0, 1)")
    if not weight_decay >= 0:
        raise ConfigError(f"weight_decay = {weight_decay!r}: expected a number that is not negative")
    parameters = [parameter for module in modules for parameter in trainable(module)]
    return AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)


def checked_companions(network: nn.Module, companions: Mapping[str, Companion]) -> dict[str, Companion]:
    """``companions``, in their order.

    Raises:
        ConfigError: for a name that cannot begin the name of a log, for what is no companion, or for a parameter that
            two modules of the run share.
    """
    owners = {id(parameter): "the network" for parameter in network.parameters()}
    for name, companion in companions.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ConfigError(f"a companion is called {name!r}: expected a name like fake_score, letters and _ only")
        if not isinstance(companion, Companion):
            raise ConfigError(
                f"the companion {name!r} is a {type(companion).__name__}: expected trained_in_turns(module), "
                "trained_jointly(module) or not_trained(module)"
            )
        for key, parameter in companion.module.named_parameters():
            if (owner := owners.setdefault(id(parameter), f"the companion {name!r}")) != f"the companion {name!r}":
                raise ConfigError(
                    f"the parameter {key} of the companion {name!r} belongs to {owner} too: give copy.deepcopy(module)"
                )
    return dict(companions)
