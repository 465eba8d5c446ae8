"""Pairs of noise and the end of a teacher's trajectory from it, made once for each teacher and choice of numbers."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from onestep_adapters.data import Batch
from onestep_adapters.files import make_folder, write_whole
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context
from onestep_adapters.samplers import sample_ode
from onestep_core.errors import MissingExtraError

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
except ImportError as error:
    raise MissingExtraError("pairs are kept with safetensors: pip install 'onestep[training]'") from error

_CHUNK = 250


@torch.no_grad()
def teacher_pairs(context: Context, *, count: int, solver_steps: int, seed: int) -> tuple[Tensor, Batch]:
    """Noise ``[count, *shape]``, and the data ends of the teacher's trajectories with their classes.

    They are read from ``context.cache`` if the same teacher made them before with the same numbers. Otherwise they are
    made and written there; so they are if the file is damaged (hash, counts, shapes, types), with a warning that says
    so.

    Args:
        context: its teacher makes the pairs; it gives shape and classes, and shows progress.
        count: number of pairs.
        solver_steps: Heun steps for each pair, two evaluations of the teacher a step.
        seed: of noise and classes, which are drawn on the CPU: the same on every device.
    """
    teacher, dataset = context.required_teacher(), context.data
    file = _file(context, count, solver_steps, seed)
    if file is not None and file.is_file():
        try:
            tensors = _read(file, (count, *dataset.shape), classes=dataset.classes is not None)
            return _placed(context, tensors["noise"], tensors["data"], tensors.get("labels"))
        except (SafetensorError, ValueError, OSError) as error:
            warnings.warn(f"{file} is damaged ({error}): its pairs are made again", stacklevel=2)
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
        make_folder(file.parent)
        tensors = {"noise": noise, "data": data} | ({} if labels is None else {"labels": labels})
        write_whole(file, save(tensors, metadata={"sha256": _digest(tensors)}))
    return _placed(context, noise, data, labels)


def teacher_pairs_to_make(context: Context, *, count: int, solver_steps: int, seed: int) -> tuple[str, ...]:
    """What :func:`teacher_pairs` has to make, for :meth:`Method.preparations`; nothing if the pairs are there."""
    file = _file(context, count, solver_steps, seed)
    if file is not None and file.is_file():
        return ()
    return (f"{count:,} pairs of noise and the teacher's sample: {2 * solver_steps} evaluations of the teacher each",)


def _file(context: Context, count: int, solver_steps: int, seed: int) -> Path | None:
    name = hashlib.sha256(repr((context.data.name, count, solver_steps, seed)).encode()).hexdigest()[:12]
    return None if context.cache is None else context.cache / f"pairs-{name}.safetensors"


def _read(file: Path, shape: tuple[int, ...], *, classes: bool) -> dict[str, Tensor]:
    """The tensors of a file, checked.

    Raises:
        ValueError: with what is wrong.
    """
    with safe_open(file, framework="pt") as opened:
        expected = (opened.metadata() or {}).get("sha256")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if tensors.keys() != {"noise", "data"} | ({"labels"} if classes else set()):
        raise ValueError(f"it holds {sorted(tensors)}")
    for name, tensor in tensors.items():
        wanted = shape[:1] if name == "labels" else shape
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted}")
        if tensor.is_floating_point() == (name == "labels"):
            raise ValueError(f"{name} is {tensor.dtype}")
    if expected != _digest(tensors):
        raise ValueError("its content does not fit its sha256")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _placed(context: Context, noise: Tensor, data: Tensor, labels: Tensor | None) -> tuple[Tensor, Batch]:
    noise, data = noise.to(context.device), data.to(context.device)
    return noise, Batch(data, None if labels is None else labels.to(context.device))
