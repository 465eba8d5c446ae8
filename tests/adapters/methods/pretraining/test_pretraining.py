"""Pretraining of encoders: runs train, resume bit for bit, count their calls, refuse what they cannot use."""

import json

import attrs
import pytest
import torch
from torch import nn

from onestep_adapters.data import ArrayDataset, Batch
from onestep_adapters.encoders import Augmentation, ResidualEncoder, VisionTransformer, info_nce, patchify, pooled
from onestep_adapters.methods import ENCODERS, MAE, Architecture, FineTuning, MoCo, SimCLR, Training
from onestep_adapters.methods.options import from_dict
from onestep_adapters.methods.pretraining.moco import MOMENTUM, QUEUE
from onestep_adapters.runs import open_run, start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import assert_same_weights, flat, logged, prepared, seeded, trained_to

SIZES = {"residual": Architecture(width=8, depth=2), "vit": Architecture("vit", width=16, depth=2, heads=2)}


def options(name, steps=3, **changes):
    """A preset with a small network and few updates."""
    preset = ENCODERS[name].images
    training = attrs.evolve(preset.training, steps=steps, batch=16, checkpoint_every=2)
    return attrs.evolve(preset, training=training, network=SIZES[preset.network.architecture], **changes)


CASES = {
    "simclr": lambda: options("simclr", monitor_every=2),
    "simclr vit": lambda: attrs.evolve(options("simclr"), network=SIZES["vit"]),
    "moco": lambda: options("moco", queue_size=40),
    "moco v3": lambda: options("moco", queue_size=0, precision="bfloat16"),
    "mae": lambda: options("mae"),
    "fine-tuning": lambda: options("fine-tuning", head_only=1),
}


