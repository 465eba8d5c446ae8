"""Pairs of noise and what a teacher makes of it, made once for every teacher and choice of numbers."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.problems import Batch, Problem
from onestep_adapters.recipes.straight import PATH
from onestep_adapters.samplers import sample_ode
from onestep_adapters.training.folder import write_whole
from onestep_core.errors import MissingExtraError

try:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save
except ImportError as error:
    raise MissingExtraError("pairs are kept with safetensors: pip install 'onestep[training]'") from error

_CHUNK = 250


@torch.no_grad()
def teacher_pairs(
    teacher: nn.Module, problem: Problem, *, count: int, solver_steps: int, seed: int, kept: Path | None = None
) -> tuple[Tensor, Batch]:
    """Noise ``[count, *shape]``, and the ends of the teacher's trajectories with their classes.

    Args:
        teacher: a velocity network on the linear path.
        problem: gives shape and classes.
        count: pairs.
        solver_steps: Heun steps for each, two evaluations of the teacher a step.
        seed: of noise and classes.
        kept: a folder named by a hash of the teacher's configuration: the pairs are read from there if they were made
            before with these numbers, and written to it otherwise, as where the file is damaged. ``None``: they are
            made.

    Example:
        >>> from onestep_adapters.recipes.problems import open_problem
        >>> still = lambda z, t, label: 0 * z
        >>> noise, made = teacher_pairs(still, open_problem("8gaussians"), count=3, solver_steps=2, seed=0)
        >>> bool((noise == made.data).all())
        True
    """
    name = hashlib.sha256(repr((problem.name, count, solver_steps, seed)).encode()).hexdigest()[:12]
    file = None if kept is None else kept / f"pairs-{name}.safetensors"
    if file is not None and file.is_file():
        try:
            tensors = load_file(file)
            return tensors["noise"], Batch(tensors["data"], tensors.get("labels"))
        except (SafetensorError, KeyError):
            pass  # Damaged: made again, alike.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *problem.shape, generator=generator)
    labels = problem.labels(count, generator)
    chunks = zip(noise.split(_CHUNK), [None] * count if labels is None else labels.split(_CHUNK), strict=False)
    data = torch.cat(
        [sample_ode(as_velocity(teacher, label=label), part, path=PATH, steps=solver_steps) for part, label in chunks]
    )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"noise": noise, "data": data} | ({} if labels is None else {"labels": labels})
        write_whole(file, save(tensors))
    return noise, Batch(data, labels)
