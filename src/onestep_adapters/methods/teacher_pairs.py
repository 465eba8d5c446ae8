"""Pairs of noise and the end of a teacher's trajectory from it, made once for each teacher and choice of numbers."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from onestep_adapters.data import Batch
from onestep_adapters.files import write_whole
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context
from onestep_adapters.samplers import sample_ode
from onestep_core.errors import MissingExtraError

try:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save
except ImportError as error:
    raise MissingExtraError("pairs are kept with safetensors: pip install 'onestep[training]'") from error

_CHUNK = 250


@torch.no_grad()
def teacher_pairs(context: Context, *, count: int, solver_steps: int, seed: int) -> tuple[Tensor, Batch]:
    """Noise ``[count, *shape]``, and the data ends of the teacher's trajectories with their classes.

    They are read from ``context.cache`` if the same teacher made them before with the same numbers; otherwise, and
    where the file is damaged, they are made and written there.

    Args:
        context: its teacher makes the pairs; it gives shape and classes, and shows progress.
        count: number of pairs.
        solver_steps: Heun steps for each pair, two evaluations of the teacher a step.
        seed: of noise and classes, which are drawn on the CPU: the same on every device.
    """
    teacher, dataset, cache = context.required_teacher(), context.data, context.cache
    name = hashlib.sha256(repr((dataset.name, count, solver_steps, seed)).encode()).hexdigest()[:12]
    file = None if cache is None else cache / f"pairs-{name}.safetensors"
    if file is not None and file.is_file():
        try:
            tensors = load_file(file)
            return _placed(context, tensors["noise"], tensors["data"], tensors.get("labels"))
        except (SafetensorError, KeyError):
            pass  # Damaged: the same pairs are made again.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *dataset.shape, generator=generator, device=generator.device)
    labels = dataset.labels(count, generator)
    parts = noise.split(_CHUNK)
    classes: Sequence[Tensor | None] = [None] * len(parts) if labels is None else labels.split(_CHUNK)
    made = []
    for part, label in context.track(zip(parts, classes, strict=True), "pairs of the teacher", len(parts)):
        velocity = teacher.velocity(None if label is None else label.to(context.device))
        made.append(sample_ode(velocity, part.to(context.device), path=PATH, steps=solver_steps).cpu())
    data = torch.cat(made)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"noise": noise, "data": data} | ({} if labels is None else {"labels": labels})
        write_whole(file, save(tensors))
    return _placed(context, noise, data, labels)


def _placed(context: Context, noise: Tensor, data: Tensor, labels: Tensor | None) -> tuple[Tensor, Batch]:
    noise, data = noise.to(context.device), data.to(context.device)
    return noise, Batch(data, None if labels is None else labels.to(context.device))