def started(case):
    return start_run(case.split()[0], "digits", CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_an_encoder_and_logs_its_monitors(case):
    run = started(case)
    before, records = flat(run.state.network), list(run.updates())
    assert [record.step for record in records] == [1, 2, 3]
    assert not torch.equal(before, flat(run.state.network))
    assert {"rank", "spread", "knn"} <= records[0].logs.keys()
    assert "rank" not in records[1].logs
    assert ("rank" in records[2].logs) == (run.options.monitor_every == 2)
    assert set(run.options.monitors) <= {"loss", *records[0].logs}
    encoder = run.options.encoder_of(run.state.ema, run.data, key="k")
    assert (encoder.channels, encoder.key) == (1, "k")
    assert set(encoder.layers) <= dict(encoder.module.named_modules()).keys()
    assert pooled(encoder.module(torch.zeros(2, 1, 8, 8))).shape[0] == 2
    with pytest.raises(ConfigError, match="onestep evaluate RUN"):
        run.samples(3, generator=seeded())
    with pytest.raises(ConfigError, match="generates no samples"):
        run.options.sample(run.state.ema, torch.zeros(1, 1, 8, 8), None)


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_bit_for_bit(case, tmp_path):
    whole = started(case)
    list(whole.updates())
    trained_to(started(case), 2, tmp_path)
    resumed = open_run(tmp_path)
    list(resumed.updates(tmp_path))
    assert_same_weights(whole.state, resumed.state)
    assert logged(resumed.state) == logged(whole.state)
    assert_same_weights(whole.state, open_run(tmp_path).state)


@pytest.mark.parametrize("case", CASES)
def test_options_survive_json_and_points_are_refused(case):
    chosen = CASES[case]()
    assert from_dict(type(chosen), json.loads(json.dumps(attrs.asdict(chosen)))) == chosen
    with pytest.raises(ConfigError, match="encoders need images"):
        start_run(case.split()[0], "8gaussians", chosen)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_preset_of_points_says_that_images_are_needed(name):
    with pytest.raises(ConfigError, match="encoders need images"):
        start_run(name, "8gaussians")


@pytest.mark.parametrize("case", CASES)
def test_an_update_encodes_as_often_as_it_says(case):
    run = started(case)
    context = prepared(run)
    context.state.step = 1  # no monitors
    rows = 0

    def count(_module, inputs):
        nonlocal rows
        rows += len(inputs[0])

    modules = [run.options.inner(run.state.network)]
    if MOMENTUM in run.state.companions:
        modules.append(context.companion(MOMENTUM).encoder)
    for module in modules:
        module.register_forward_pre_hook(count)
    run.options.loss(context, run.state.network, seeded())
    assert rows == run.options.calls * run.options.training.batch


def test_the_momentum_encoder_follows_and_the_queue_takes_its_keys():
    run = started("moco")
    context, network = prepared(run), run.state.network
    keys_of, queue = context.companion(MOMENTUM), context.companion(QUEUE)
    assert not any(p.requires_grad for p in keys_of.parameters())
    assert torch.equal(flat(keys_of.encoder), flat(network.encoder))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    old, there = flat(keys_of), flat(nn.ModuleList([network.encoder, network.projector]))
    negatives, generator = queue.negatives(), seeded()
    loss, _ = run.options.loss(context, network, generator)
    m = run.options.momentum
    torch.testing.assert_close(flat(keys_of), m * old + (1 - m) * there)
    generator = seeded()
    images = run.data.batch(16, generator).data
    first, second = (run.options.augmentation(images, generator) for _ in range(2))
    expected = info_nce(network(first), keys_of(second), negatives, temperature=run.options.temperature)
    torch.testing.assert_close(loss, expected.mean())
    unit = nn.functional.normalize(keys_of(second), dim=1)
    torch.testing.assert_close(queue.keys[:16], unit)
    assert torch.equal(queue.keys[16:], negatives[16:])
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_masked_autoencoder_is_judged_on_hidden_patches_alone():
    run = started("mae")
    context = prepared(run)
    context.state.step = 1
    loss, _ = run.options.loss(context, run.state.network, seeded())
    loss.backward()
    for name, parameter in run.state.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    images = run.data.split("validation").data[:5]
    masked, filled = run.options.reconstructed(run.state.ema, images, seeded())
    hidden = (patchify(masked, 2) == 0).all(2)
    assert (hidden.sum(1) >= 12).all()
    assert torch.equal(patchify(filled, 2)[~hidden], patchify(images, 2)[~hidden])
    assert not torch.equal(filled, images)
    with pytest.raises(ConfigError, match="--architecture vit"):
        start_run("mae", "digits", attrs.evolve(run.options, network=SIZES["residual"]))


def encoder_of_a_run(case="mae"):
    run = started(case)
    list(run.updates())
    return run.options.encoder_of(run.state.ema, run.data)


def test_fine_tuning_starts_from_the_encoder_that_is_given():
    encoder = encoder_of_a_run()
    run = start_run("fine-tuning", "digits", options("fine-tuning", encoder_from="a run"), encoder=encoder)
    prepared(run)
    for network in (run.state.network, run.state.ema):
        assert torch.equal(flat(network.encoder), flat(encoder.module))
    list(run.updates())
    assert not torch.equal(flat(run.state.network.encoder), flat(encoder.module))
    with pytest.raises(ConfigError, match="no encoder 'a run'"):
        start_run("fine-tuning", "digits", options("fine-tuning", encoder_from="a run"))
    other = start_run("fine-tuning", "digits", attrs.evolve(options("fine-tuning"), network=SIZES["residual"]))
    other.encoder = encoder
    with pytest.raises(ConfigError, match="give the architecture options"):
        prepared(other)


def test_the_head_is_trained_first():
    run = start_run("fine-tuning", "digits", options("fine-tuning", head_only=2))
    before, head = flat(run.state.network.encoder), flat(run.state.network.head)
    trained_to(run, 2)
    assert torch.equal(flat(run.state.network.encoder), before)
    assert not torch.equal(flat(run.state.network.head), head)
    list(run.updates())
    assert not torch.equal(flat(run.state.network.encoder), before)


def images(count=60, labels=None, shape=(3, 12, 16)):
    data = torch.rand(count, *shape, generator=seeded()) * 2 - 1
    return ArrayDataset("mine", Batch(data, labels))


@pytest.mark.parametrize("name", ["simclr", "moco", "mae"])
def test_images_without_classes_and_of_any_size_are_enough(name):
    run = start_run(name, images(), options(name))
    logs = next(iter(run.updates())).logs
    assert "rank" in logs
    assert "knn" not in logs


def test_fine_tuning_needs_classes():
    with pytest.raises(ConfigError, match="no classes"):
        start_run("fine-tuning", images(), options("fine-tuning"))


class ForeignViT(SimCLR):
    """SimCLR of a network of the transformers library."""

    def make_encoder(self, data, generator):
        from transformers import ViTConfig, ViTModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        channels, side, _ = data.shape
        return ViTModel(ViTConfig(image_size=side, patch_size=2, num_channels=channels, **sizes))


class ForeignResNet(MoCo):
    """MoCo of a network of the transformers library."""

    def make_encoder(self, data, generator):
        from transformers import ResNetConfig, ResNetModel

        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        return ResNetModel(ResNetConfig(num_channels=data.shape[0], **sizes))


@pytest.mark.parametrize("kind", [ForeignViT, ForeignResNet])
def test_a_network_of_transformers_is_pretrained(kind):
    method = kind(Training(steps=2, batch=8), monitor_every=1)
    run = start_run("mine", "digits", method)
    before = flat(run.state.network)
    records = list(run.updates())
    assert all(record.logs["rank"] > 1 for record in records)
    assert not torch.equal(before, flat(run.state.network))
    encoder = method.encoder_of(run.state.ema, run.data)
    assert encoder.layers == ("",)


def test_architectures_fit_the_size_of_the_images():
    def built(architecture, side):
        return Architecture(architecture).build(images(10, shape=(1, side, side)), seeded())

    assert built("residual", 8).input.stride == (1, 1)
    assert built("residual", 28).input.stride == (2, 2)
    assert isinstance(built("residual", 28), ResidualEncoder)
    assert [built("vit", side).patch for side in (8, 16, 28, 32, 64)] == [2, 4, 4, 4, 8]
    assert isinstance(built("vit", 8), VisionTransformer)
    with pytest.raises(ConfigError, match="too small"):
        built("vit", 3)


def test_augmentations_and_temperatures_change_the_loss():
    def loss(**changes):
        run = start_run("simclr", "digits", options("simclr", **changes))
        return next(iter(run.updates())).loss

    assert len({loss(), loss(temperature=0.5), loss(augmentation=Augmentation())}) == 3


def test_presets_of_all_methods_are_in_the_registry():
    assert {"simclr": SimCLR, "moco": MoCo, "mae": MAE, "fine-tuning": FineTuning} == {
        name: type(preset.images) for name, preset in ENCODERS.items()
    }
