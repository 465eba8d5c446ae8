"""Networks of diffusers as files: any batch size, in both formats."""

import copy

import onnxruntime
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from onestep_adapters.backbones.diffusers import (
    DiffusersNetwork,
    PretrainedVelocity,
    path_of,
)
from onestep_adapters.backbones.diffusers.free_batch import free_batch
from onestep_adapters.exporting import Generator, export, jump_generator
from onestep_adapters.networks import as_one_step
from onestep_core import Linear, velocity_on_path
from tests.adapters.backbones.diffusers.small import MODELS, awake, condition_of, labelled, model_of, seeded, states

SHAPE = (1, 8, 8)
SIZES = (2, 70)
"""Batch sizes on both sides of 64, from which on the layers of diffusers copy their input."""


def unet(**options):
    return labelled(8, (4, 8), 2, **options)


def inputs_of(count):
    return torch.randn(count, 1, 8, 8, generator=seeded(1)), torch.arange(count) % 10


def check(file, generator):
    for count in SIZES:
        noise, labels = inputs_of(count)
        if file.suffix == ".pt2":
            found = torch.export.load(file).module()(noise, labels)
        else:
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})[0])
        torch.testing.assert_close(found, generator(noise, labels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_distilled_unet_with_classes_keeps_its_batch_free(format, tmp_path):
    network = awake(PretrainedVelocity(unet(), DDPMScheduler(), times=2))
    before = network(*(x[:2] for x in (inputs_of(2)[0], torch.ones(2), torch.zeros(2))), label=torch.arange(2))
    generator = jump_generator(network, path=Linear(), shape=SHAPE, classes=10)
    check(export(generator, tmp_path / f"g.{'pt2' if format == 'torch' else 'onnx'}", format=format), generator)
    # The network itself stays as it was.
    assert any(type(module) is Upsample2D for module in network.modules())
    after = network(*(x[:2] for x in (inputs_of(2)[0], torch.ones(2), torch.zeros(2))), label=torch.arange(2))
    assert torch.equal(after, before)


RESNETS = {"downsample_type": "resnet", "upsample_type": "resnet"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("format", "options", "scheduler"),
    [
        ("torch", RESNETS, DDIMScheduler(beta_end=0.01)),
        ("onnx", RESNETS, DDPMScheduler(prediction_type="v_prediction")),
        ("onnx", {}, DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")),
        ("onnx", {}, EulerDiscreteScheduler()),
    ],
)
def test_further_unets_and_schedulers(format, options, scheduler, tmp_path):
    network = awake(PretrainedVelocity(unet(**options), scheduler, times=2))
    generator = jump_generator(network, path=Linear(), shape=SHAPE, classes=10)
    check(export(generator, tmp_path / f"g.{'pt2' if format == 'torch' else 'onnx'}", format=format), generator)


class Pixelwise(nn.Module):
    """A model ``(sample, timestep)`` that is exported in no time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, sample, timestep):
        return torch.tanh(self.weight * sample + 1e-3 * timestep[:, None, None, None])


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        EulerDiscreteScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"),
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=["zero terminal", "noise levels", "karras", "edm", "flow"],
)
def test_every_kind_of_path_is_exported(scheduler, tmp_path):
    """One step on the linear path, plus a velocity that the core moves from the scheduler's path."""
    path = path_of(scheduler)

    def draw(network, noise, labels):
        t = noise.new_full(noise.shape[:1], 0.75)
        moved = velocity_on_path(network.network, source=path, target=Linear())
        return noise - network(noise, torch.ones_like(t)) + moved(noise, t)

    generator = Generator(PretrainedVelocity(Pixelwise(), scheduler), draw, shape=SHAPE)
    file = export(generator, tmp_path / "g.onnx", format="onnx")
    noise = torch.randn(7, *SHAPE, generator=seeded(1))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"noise": noise.numpy()})[0])
    torch.testing.assert_close(found, generator(noise), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["conditional unet", "dit", "sd3", "flux"])
def test_every_class_is_exported(name, tmp_path):
    """The conditions are constants of one row here; labels are no input of such a generator."""
    network = awake(DiffusersNetwork(model_of(name), times=2, time_scale=MODELS[name].time_scale)).eval()
    condition = {key: value[:1] for key, value in condition_of(name).items()}

    def draw(network, noise, labels):
        def average_velocity(z, t, s):
            given = {key: value.expand(z.shape[0], *value.shape[1:]) for key, value in condition.items()}
            return network(z, t, s, **given)

        return as_one_step(average_velocity, path=Linear())(noise)

    shape = tuple(states()[0].shape[1:])
    generator = Generator(network, draw, shape=shape)
    file = export(generator, tmp_path / "g.pt2", format="torch")
    for count in SIZES:
        noise = torch.randn(count, *shape, generator=seeded(1))
        torch.testing.assert_close(torch.export.load(file).module()(noise), generator(noise), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [None, (7, 9)])
@pytest.mark.parametrize(
    "options", [{"use_conv": True}, {}, {"use_conv": True, "name": "Conv2d_0"}, {"use_conv_transpose": True}]
)
def test_layers_that_do_not_ask_for_the_batch_have_the_same_values(options, size):
    torch.manual_seed(0)
    layer = Upsample2D(4, **options)
    z = torch.randn(3, 4, 5, 6, generator=seeded(2)).to(memory_format=torch.channels_last)
    other = copy.deepcopy(layer)
    free_batch(other)
    assert type(other) is not Upsample2D
    assert torch.equal(other(z, size), layer(z, size))


@pytest.mark.parametrize("kernel", [None, "fir", "sde_vp"])
def test_a_block_that_upsamples_has_the_same_values(kernel):
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=4, temb_channels=8, groups=2, up=True, kernel=kernel).eval()
    other = copy.deepcopy(block)
    free_batch(other)
    z, embedding = torch.randn(3, 4, 5, 6, generator=seeded(2)), torch.randn(3, 8, generator=seeded(3))
    assert torch.equal(other(z, embedding), block(z, embedding))
