"""Features of any network: values, gradients, and everything that they must not depend on."""

import copy
import threading

import pytest
import torch
from torch import nn

from onestep_adapters.encoders import Encoder, features_of, multiscale, unmasked
from onestep_core import per_sample
from onestep_core.errors import ConfigError
from onestep_core.protocols import Features
from tests.adapters.encoders.networks import NETWORKS, Plain, awake, network
from tests.adapters.tiny import seeded

F64 = torch.float64
PREFIX = {"vit": 1, "dinov2": 1, "registers": 5, "vitmae": 1}


def images(side, count=3, channels=3, dtype=F64):
    return torch.rand(count, channels, side, side, generator=seeded(5), dtype=dtype) * 2 - 1


def made(name, **options):
    module, layers, side = network(name)
    call = unmasked if name == "vitmae" else None
    return multiscale(module.double(), layers, call=call, **options), module, images(side)


def hooked(module, layers, run):
    """What the layers return, by hooks written out; the first tensor of a tuple."""
    found, handles = {}, []
    for name in layers:

        def record(_, inputs, output, name=name):
            found[name] = (output if isinstance(output, torch.Tensor) else output[0]).clone()

        handles.append(module.get_submodule(name).register_forward_hook(record))
    with torch.no_grad():
        run(module)
    for handle in handles:
        handle.remove()
    return found


