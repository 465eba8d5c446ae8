"""EfficientNet-Lite0 with its real weights."""

import pytest
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.encoders import Encoder, features_of, pretrained_encoder
from onestep_core.errors import ConfigError


@pytest.fixture(scope="module")
def encoder():
    return pretrained_encoder("efficientnet-lite0")


def test_shapes_and_gradients(encoder):
    features = features_of(encoder, patches=(2,))
    x = torch.rand(2, 1, 28, 28).requires_grad_()
    found = features(x)
    shapes = {name: tuple(feature.shape[1:]) for name, feature in found.items()}
    assert shapes["_blocks.4/location"] == (16, 40)
    assert shapes["_blocks.10/location"] == (4, 112)
    assert shapes["_blocks.15/location"] == (1, 320)
    assert shapes["_blocks.4/patch2-std"] == (4, 40)
    sum(feature.square().mean() for feature in found.values()).backward()
    assert x.grad.abs().flatten(1).max(1).values.min() > 0
    assert all(p.grad is None for p in encoder.module.parameters())
    assert features_of(encoder)(torch.rand(1, 3, 64, 96))["_blocks.4/location"].shape == (1, 8 * 12, 40)


def test_features_depend_on_the_image_alone(encoder):
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    encoder.module.train()
    x = torch.rand(3, 3, 40, 32) * 2 - 1
    whole, again, chunked = features_of(encoder), features_of(encoder), features_of(encoder, chunk=2)
    found = whole(x)
    for name, feature in found.items():
        assert torch.equal(again(x)[name], feature)
        torch.testing.assert_close(chunked(x)[name], feature, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole(x[1:2])[name], feature[1:2], rtol=1e-4, atol=1e-4)
    assert encoder.module.training
    encoder.module.eval()
    assert all(torch.equal(value, before[name]) for name, value in encoder.module.state_dict().items())


def test_values_are_those_of_the_network_on_its_own_pixels(encoder):
    """Pixels of 0 to 255, by the formula of the package, at the size of its training."""
    pixels = torch.randint(0, 256, (2, 3, 224, 224)).float()
    expected = []
    handle = encoder.module._blocks[10].register_forward_hook(lambda *a: expected.append(a[2].clone()))
    with torch.no_grad():
        encoder.module((pixels - 127) / 128)
        handle.remove()
        found = features_of(encoder, ["_blocks.10"])(pixels / 127.5 - 1)["_blocks.10/location"]
    torch.testing.assert_close(found, expected[0].flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-4)


def test_the_weights_are_the_trained_ones(encoder):
    """Half of the errors of the same network with new weights, in leave-one-out 1-NN of digits."""
    images, labels = open_dataset("digits").split("train")
    images, labels = images[:150], labels[:150]

    def errors(module):
        with torch.no_grad():
            found = features_of(Encoder(module, ("_blocks.10",), channels=3, least=32), patches=())(images)
        x = found["_blocks.10/location"].flatten(1)
        near = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
        return int((labels[near] != labels).sum())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = type(encoder.module).from_name("efficientnet-lite0", image_size=None)
    assert 2 * errors(encoder.module) < errors(fresh)


def test_unknown_names_are_listed():
    with pytest.raises(ConfigError, match="known are efficientnet-lite0"):
        pretrained_encoder("resnet50")
