"""Published checkpoints in the modules of transformers: the same numbers, and what does not fit is named."""

import argparse
import pathlib
import re

import pytest
import torch
from safetensors.torch import save_file

from onestep_adapters.encoders import load_encoder, multiscale
from onestep_adapters.encoders.checkpoints.key_layouts import dinov2, published_name, resnet, vit
from onestep_adapters.encoders.loading import KINDS
from onestep_core.errors import ConfigError
from tests.adapters.encoders.published import prefixed, resnet_forward, resnet_state, vit_forward, vit_state
from tests.adapters.tiny import seeded

F64 = torch.float64


def images(side):
    return torch.randn(2, 3, side, side, generator=seeded(), dtype=F64)


def junk(*names):
    return {name: torch.randn(3, 3) for name in names}


def moco(state):
    """v2: the key encoder and the queue beside it, a head of two layers."""
    others = junk("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias", "module.queue", "module.queue_ptr")
    keys = prefixed({name: 2 * value for name, value in state.items()}, "module.encoder_k.")
    return {"epoch": 200, "arch": "resnet50", "state_dict": prefixed(state, "module.encoder_q.") | keys | others}


def moco_v1(state):
    return {"state_dict": prefixed(state, "module.encoder_q.") | junk("module.encoder_q.fc.weight")}


def moco_v3(state, part="base"):
    others = junk(
        f"module.{part}_encoder.fc.0.weight", f"module.{part}_encoder.head.0.weight", "module.predictor.0.weight"
    )
    return {"state_dict": prefixed(state, f"module.{part}_encoder.") | others}


def momentum_alone(state):
    return moco_v3(state, "momentum")


def sthalles(state):
    return {"state_dict": prefixed(state, "backbone.") | junk("backbone.fc.0.weight", "backbone.fc.2.weight")}


def converted(state):
    """torchvision's names, without the counters of batch normalisation."""
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return {"state_dict": kept | junk("fc.weight", "fc.bias")}