def windows(x, side):
    """Lists of the locations of every patch of a map, row by row; smaller ones at the edges."""
    height, width = x.shape[2:]
    return [
        x[:, :, top : top + side, left : left + side].flatten(2)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_hooks_written_out(name):
    features, module, x = made(name)
    found = features(x)
    assert isinstance(features, Features)
    run = {"vitmae": lambda m: unmasked(m, x)}.get(name, lambda m: m(x))
    outputs = hooked(copy.deepcopy(module).eval(), features.layers, run)
    expected = {"input/square": (x * x).mean((2, 3))[:, None]}
    for layer, output in outputs.items():
        if output.ndim == 3:
            before = PREFIX[name]
            expected[f"{layer}/class"] = output[:, :1]
            output = output[:, before:].transpose(1, 2).reshape(3, -1, 4, 4)
        if output.ndim == 2 or output.shape[2:] == (1, 1):
            expected[f"{layer}/location"] = output.reshape(3, 1, -1)
            continue
        expected[f"{layer}/location"] = output.flatten(2).transpose(1, 2)
        expected[f"{layer}/mean"] = output.flatten(2).mean(2)[:, None]
        expected[f"{layer}/std"] = output.flatten(2).std(2, correction=0)[:, None]
        for side in (2, 4):
            if side < output.shape[2]:
                parts = windows(output, side)
                expected[f"{layer}/patch{side}-mean"] = torch.stack([part.mean(2) for part in parts], 1)
                expected[f"{layer}/patch{side}-std"] = torch.stack([part.std(2, correction=0) for part in parts], 1)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.ndim == 3
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_the_images_alone_and_nothing_of_the_network_moves(name):
    module, layers, side = network(name)
    module.double().train()
    before = copy.deepcopy(module.state_dict())
    features = multiscale(module, layers, call=unmasked if name == "vitmae" else None)
    x = images(side).requires_grad_()
    first, second = features(x), features(x)
    assert all(torch.equal(first[key], second[key]) for key in first), "the same features twice"
    nn.ModuleList([module]).train()
    sum(feature.square().mean() for feature in first.values()).backward()
    assert (x.grad != 0).any(1).flatten(1).float().mean(1).min() > 0.9
    for part in (module, features.module):
        assert all(p.grad is None for p in part.parameters())
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
        assert not any(m._forward_hooks for m in part.modules())
    assert all(m.training for m in module.modules()), "the network that was given is not touched"
    # Training goes on with the network; the features stay.
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    features.module.train()
    assert all(torch.equal(first[key], value) for key, value in features(x).items())


@pytest.mark.parametrize("name", NETWORKS)
def test_features_depend_neither_on_the_batch_nor_on_the_chunk(name):
    features, module, x = made(name)
    whole = features(x)
    alone = [features(image[None]) for image in x]
    chunked = multiscale(module, features.layers, call=features.call, chunk=2)
    inside, given = x.clone().requires_grad_(), x.clone().requires_grad_()
    parts = chunked(given)
    for key, feature in whole.items():
        torch.testing.assert_close(torch.cat([one[key] for one in alone]), feature, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts[key], feature, rtol=1e-12, atol=1e-12)
    sum(feature.square().sum() for feature in features(inside).values()).backward()
    sum(feature.square().sum() for feature in parts.values()).backward()
    torch.testing.assert_close(given.grad, inside.grad, rtol=1e-10, atol=1e-12)


def test_chunks_keep_nothing_for_the_backward_pass_but_their_images():
    module, layers, side = network("resnet")
    x, kept = images(side, count=6, dtype=torch.float32).requires_grad_(), {}
    for chunk in (None, 2):
        numbers = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t)
        features = multiscale(module, layers, chunk=chunk)
        with hooks:
            features(x)
        kept[chunk] = sum(numbers)
    assert kept[None] > 10 * x.numel()
    assert kept[2] <= 2 * x.numel()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_differences_also_by_transforms(name):
    features, _, x = made(name, patches=(2,))

    weights = {key: torch.randn(value.shape, generator=seeded(1), dtype=F64) for key, value in features(x).items()}

    def weighted(x):
        return sum((features(x)[key] * weights[key]).sum() for key in weights)

    gradient = torch.func.grad(weighted)(x)
    direction, step = torch.randn(x.shape, generator=seeded(2), dtype=F64), 1e-6
    slope = (weighted(x + step * direction) - weighted(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, tangent = torch.func.jvp(weighted, (x,), (direction,))
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["plain", "resnet", "vit"])
def test_features_of_each_sample_by_vmap(name):
    features, _, x = made(name)
    for key, feature in features(x).items():
        torch.testing.assert_close(per_sample(lambda x, key=key: features(x)[key])(x)[:, 0], feature)


def test_a_deviation_of_zero_has_a_gradient_of_zero():
    features = multiscale(nn.Identity(), [""], patches=(2,))
    x = torch.ones(2, 1, 5, 5, requires_grad=True)
    found = features(x)
    assert not found["output/std"].any()
    assert not found["output/patch2-std"].any()
    (found["output/std"].sum() + found["output/patch2-std"].sum()).backward()
    assert not x.grad.any()


def test_half_precision_is_the_network_s_alone():
    module, layers, side = network("resnet")
    exact, half = multiscale(module, layers), multiscale(module, layers, dtype=torch.bfloat16)
    x = images(side, dtype=torch.float32).requires_grad_()
    found = half(x)
    for key, feature in exact(x).items():
        assert found[key].dtype == torch.float32
        error = (found[key] - feature).norm() / feature.norm()
        assert error < 0.02
        assert key == "input/square" or error > 0
    sum(feature.sum() for feature in found.values()).backward()
    assert x.grad.isfinite().all()
    # A network of half precision: its weights' precision counts.
    assert multiscale(module.bfloat16(), layers)(x)["encoder.stages.0/mean"].dtype == torch.float32


def test_images_are_repeated_resized_and_normalised_inside():
    identity = nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1))
    grey = images(8, channels=1)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

    def seen(x, **options):
        found = multiscale(identity.double(), ["0"], patches=(), **options)(x)["0/location"]
        return found.transpose(1, 2).unflatten(2, (options.get("size") or 8, -1))

    plain = (grey.expand(-1, 3, -1, -1) - torch.tensor(mean, dtype=F64)[:, None, None]) / torch.tensor(std, dtype=F64)[
        :, None, None
    ]
    torch.testing.assert_close(seen(grey, mean=mean, std=std), plain)
    # Halving with the triangle of twice the width: weights 1, 3, 3, 1 of neighbours, so that a linear image stays it.
    ramp = torch.arange(16, dtype=F64).expand(1, 3, 16, 16) / 16
    torch.testing.assert_close(seen(ramp, size=8)[..., 1:-1], ramp[..., :8, 2:-2].unfold(3, 2, 2).mean(-1))
    enlarged = multiscale(identity, ["0"], patches=(), least=12)(grey)["0/location"]
    assert enlarged.shape[1] == 12 * 12
    with pytest.raises(ConfigError, match="images of 2 channels: the network takes 3"):
        seen(images(8, channels=2))


def test_an_encoder_s_own_layers_and_others():
    encoder = Encoder(awake(Plain()), ("second",), channels=3, size=6, mean=(0.5,), std=(2.0,))
    x = images(8, channels=1, dtype=torch.float32)
    found = features_of(encoder, patches=())(x)
    assert found.keys() == {"second/location", "second/mean", "second/std", "input/square"}
    assert found["second/location"].shape == (3, 9, 10)
    small = nn.functional.interpolate(x.expand(-1, 3, -1, -1), (6, 6), mode="bilinear", antialias=True)
    expected = encoder.module.eval().first((small - 0.5) / 2)
    torch.testing.assert_close(features_of(encoder, ["first"])(x)["first/mean"][:, 0], expected.mean((2, 3)))


