"""Teachers: flow-matching runs that others learn from, trained once for every data set and choice of options.

A teacher's folder is named by a hash of what made it, so a changed option is another teacher, and one that was cut off
goes on where it stopped.
"""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import nn

from onestep_adapters.data.toys import EightGaussians, UnequalMixture
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.problems import Problem, ToyProblem
from onestep_adapters.recipes.straight import PATH
from onestep_core.errors import ConfigError
from onestep_core.evidence import GaussianMixture
from onestep_core.protocols import Denoiser

ORACLE = "oracle"
"""In the place of a teacher's folder: the law itself, where its denoiser is known."""


@runtime_checkable
class ChoosesTeacher(Protocol):
    """A recipe that may learn from another teacher than the one that its options would train."""

    @property
    def teacher_from(self) -> str:
        """A run folder, :data:`ORACLE`, or nothing for the teacher of the options."""
        ...


def given_teacher(recipe: object) -> str:
    """The run folder that a recipe names in place of the teacher of its options, or nothing.

    Example:
        >>> given_teacher(FlowMatching())
        ''
    """
    chosen = recipe.teacher_from if isinstance(recipe, ChoosesTeacher) else ""
    return "" if chosen == ORACLE else chosen


def learns_from_oracle(recipe: object) -> bool:
    """Whether the law's exact score is a recipe's teacher.

    Example:
        >>> learns_from_oracle(FlowMatching())
        False
    """
    return isinstance(recipe, ChoosesTeacher) and recipe.teacher_from == ORACLE


TEACHERS = Path("runs/teachers")
"""Where teachers are kept, below the current folder; the environment variable ``ONESTEP_TEACHERS`` names another."""


def teacher_folder(data: str, options: FlowMatching) -> Path:
    """The folder of a teacher: ``DATA-HASH``.

    Args:
        data: name of the problem.
        options: of the teacher's training; how it is sampled is no part of the name.

    Example:
        >>> one, other = (teacher_folder("digits", FlowMatching(sampling_steps=n)) for n in (10, 50))
        >>> one == other
        True
    """
    home = Path(os.environ.get("ONESTEP_TEACHERS", TEACHERS))
    return home / f"{data}-{_hash([data, _made(attrs.asdict(options))])}"


def made_folder(config: dict[str, Any]) -> Path:
    """Where what is made with a teacher is kept, beside the teachers.

    Args:
        config: of the teacher's run; how it is sampled is no part of the name.

    Example:
        >>> made_folder({"method": "flow-matching", "data": "digits", "options": {}}).parent.name
        'made'
    """
    home = Path(os.environ.get("ONESTEP_TEACHERS", TEACHERS))
    return home / "made" / f"{config['data']}-{_hash({**config, 'options': _made(config['options'])})}"


def oracle_denoiser(problem: Problem) -> Denoiser:
    """The exact denoiser of a law of round Gaussian modes, on the path of the teachers.

    Raises:
        ConfigError: for any other law, whose denoiser is not known.

    Example:
        >>> denoiser = oracle_denoiser(ToyProblem("unequal"))
        >>> denoiser(torch.zeros(1, 2), torch.ones(1))
        tensor([[0.6000, 0.0000]])
    """
    law = problem.law if isinstance(problem, ToyProblem) else None
    if not isinstance(law, EightGaussians | UnequalMixture):
        raise ConfigError(
            f"the exact denoiser of {problem.name} is not known: learn from a trained teacher, or choose 8gaussians or "
            "unequal"
        )
    weights = law.weights.double()
    mixture = GaussianMixture.isotropic(weights / weights.sum(), law.means, law.std)
    return partial(mixture.denoiser, path=PATH)


def weights_hash(module: nn.Module) -> str:
    """Twelve hexadecimal digits of a network's weights, by their names, types and bits.

    Example:
        >>> one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> weights_hash(one) == weights_hash(other)
        True
    """
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + bits.numpy().tobytes())
    return found.hexdigest()[:12]


def _made(options: dict[str, Any]) -> dict[str, Any]:
    """What made a teacher, of its options: all but how it is sampled."""
    return {name: value for name, value in options.items() if name != "sampling_steps"}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