def mae(state):
    return {"model": state | junk("mask_token", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")}


def pooled(state):
    """MAE fine-tuned with global pooling."""
    renamed = {f"fc_{name}" if name.startswith("norm.") else name: value for name, value in state.items()}
    return {"model": renamed | junk("head.weight")}


def plain(state):
    return state


def chunked(state):
    """Blocks in chunks of one, as DINOv2's training saves them."""
    renamed = {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): value for name, value in state.items()}
    return {"teacher": prefixed(renamed, "backbone.") | junk("dino_head.last_layer.weight")}


def with_mask_token(state):
    return state | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


RESNETS = [("moco", moco), ("moco", moco_v1), ("moco-v3", moco_v3), ("simclr", sthalles), ("simclr", converted)]
VITS = [
    ("moco-v3", moco_v3, {}),
    ("moco-v3", momentum_alone, {"depth": 1}),
    ("mae", mae, {}),
    ("mae", plain, {"bias": False, "patch": 2}),
    ("mae", pooled, {}),
    ("dinov2", plain, {"scales": True, "hidden": 32}),
    ("dinov2", chunked, {"scales": True, "hidden": 32, "depth": 3}),
    ("dinov2", with_mask_token, {"scales": True, "hidden": 32, "registers": 4}),
    ("dinov2", plain, {"scales": True, "gated": True, "registers": 2}),
]


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize(("kind", "layout"), RESNETS)
def test_a_resnet_gives_the_numbers_of_its_weights(kind, layout, bottleneck):
    state = resnet_state(bottleneck=bottleneck)
    module = load_encoder(layout(state), kind=kind)
    assert not module.training
    x = images(32)
    stages = resnet_forward(state, x)
    with torch.no_grad():
        torch.testing.assert_close(module(x).last_hidden_state, stages[-1], rtol=1e-10, atol=1e-10)
    found = multiscale(module, [f"encoder.stages.{stage}" for stage in range(4)])(x)
    for number, stage in enumerate(stages):
        location = found[f"encoder.stages.{number}/location"]
        torch.testing.assert_close(location, stage.flatten(2).transpose(1, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "layout", "sizes"), VITS)
def test_a_transformer_gives_the_numbers_of_its_weights(kind, layout, sizes):
    state = vit_state(**sizes)
    module = load_encoder(layout(state), kind=kind, heads=2)
    x = images(8)
    expected = vit_forward(state, x, heads=2)
    with torch.no_grad():
        torch.testing.assert_close(module(x).last_hidden_state, expected, rtol=1e-10, atol=1e-10)
    found = multiscale(module, ["layernorm"])(x)
    torch.testing.assert_close(found["layernorm/class"], expected[:, :1], rtol=1e-10, atol=1e-10)
    before = expected.shape[1] - (8 // sizes.get("patch", 4)) ** 2
    torch.testing.assert_close(found["layernorm/location"], expected[:, before:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "width", "heads"), [("mae", 128, 2), ("mae", 1280, 16), ("moco-v3", 384, 12), ("dinov2", 384, 6)]
)
def test_the_number_of_heads_is_the_published_one(kind, width, heads):
    state = vit_state(width=width, depth=1, hidden=width, scales=kind == "dinov2")
    module = load_encoder((moco_v3 if kind == "moco-v3" else plain)(state), kind=kind)
    assert module.config.num_attention_heads == heads


def test_files(tmp_path):
    state = resnet_state(bottleneck=True)
    torch.save(moco(state), tmp_path / "moco.pth.tar")
    save_file({name: value.contiguous() for name, value in vit_state().items()}, tmp_path / "mae.safetensors")
    x = images(32)
    with torch.no_grad():
        found = load_encoder(tmp_path / "moco.pth.tar", kind="moco")(x).last_hidden_state
        torch.testing.assert_close(found, resnet_forward(state, x)[-1], rtol=1e-10, atol=1e-10)
        found = load_encoder(str(tmp_path / "mae.safetensors"), kind="mae", heads=4)(images(8)).last_hidden_state
        torch.testing.assert_close(found, vit_forward(vit_state(), images(8), heads=4), rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="a Tensor as checkpoint: expected a file or a state dict"):
        load_encoder(torch.zeros(3), kind="moco")
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        load_encoder(tmp_path, kind="moco")
    with pytest.raises(ConfigError, match="does not exist"):
        load_encoder(tmp_path / "other.pth", kind="moco")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        load_encoder(tmp_path / "broken.pth", kind="moco")


class _Runs:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("this was executed",))


def test_a_file_is_not_executed(tmp_path, capsys):
    torch.save({"state_dict": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_encoder(tmp_path / "evil.pth", kind="moco")
    assert "executed" not in capsys.readouterr().out


def test_values_of_a_command_line_beside_the_weights_are_read(tmp_path):
    state = vit_state()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, model="mae")}, tmp_path / "mae.pth")
    found = load_encoder(tmp_path / "mae.pth", kind="mae", heads=2).state_dict()
    assert torch.equal(found["layernorm.bias"], state["norm.bias"])


def test_another_class_beside_the_weights_is_named_in_one_line(tmp_path):
    torch.save({"model": vit_state(), "args": pathlib.PurePosixPath("/here")}, tmp_path / "mae.pth")
    with pytest.raises(ConfigError, match=r"holds an object of pathlib\.\S*PurePosixPath, which is no tensor") as error:
        load_encoder(tmp_path / "mae.pth", kind="mae", heads=2)
    assert str(error.value).isprintable()


def without(state, *beginnings):
    return {name: value for name, value in state.items() if not name.startswith(beginnings)}


def test_half_precision_is_loaded_as_float32():
    state = {name: value.half() if value.is_floating_point() else value for name, value in vit_state().items()}
    module = load_encoder(state, kind="mae", heads=2)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("layout", "state"),
    [
        (resnet, resnet_state(bottleneck=True)),
        (resnet, resnet_state(bottleneck=False)),
        (vit({}), vit_state()),
        (dinov2, vit_state(scales=True, gated=True, registers=2)),
        (dinov2, vit_state(scales=True, hidden=32)),
    ],
)
def test_every_weight_is_called_by_its_published_name_in_messages(layout, state):
    made = layout(state, 2)
    assert not made.weights.keys() & state.keys()
    assert {published_name(name, made.rules) for name in made.weights} == state.keys()