def test_threads_and_copies_do_not_meet():
    features, _, x = made("plain")
    expected = {len(part): features(part) for part in (x[:1], x)}
    wrong = []

    def work(part):
        for _ in range(50):
            found = features(part)
            if not all(torch.allclose(found[key], value) for key, value in expected[len(part)].items()):
                wrong.append(len(part))

    threads = [threading.Thread(target=work, args=(part,)) for part in (x[:1], x)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    copied = copy.deepcopy(features)
    assert copied.module is not features.module
    with torch.no_grad():
        copied.module.second.weight.zero_()
    assert not torch.equal(copied(x)["second/std"], features(x)["second/std"])
    assert torch.equal(features(x)["second/std"], expected[3]["second/std"])


# Layouts.


class _Layout(nn.Module):
    """A layer whose output has another layout than it says."""

    def __init__(self, *order):
        super().__init__()
        self.layer, self.order = _Permuted(order), order

    def forward(self, x):
        return self.layer(x)


class _Permuted(nn.Conv2d):
    def __init__(self, order):
        super().__init__(3, 5, 1)
        self.order_of_axes = order

    def forward(self, x):
        x = super().forward(x)
        return (x.flatten(2) if len(self.order_of_axes) == 3 else x).permute(self.order_of_axes)


def test_a_swapped_channel_axis_is_refused_where_the_layer_tells_it():
    x = images(8, dtype=torch.float32)
    last = _Layout(0, 2, 3, 1)
    with pytest.raises(ConfigError, match=r"5 channels and returned \[3, 8, 8, 5\].*channels_last=True"):
        multiscale(last, ["layer"])(x)
    found = multiscale(last, ["layer"], channels_last=True)(x)["layer/location"]
    torch.testing.assert_close(found, last(x).flatten(1, 2))
    with pytest.raises(ConfigError, match=r"axis 3 should hold.*axis 1 does"):
        multiscale(_Layout(0, 1, 2, 3), ["layer"], channels_last=True)(x)
    with pytest.raises(ConfigError, match="axis 2 should hold the channels and axis 1"):
        multiscale(_Layout(0, 1, 2), ["layer"])(x)
    assert multiscale(_Layout(0, 2, 1), ["layer"])(x)["layer/location"].shape == (3, 64, 5)
    with pytest.raises(ConfigError, match="first axis is not the batch"):
        multiscale(_Layout(1, 0, 2, 3), ["layer"])(x)


def test_maps_of_a_transformer_with_channels_last():
    """Windows of Swin: tokens without a class token, on every level another grid."""
    from transformers import SwinConfig, SwinModel

    swin = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    )
    found = multiscale(swin, ["encoder.layers.0", "encoder.layers.1"])(images(16, dtype=torch.float32))
    assert found["encoder.layers.0/location"].shape == (3, 16, 16)
    assert found["encoder.layers.1/location"].shape == (3, 16, 16)
    assert not any(key.endswith("class") for key in found)


@pytest.mark.parametrize(
    ("tokens", "size", "prefix", "grid"),
    [
        (197, (224, 224), None, (14, 14)),
        (261, (224, 224), None, (16, 16)),
        (257, (224, 224), None, (16, 16)),
        (225, (224, 256), None, (14, 16)),
        (49, (224, 224), None, (7, 7)),
        (17, (28, 28), 1, (4, 4)),
        (197, (225, 226), None, (14, 14)),
    ],
)
def test_the_grid_of_tokens_follows_from_the_images(tokens, size, prefix, grid):
    from onestep_adapters.encoders.maps.outputs import as_map

    read = as_map(torch.zeros(2, tokens, 3), "x", nn.Identity(), batch=2, size=size, prefix=prefix)
    assert read.map.shape == (2, 3, *grid)
    assert (read.token is None) == (tokens == grid[0] * grid[1])


