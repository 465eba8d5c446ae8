"""Presets for images of more than 16 pixels: another network for every method, the same method otherwise."""

import math

import attrs
import numpy as np
import pytest
import torch

from onestep_adapters.data import ImageDataset, open_dataset
from onestep_adapters.methods import METHODS, Network
from onestep_adapters.methods.presets import for_larger_images
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import drawn, small


def images(size=32, channels=3, count=240, classes=2):
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return ImageDataset("noise", pixels, None if classes is None else np.arange(count) % classes)


@pytest.mark.parametrize("method", [name for name, preset in METHODS.items() if preset.larger_images is None])
@pytest.mark.parametrize("size", [32, 64])
def test_the_network_is_a_unet_or_a_transformer_on_few_patches(method, size):
    data, preset = images(size, count=60), METHODS[method]
    options = preset.options(data)
    if size == 32:
        assert (options.network.backbone, options.network.width, options.network.depth) == ("unet", 16, 1)
        assert options.training.steps == math.ceil(preset.images.training.steps / 2)
    else:
        assert (options.network.backbone, options.network.patch) == ("dit", 8)
        assert options.training.steps == preset.images.training.steps
    assert options.training.learning_rate <= 1e-3
    assert getattr(options, "coupling", None) != "precomputed"
    if preset.images.teacher is not None:
        assert options.teacher.network == options.network
        assert options.teacher == for_larger_images(preset.images.teacher, data)
    kept = {"network", "training", "teacher", "coupling"}
    for field in attrs.fields(type(options)):
        if field.name not in kept:
            assert getattr(options, field.name) == getattr(preset.images, field.name), field.name
    assert preset.options(images(16)) is preset.images


def test_a_preset_of_its_own_for_larger_images_is_taken_as_it_is():
    own = [preset for preset in METHODS.values() if preset.larger_images is not None]
    assert own
    for preset in own:
        assert preset.options(images()) is preset.larger_images
        assert preset.options(images(16)) is preset.images


@pytest.mark.parametrize(
    ("size", "patch"), [(17, 17), (25, 5), (33, 11), (36, 4), (48, 6), (64, 8), (100, 10), (128, 16)]
)
def test_the_patch_divides_the_image_and_leaves_at_most_a_hundred(size, patch):
    options = METHODS["flow-matching"].options(images(size, 1, count=60, classes=None))
    assert options.network.patch == patch
    assert size % patch == 0
    assert (size // patch) ** 2 <= 100


@pytest.mark.parametrize("classes", [2, None])
@pytest.mark.parametrize("method", ["flow-matching", "meanflow", "drifting"])
def test_the_preset_itself_trains_and_samples(method, classes):
    data = images(classes=classes)
    options = METHODS[method].options(data)
    training = attrs.evolve(options.training, steps=2, batch=8)
    changes = {"positives": 8} if method == "drifting" else {}
    if method == "flow-matching":
        changes["sampling_steps"] = 2
    run = start_run(method, data, attrs.evolve(options, training=training, **changes))
    losses = [record.loss for record in run.updates()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    samples, labels = drawn(run, 3)
    assert samples.shape == (3, 3, 32, 32)
    assert torch.equal(samples, data.finish(samples))
    assert bool(samples.isfinite().all())
    assert (labels is None) == (classes is None)


@pytest.mark.usefixtures("teachers")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_larger_images(method):
    """With a small transformer; teachers too."""
    data, network = images(20, 1), Network("dit", width=12, depth=1, patch=5)
    options = small(METHODS[method].options(data), steps=2, batch=8, network=network)
    if options.teacher is not None:
        options = attrs.evolve(options, teacher=attrs.evolve(options.teacher, network=network))
    run = start_run(method, data, options)
    assert all(np.isfinite([record.loss for record in run.updates()]))
    assert bool(drawn(run, 3)[0].isfinite().all())


def test_a_patch_is_for_transformers_alone():
    with pytest.raises(ConfigError, match="patch = 4 with the backbone 'conv': only dit has it"):
        Network("conv", patch=4).build(open_dataset("digits"), 1, torch.Generator())
    network = Network("dit", width=12, depth=1, patch=4).build(open_dataset("digits"), 1, torch.Generator())
    assert network.patch == 4
