"""From a pretrained pipeline of diffusers to a pipeline of one step: options, images without data, and the result."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from onestep_adapters.backbones.diffusers import OneStepGenerator, OneStepPipeline, PretrainedVelocity
from onestep_adapters.backbones.diffusers.pretrained import load_pipeline, load_velocity
from onestep_adapters.data import ArrayDataset, Batch, Dataset
from onestep_adapters.data.images.locking import locked
from onestep_adapters.files import errors_name, make_folder, partial_name, require_path
from onestep_adapters.methods import METHODS, FlowMatching, Method, Network, find_preset
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.names import choose
from onestep_adapters.networks import as_velocity
from onestep_adapters.runs.run import CHUNK, Run
from onestep_adapters.samplers import sample_ode
from onestep_adapters.tracking import Track, untracked
from onestep_adapters.training import new_state
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from PIL import Image
except ImportError as error:
    raise MissingExtraError("images are written with Pillow: pip install 'onestep[images]'") from error

ALIASES = {"meanflow": "meanflow-distillation", "scm": "continuous-consistency"}
"""Methods that learn from a teacher in one of their presets, by their short names."""

DISTILLING = (*ALIASES, *(name for name, preset in METHODS.items() if preset.images.distils_models))
"""The methods whose network the model of a pipeline can be."""

LEARNING_RATE = 5e-4
"""Highest learning rate: weights that are already good need smaller steps than random ones."""


def distillation(pipeline: str, method: str, data: Dataset) -> tuple[str, Method]:
    """The name of a method and its options for distilling a pipeline: its preset, started from the pipeline's model.

    Args:
        pipeline: folder that ``save_pretrained`` wrote.
        method: one of :data:`DISTILLING`.
        data: gives the kind and the size of the images.

    Raises:
        ConfigError: for a method that learns from no teacher.
    """
    name = choose(method, DISTILLING, "method that distils")
    preset = find_preset(ALIASES.get(name, name))
    options = preset.options(data)
    network = Network("pretrained", pretrained=pipeline)
    rate = min(options.training.learning_rate, LEARNING_RATE)
    changes: dict[str, Any] = {
        "network": network,
        "teacher": FlowMatching(network=network),
        "teacher_from": pipeline,
        "training": attrs.evolve(options.training, learning_rate=rate),
    }
    if "distilled" in attrs.fields_dict(type(options)):
        changes["distilled"] = True
    return preset.name, attrs.evolve(options, **changes)


def samples_like(pipeline: str) -> Dataset:
    """A data set with the shape and the classes of a pipeline's samples and no content, to choose options with.

    Raises:
        ConfigError: if the folder is no such pipeline, or its samples have no known shape.
    """
    network = load_velocity(pipeline)
    if network.sample_shape is None:
        raise ConfigError(f"the config of the model in {pipeline} does not name channels and size of its samples")
    count = network.classes or 1
    labels = None if network.classes is None else torch.arange(count)
    return ArrayDataset("pipeline", Batch(torch.zeros(count, *network.sample_shape), labels))


def images_of(
    pipeline: str,
    folder: str | os.PathLike[str],
    *,
    count: int,
    steps: int = 25,
    seed: int = 0,
    device: torch.device | str = "cpu",
    track: Track = untracked,
) -> Path:
    """Images that the pipeline's model makes, as PNG files, one sub-folder a class: data where there are none.

    An existing folder is returned as it is: it is whole, because it gets its name at the end.

    Args:
        pipeline: folder that ``save_pretrained`` wrote; of images, not of latents.
        folder: of the images.
        count: number of images, divided equally among the classes.
        steps: Heun steps from noise to image; two evaluations each.
        seed: of the noise.
        device: of the model.
        track: shows the progress.

    Raises:
        ConfigError: if the model makes no grey or colour images.
    """
    folder = require_path("folder", folder)
    if folder.is_dir():
        return folder
    found = load_pipeline(pipeline)
    network = load_velocity(pipeline).to(device)
    shape = network.sample_shape
    if shape is None or shape[0] not in (1, 3) or found.vae is not None:
        raise ConfigError(
            f"the pipeline in {pipeline} makes {'latents' if found.vae is not None else 'samples'} of {shape}: without "
            "data only pipelines of grey or colour images can be distilled; give --data, and for latents --autoencoder "
            f"{Path(pipeline) / 'vae'}"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *shape, generator=generator)
    labels = None if network.classes is None else torch.arange(count) % network.classes
    with _replacing(folder) as partial:
        if folder.is_dir():
            # Another process made them meanwhile.
            return folder
        make_folder(partial)
        chunks = torch.arange(count).split(CHUNK)
        for rows in track(chunks, "images of the pipeline", len(chunks)):
            classes = None if labels is None else labels[rows]
            with torch.no_grad():
                velocity = as_velocity(network, label=None if classes is None else classes.to(device))
                samples = sample_ode(velocity, noise[rows].to(device), path=PATH, steps=steps).cpu()
            with errors_name(folder):
                _write(partial, samples, classes, rows.tolist())
    return folder


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """The name of a folder that takes the place of ``folder`` at the end, if it was made.

    One process at a time is inside; what a killed one left is removed.
    """
    make_folder(folder.parent)
    with locked(folder.with_name(f".{folder.name}.lock")):
        for left in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial = partial_name(folder)
        try:
            yield partial
            if partial.is_dir():
                with errors_name(folder):
                    if folder.exists():
                        shutil.rmtree(folder)
                    partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, samples: Tensor, labels: Tensor | None, names: Sequence[int]) -> None:
    grey = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for index, (pixels, name) in enumerate(zip(grey, names, strict=True)):
        place = folder if labels is None else folder / f"{int(labels[index]):03d}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(place / f"{name:06d}.png")


def save_pipeline(run: Run, pipeline: str, folder: str | os.PathLike[str]) -> Path:
    """The averaged student of a run as a :class:`OneStepPipeline`, whole or absent in ``folder``.

    It is compared with the run's own sampler before it gets its name. A pipeline that was there before is replaced.

    Args:
        run: whose network is a :class:`PretrainedVelocity`, of a method of one evaluation.
        pipeline: folder of the pipeline that was distilled; its autoencoder goes on.
        folder: of the new pipeline.

    Raises:
        ConfigError: if the run has another network, several evaluations, or another sampler than one step on the
            linear path.
    """
    folder, network, options = require_path("folder", folder), run.state.ema, run.options
    if not isinstance(network, PretrainedVelocity) or options.evaluations != 1:
        raise ConfigError(
            f"a run of {run.name} with {options.evaluations} evaluations of a {type(network).__name__}: expected one "
            "evaluation of the model of a pipeline"
        )
    start = getattr(options, "generator_time", 1.0)
    generator = OneStepGenerator(network, start=start).eval()
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(4, *run.data.shape, generator=draws).to(run.device)
    labels = run.data.labels(4, draws)
    labels = None if labels is None else labels.to(run.device)
    with torch.no_grad():
        expected, found = options.sample(network, noise, labels), generator(noise, class_labels=labels)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().amax())):
        raise ConfigError(
            f"the sampler of {run.name} is not one step on the linear path, so its run cannot be saved as a pipeline: "
            "onestep sample and onestep export work"
        )
    with _replacing(folder) as partial, errors_name(folder):
        OneStepPipeline(generator, vae=load_pipeline(pipeline).vae).save_pretrained(partial)
    return folder


def pipeline_run(pipeline: str, data: Dataset, *, steps: int = 50, device: torch.device | str = "cpu") -> Run:
    """The pipeline itself as a run, to compare its students with: ``steps`` Heun steps, two evaluations each.

    Args:
        pipeline: folder that ``save_pretrained`` wrote.
        data: what it was trained on.
        steps: Heun steps from noise to data on the linear path.
        device: of the model.

    Raises:
        ConfigError: if its model has other samples or classes than the data.
    """
    options = FlowMatching(network=Network("pretrained", pretrained=pipeline), sampling_steps=steps)
    network = options.build(data, torch.Generator()).to(device)
    state = new_state("pipeline", network, learning_rate=1e-3, seed=0)
    return Run("pipeline", options, data, state)