def test_the_network_says_how_many_tokens_come_before_the_patches():
    """Five tokens before four patches, which the shape of the images alone does not tell; none after the embedding."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    module = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, mlp_ratio=2))
    found = multiscale(module, ["encoder.layer.0", "embeddings.patch_embeddings"])(images(8, dtype=torch.float32))
    assert found["encoder.layer.0/location"].shape == (3, 4, 8)
    assert found["embeddings.patch_embeddings/location"].shape == (3, 4, 8)
    assert "embeddings.patch_embeddings/class" not in found

    class Timm(nn.Module):
        num_prefix_tokens = 2

        def forward(self, x):
            return nn.functional.pad(x.flatten(2).transpose(1, 2), (0, 0, 2, 0))

    found = multiscale(Timm(), [""])(torch.ones(1, 3, 1, 2))
    assert found["output/location"].tolist() == [[[1.0] * 3] * 2]
    assert found["output/class"].tolist() == [[[0.0] * 3]]


def test_tokens_that_form_no_grid_are_refused():
    from onestep_adapters.encoders.maps.outputs import as_map

    for tokens, prefix in ((12, None), (18, 1), (240, None)):
        with pytest.raises(ConfigError, match="form no grid"):
            as_map(torch.zeros(2, tokens, 3), "x", nn.Identity(), batch=2, size=(16, 16), prefix=prefix)


# Errors.


def test_a_network_that_masks_its_input_needs_a_call():
    module, layers, side = network("vitmae")
    with pytest.raises(ConfigError, match=r"call=onestep_adapters\.encoders\.unmasked"):
        multiscale(module, layers)
    multiscale(module, layers, call=unmasked)(images(2 * side, dtype=torch.float32))
    assert module.config.mask_ratio == 0.75, "the configuration given is not touched"


def test_small_images_for_a_transformer():
    module, layers, side = network("vit")
    x = images(side // 2, dtype=torch.float32)
    assert multiscale(module, layers, size=side)(x)["layers.0/location"].shape[1] == 16
    larger = multiscale(module, layers, call=lambda m, x: m(x, interpolate_pos_encoding=True))(x)
    assert larger["layers.0/location"].shape[1] == 4


class _Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.used(x)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["usde"],), {}, "no layer 'usde': the nearest are used"),
        ((["spare"],), {}, r"\['spare'\] were not evaluated"),
        ((["relu"],), {}, "'relu' is evaluated several times"),
        (("used",), {}, "expected a list"),
        (([],), {}, "expected a list"),
        ((["used", "used"],), {}, "expected a list"),
        ((["used"],), {"patches": (1,)}, r"patches = \(1,\)"),
        ((["used"],), {"patches": (0,)}, r"patches = \(0,\)"),
        ((["used"],), {"patches": (2.5,)}, r"patches = \(2.5,\): expected whole"),
        ((["used"],), {"chunk": 0}, "chunk = 0"),
        ((["used"],), {"chunk": 1.5}, "chunk = 1.5: expected a whole number"),
        ((["used"],), {"least": 0}, "least = 0"),
        ((["used"],), {"channels": 0}, "channels = 0"),
        ((["used"],), {"prefix": -1}, "prefix = -1: expected a whole number of at least 0"),
        ((["used"],), {"size": 0}, r"size = \(0, 0\): expected a height"),
        ((["used"],), {"size": (4, 4.0)}, r"size = \(4, 4.0\)"),
        ((["used"],), {"size": 4.0}, "size = 4.0: expected a height"),
        ((["used"],), {"size": (4,)}, r"size = \(4,\)"),
        ((["used"],), {"std": (0.0,)}, r"std = \(0.0,\)"),
        ((["used"],), {"mean": (0.0, 1.0)}, "one for each channel"),
        ((["used"],), {"output": lambda found: None}, "returned NoneType"),
    ],
)
def test_errors_say_what_to_do(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        multiscale(_Unused(), *arguments, **options)(images(4, dtype=torch.float32))


def test_numbers_for_each_channel_are_compared_with_the_images_where_the_network_does_not_tell():
    features = multiscale(nn.Identity(), [""], mean=(1, 2))
    with pytest.raises(ConfigError, match=r"images of 3 channels for mean = \(1, 2\)"):
        features(images(4))
    assert features(images(4, channels=2))["output/mean"].shape == (3, 1, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_batch_is_refused(name):
    features, _, x = made(name)
    with pytest.raises(ConfigError, match="expected at least one image"):
        features(x[:0])


def test_a_submodule_called_output_is_not_the_network_itself():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return 2 * self.output(x)

    x = images(4, dtype=torch.float32)
    assert multiscale(Named(), ["output"])(x)["output/location"].shape == (3, 16, 4)
    both = multiscale(Named(), ["output", ""])(x)
    torch.testing.assert_close(both[".output/location"], 2 * both["output/location"])


def test_hooks_are_removed_when_the_network_fails():
    features = multiscale(_Unused(), ["relu"])
    with pytest.raises(ConfigError):
        features(images(4, dtype=torch.float32))
    with pytest.raises(ConfigError, match="refuses images of 2 channels"):
        multiscale(_Unused(), ["used"], channels=2)(torch.zeros(1, 2, 4, 4))
    assert not any(part._forward_hooks for part in features.module.modules())
    with pytest.raises(ConfigError, match="expected floating point"):
        features(torch.zeros(3, 4, 4))
    with pytest.raises(ConfigError, match=r"expected an nn\.Module"):
        multiscale(lambda x: x, ["used"])