def test_what_does_not_fit_is_named():
    state = resnet_state(bottleneck=True)
    changed = dict(state) | {"layer1.1.extra.weight": torch.zeros(2)}
    del changed["layer1.0.bn1.running_var"]
    changed["layer2.0.conv2.weight"] = torch.zeros(8, 8, 5, 5, dtype=F64)
    with pytest.raises(ConfigError) as error:
        load_encoder(converted(changed), kind="simclr")
    told = str(error.value)
    assert "missing: layer1.0.bn1.running_var;" in told
    assert "unexpected: layer1.1.extra.weight" in told
    theirs = "encoder.stages.1.layers.0.layer.1.convolution.weight"
    assert f"layer2.0.conv2.weight ({theirs}) [8, 8, 5, 5] instead of [8, 8, 3, 3]" in told


@pytest.mark.parametrize(
    ("checkpoint", "kind", "message"),
    [
        (vit_state(), "moco", "it looks like 'mae'; expected one of"),
        (sthalles(resnet_state(bottleneck=True)), "mae", "it looks like 'simclr'"),
        (moco(resnet_state(bottleneck=True)), "moco-v3", "it looks like 'moco'"),
        (junk("a.weight"), "dinov2", r"its keys are a\.weight"),
        (vit_state(), "dino", "did you mean 'dinov2'"),
        ({}, "moco", "without tensors"),
        ({"state_dict": {"epoch": 3}}, "moco", "without tensors"),
        (vit_state(), "mae", "an unknown number of attention heads for a width of 16"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "simclr", r"has no 'layer1\.0\.conv1\.weight'"),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 4, 4)}, "mae", r"has no 'blocks\.0\.norm1\.weight'"),
        (sthalles(without(resnet_state(bottleneck=True), "layer4.")), "simclr", r"no weights of layer4: .* 4 stages"),
        (moco(without(resnet_state(bottleneck=False), "layer2.", "layer3.")), "moco", "no weights of layer2, layer3"),
        (without(resnet_state(bottleneck=True), "layer4.1.conv1"), "simclr", r"missing: layer4\.1\.conv1\.weight$"),
        (resnet_state(bottleneck=True) | {"conv1.weight": torch.zeros(4, 3)}, "simclr", r"'conv1.weight' .* 4 axes"),
        (without(vit_state(depth=4, width=64), "blocks.1.", "blocks.2."), "mae", r"none of blocks\.1, blocks\.2"),
        (without(vit_state(width=64), "blocks.1.attn.qkv.b"), "mae", r"missing: blocks\.1\.attn\.qkv\.bias$"),
        (
            vit_state(width=64) | {"patch_embed.proj.weight": torch.zeros(64, 48)},
            "mae",
            r"'patch_embed\.proj\.weight' of the checkpoint has the shape \[64, 48\]: expected 4 axes",
        ),
        (vit_state(width=64) | {"blocks.0.attn.qkv.weight": torch.zeros(100, 64)}, "mae", "expected 3 equal parts"),
        (
            vit_state(scales=True, depth=1) | {"blocks.0.0.ls1.gamma": torch.zeros(16)},
            "dinov2",
            "save it with block_chunks=0",
        ),
        ({**vit_state(), "extra": torch.zeros(1)}, "mae", "unexpected: extra"),
    ],
)
def test_errors_say_what_to_do(checkpoint, kind, message):
    heads = 2 if "extra" in checkpoint else None
    with pytest.raises(ConfigError, match=message):
        load_encoder(checkpoint, kind=kind, heads=heads)


def test_every_kind_is_tested():
    assert {kind for kind, *_ in RESNETS + VITS} == set(KINDS)
