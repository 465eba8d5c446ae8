"""Teachers as values: a velocity on the linear path, and perhaps the network behind it.

A teacher is resolved once (:mod:`onestep_adapters.runs.teachers`): trained here, read from a run folder, the exact
score of a known distribution, or an object of yours. Methods see only this value.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import attrs
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset
from onestep_adapters.methods.linear_path import PATH, straight_consistency
from onestep_adapters.networks import as_velocity, frozen
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.protocols import Denoiser, Velocity

T = TypeVar("T")

EXACT = "exact"
"""The value of ``teacher_from`` for the exact teacher, instead of a run folder."""


@attrs.frozen(eq=False)
class Teacher:
    """A teacher: what a method learns from. Velocities and expected data are those of the linear path, noise at time 1.

    Attributes:
        velocity: ``labels -> velocity``, a function of ``(z, t)``.
        denoiser: ``labels -> denoiser``; gradients reach its input, never a parameter.
        module: the network, from which a student can start; ``None`` without one.
        coupling: of the pairs that it learned from. Only independent pairs give a score.
        key: identifies the teacher in the cache of pairs; empty for one that is not cached.
    """

    velocity: Callable[[Tensor | None], Velocity]
    denoiser: Callable[[Tensor | None], Denoiser]
    module: nn.Module | None = None
    coupling: Coupling = "independent"
    key: str = ""

    @property
    def knows_score(self) -> bool:
        """Whether its expected data give the score of the data: true for independent pairs only."""
        return self.coupling == "independent"

    def required_module(self) -> nn.Module:
        """The network.

        Raises:
            ConfigError: if there is none.
        """
        if self.module is None:
            raise ConfigError(
                "this method starts from the teacher's weights and this teacher has none: give a teacher with a network"
            )
        return self.module


def network_teacher(module: nn.Module, *, coupling: Coupling = "independent", key: str = "") -> Teacher:
    """A velocity network of one time, ``module(z, t, label=labels)``, as a teacher.

    Args:
        module: in evaluation mode; it is used as it is and may still be in training.
        coupling: of the pairs that it learned from.
        key: identifies its weights in the cache of pairs; empty: pairs are not cached.

    Example:
        >>> import torch
        >>> from onestep_adapters.backbones import MLP
        >>> teacher = network_teacher(MLP((2,), width=8, depth=1))
        >>> teacher.velocity(None)(torch.zeros(3, 2), torch.ones(3)).shape
        torch.Size([3, 2])
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(module).__name__} as teacher: expected an nn.Module, module(z, t, label=labels)")
    return Teacher(partial(_velocity, module), partial(_denoiser, module), module, coupling, key)


def exact_teacher(data: Dataset) -> Teacher:
    """The exact denoiser of a mixture of isotropic Gaussians as a teacher; no network, so no student can start from it.

    Raises:
        ConfigError: for a data set without known modes, or with classes.

    Example:
        >>> import torch
        >>> from onestep_adapters.data import open_dataset
        >>> teacher = exact_teacher(open_dataset("unequal"))
        >>> teacher.denoiser(None)(torch.zeros(1, 2), torch.ones(1))
        tensor([[0.6000, 0.0000]])
    """
    if not isinstance(data, Dataset):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(data).__name__} as data: expected a data set, such as open_dataset('8gaussians')")
    if data.modes is None or data.classes is not None:
        raise ConfigError(
            f"the exact denoiser of {data.name} is not known: learn from a trained teacher, or choose data with known "
            "modes and without classes (8gaussians, unequal)"
        )
    means, weights, std = data.modes
    mixture = GaussianMixture.isotropic(weights.double() / weights.double().sum(), means, std)
    # The velocity is the mixture's own: one made from the denoiser divides by zero at the data end.
    velocity, denoiser = (partial(function, path=PATH) for function in (mixture.velocity, mixture.denoiser))
    return Teacher(partial(_without_labels, velocity), partial(_without_labels, denoiser))


# Functions of the module, so that a teacher can be sent to another process.
def _velocity(module: nn.Module, labels: Tensor | None) -> Velocity:
    return as_velocity(module, label=labels)


def _denoiser(module: nn.Module, labels: Tensor | None) -> Denoiser:
    return straight_consistency(frozen(module), labels)


def _without_labels(function: T, labels: Tensor | None) -> T:
    return function
