"""Exported generators: equal to the run on fresh inputs; in torch, in onnxruntime, in a process without onestep."""

import json
import subprocess
import sys
from functools import partial

import attrs
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, DiT, UNet
from onestep_adapters.exporting import (
    ExportError,
    Generator,
    consistency_generator,
    direct_generator,
    export,
    flow_map_generator,
    jump_generator,
)
from onestep_adapters.methods import METHODS, Network
from onestep_adapters.runs import start_run
from onestep_adapters.runs.generators import generator_of
from onestep_adapters.samplers import consistency_multistep, multistep, one_step
from onestep_core import Linear, VarianceExploding, denoiser_from_velocity
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded, tiny

ONE_STEP = [name for name, preset in METHODS.items() if preset.points.evaluations == 1]


def awake(network, seed=7):
    """The network with no weight at zero."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(seed)))
    return network


def run_of(method, data="8gaussians", **changes):
    run = start_run(method, data, tiny(method, data, **changes))
    awake(run.state.ema)
    return run


def loaded(file):
    return torch.export.load(file).module()


def in_onnx(file, noise, labels=None):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = {"noise": noise.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    return torch.from_numpy(session.run(["samples"], given)[0])


@pytest.mark.usefixtures("teachers")
@pytest.mark.parametrize("method", ONE_STEP)
def test_every_one_step_method_is_exported(method, tmp_path):
    run = run_of(method)
    file = export(generator_of(run), tmp_path / "g.pt2", format="torch")
    samples, _ = run.samples(9, generator=seeded(3))
    noise = torch.randn(9, 2, generator=seeded(3))
    torch.testing.assert_close(loaded(file)(noise), samples, rtol=1e-4, atol=1e-5)


IMAGES = {
    "conv": ("meanflow", Network("conv", width=8, depth=1), {}),
    "unet": ("consistency-training", Network("unet", width=8, depth=1), {}),
    "decoder, guidance": ("drifting", Network("decoder", width=8, depth=1), {"max_alpha": 3.0, "alpha": 2.0}),
}


@pytest.mark.parametrize(("method", "network", "guidance"), IMAGES.values(), ids=IMAGES)
def test_images_with_labels_and_guidance_in_both_formats(method, network, guidance, tmp_path):
    options = tiny(method, "digits", network=network)
    if guidance:
        options = attrs.evolve(options, guidance=attrs.evolve(options.guidance, **guidance))
    run = start_run(method, "digits", options)
    awake(run.state.ema)
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    samples, _ = run.samples(7, generator=seeded(3), labels=labels)
    noise = torch.randn(7, *options.noise_shape(run.data), generator=seeded(3))
    generator = generator_of(run)
    torch_file = export(generator, tmp_path / "g.pt2", format="torch")
    onnx_file = export(generator, tmp_path / "g.onnx", format="onnx", facts={"method": method})
    for found in (loaded(torch_file)(noise, labels), in_onnx(onnx_file, noise, labels)):
        # Grey levels: a rounding difference may move a value to the next of the levels, 1/8 of the range apart.
        assert found.shape == samples.shape
        assert ((found - samples).abs() > 1e-4).double().mean() < 1e-2
    assert not torch.equal(loaded(torch_file)(noise, labels.flip(0)), samples)
    if guidance:
        other = generator_of(run.guided(1.0))
        assert not torch.allclose(other(noise, labels), generator(noise, labels))


SCRIPT = """
import sys, json
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], session.run(None, given)[0])
inputs = {i.name: [i.shape, i.type] for i in session.get_inputs()}
facts = json.loads(session.get_modelmeta().custom_metadata_map["onestep"])
loaded = [name for name in ("torch", "onestep_core", "onestep_adapters") if name in sys.modules]
print(json.dumps([inputs, facts, loaded]))
"""

TORCH_SCRIPT = """
import sys
import numpy as np
import torch
program = torch.export.load(sys.argv[1]).module()
given = np.load(sys.argv[2])
np.save(sys.argv[3], program(torch.from_numpy(given["noise"]), torch.from_numpy(given["labels"])).numpy())
print([name for name in ("onestep_core", "onestep_adapters") if name in sys.modules])
"""


def in_a_fresh_process(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_run_in_a_process_without_this_library(tmp_path):
    network = awake(DiT((1, 8, 8), width=16, depth=1, heads=2, times=2, classes=3))
    generator = jump_generator(network, path=Linear(), shape=(1, 8, 8), classes=3)
    noise, labels = torch.randn(6, 1, 8, 8, generator=seeded(2)), torch.tensor([0, 1, 2, 0, 1, 3])
    np.savez(tmp_path / "given.npz", noise=noise.numpy(), labels=labels.numpy())
    given, out = tmp_path / "given.npz", tmp_path / "out.npy"
    expected = one_step(partial(network, label=labels), noise, path=Linear()).detach()

    file = export(generator, tmp_path / "g.onnx", format="onnx", facts={"method": "demo"})
    inputs, facts, modules = json.loads(in_a_fresh_process(SCRIPT, file, given, out))
    assert inputs == {"noise": [["batch", 1, 8, 8], "tensor(float)"], "labels": [["batch"], "tensor(int64)"]}
    assert facts == {"noise": [1, 8, 8], "classes": 3, "method": "demo"}
    assert modules == []
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected, rtol=1e-4, atol=1e-5)

    file = export(generator, tmp_path / "g.pt2", format="torch")
    assert in_a_fresh_process(TORCH_SCRIPT, file, given, out).strip() == "[]"
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected, rtol=1e-4, atol=1e-5)


def shape_of(network):
    return network.shape


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(sigma_min=0.002, sigma_max=80.0)], ids=["linear", "edm"])
def test_generators_equal_the_samplers(path):
    """Each kind, against the sampler of the same meaning."""
    two, one, zero = (awake(MLP((3,), width=8, depth=1, times=times, classes=4)) for times in (2, 1, 0))
    noise, labels = torch.randn(5, 3, generator=seeded(1)), torch.tensor([0, 1, 2, 3, 4])
    z, ends = path.prior(noise), [path.noise_time, path.data_time]
    form = partial(denoiser_from_velocity, path=path)
    with torch.no_grad():
        pairs = [
            (jump_generator(two, path=path, shape=(3,), classes=4), one_step(bound(two, labels), noise, path=path)),
            (
                flow_map_generator(two, path=path, shape=(3,), classes=4),
                multistep(bound(two, labels), z, ends, path=path),
            ),
            (
                consistency_generator(one, path=path, shape=(3,), classes=4, form=form),
                consistency_multistep(form(bound(one, labels)), z, ends, path=path, noise=None),
            ),
            (direct_generator(zero, shape=(3,), classes=4), zero(noise, label=labels)),
        ]
        for generator, expected in pairs:
            torch.testing.assert_close(generator(noise, labels), expected, rtol=0, atol=0)


def bound(network, labels):
    return lambda *inputs: network(*inputs, label=labels)


@pytest.mark.parametrize(
    "network",
    [
        ConvNet((1, 8, 8), width=8, depth=1, times=2),
        UNet((2, 16, 12), width=8, depth=1, times=2, multipliers=(1, 2), attention_heights=(16,)),
    ],
    ids=["conv", "unet"],
)
def test_a_network_in_training_mode_is_exported_in_evaluation_mode_and_not_touched(network, tmp_path):
    awake(network).train()
    generator = jump_generator(network, path=Linear(), shape=network.shape)
    file = export(generator, tmp_path / "g.pt2", format="torch")
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    noise = torch.randn(1, *network.shape, generator=seeded(1))
    expected = one_step(network, noise, path=Linear()).detach()
    torch.testing.assert_close(loaded(file)(noise), expected, rtol=1e-4, atol=1e-5)


class Wrong(nn.Module):
    """It computes something else while it is exported."""

    def forward(self, noise):
        return noise + 0.01 if torch.compiler.is_exporting() else noise


class Undecided(nn.Module):
    """What it computes depends on values."""

    def forward(self, noise):
        return -noise if bool(noise.sum() > 0) else noise


class OneBatchSize(nn.Module):
    def forward(self, noise):
        return noise * torch.ones(len(noise), 1)


@pytest.mark.parametrize("format", ["torch", "onnx"])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Wrong(), "differs from the generator by up to 0.01"),
        (Undecided(), "torch.export cannot export this generator"),
        (OneBatchSize(), "its code depends on the batch size"),
    ],
    ids=["other numbers", "depends on values", "one batch size"],
)
def test_what_cannot_be_exported_leaves_the_file_as_it_was(network, message, format, tmp_path):
    file = tmp_path / {"torch": "g.pt2", "onnx": "g.onnx"}[format]
    file.write_bytes(b"before")
    generator = Generator(network, lambda network, noise, labels: network(noise), shape=(2,))
    with pytest.raises(ExportError, match=message) as raised:
        export(generator, file, format=format)
    assert "\n" not in str(raised.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(file.name, b"before")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: export(direct_generator(nn.Linear(2, 2), shape=(2,)), "g.onnx", format="torch"), "ends with .pt2"),
        (lambda: export(direct_generator(nn.Linear(2, 2), shape=(2,)), "g.pt2", format="tflite"), "'tflite'"),
        (lambda: direct_generator(nn.Linear(2, 2), shape=(0,)), "shape = 0"),
        (lambda: direct_generator(nn.Linear(2, 2), shape=(2,), classes=0), "classes = 0"),
        (lambda: direct_generator(nn.Linear(2, 2), shape=(2,))(torch.ones(1, 3)), "expected .batch, 2"),
        (lambda: direct_generator(nn.Linear(2, 2), shape=(2,), classes=2)(torch.ones(1, 2)), "2 classes.*and labels"),
        (lambda: direct_generator(nn.Linear(2, 2), shape=(2,))(torch.ones(1, 2), torch.ones(1)), "no classes.*alone"),
        (lambda: generator_of(start_run("flow-matching", "8gaussians")), "takes .* only generators of one evaluation"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
