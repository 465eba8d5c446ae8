"""Vision transformers of ``transformers``: pixels, positions, masks; as discriminator and as features."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from onestep_adapters.backbones import Critic
from onestep_adapters.backbones.transformers import HALF, IMAGENET, VisionTransformer
from onestep_adapters.encoders import multiscale, unmasked
from onestep_core.errors import ConfigError

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
MODELS = {
    "vit": (lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False), 1, HALF),
    "mae": (lambda: ViTMAEModel(ViTMAEConfig(**SIZES)), 1, IMAGENET),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SIZES)), 1, IMAGENET),
    "registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)), 5, IMAGENET),
}
EACH = pytest.mark.parametrize(("make", "prefix", "numbers"), MODELS.values(), ids=MODELS)


def made(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for p in model.parameters():  # positions start at zero in some
            p.data.add_(0.05 * torch.randn(p.shape))
    return model


def images(height=32, width=32, channels=3, count=2):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@EACH
def test_the_tokens_are_those_of_the_model_on_normalised_pixels(make, prefix, numbers):
    model, x = made(make), images()
    mean, std = (torch.tensor(part)[:, None, None] for part in numbers)
    pixels = ((x + 1) / 2 - mean) / std
    found = VisionTransformer(model)(x)
    given = {"noise": torch.arange(16).expand(2, -1)} if isinstance(model, ViTMAEModel) else {}
    torch.testing.assert_close(found, model(pixels, **given).last_hidden_state)
    assert found.shape == (2, prefix + 16, 16)
    assert VisionTransformer(model).num_prefix_tokens == prefix


@EACH
def test_other_sizes_interpolate_positions_and_size_resizes(make, prefix, numbers):
    network = VisionTransformer(made(make))
    assert network(images(48, 24)).shape == (2, prefix + 18, 16)
    resizing = VisionTransformer(network.model, size=32)
    assert resizing(images(28, 28)).shape == (2, prefix + 16, 16)
    torch.testing.assert_close(resizing(images()), network(images()))
    # Grey is repeated.
    grey = images(channels=1)
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))


def test_nothing_is_masked_and_the_order_is_kept():
    """Every patch reaches its own token: a change of one patch changes the embedding of that token alone."""
    network = VisionTransformer(made(MODELS["mae"][0]))
    x, seen = images(), []
    first = next(part for name, part in network.named_modules() if re.search(r"layers?\.0$", name))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    changed = x.clone()
    changed[:, :, 8:16, 16:24] += 0.5  # row 1, column 2 of four columns
    network(x), network(changed)
    differing = (seen[0] - seen[1]).abs().amax((0, 2)) > 1e-6
    assert differing.nonzero().flatten().tolist() == [1 + 4 + 2]


@EACH
def test_a_critic_reads_its_tokens_and_a_discriminator_learns(make, prefix, numbers):
    critic = Critic(VisionTransformer(made(make)), width=16, layer="", generator=torch.Generator().manual_seed(0))
    real, fake = images().abs(), -images().abs()
    assert critic(real).logits.shape == (2, prefix + 16)
    assert not critic(real).logits.any()
    descent = torch.optim.Adam(critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = (softplus(-critic(real).logits) + softplus(critic(fake).logits)).mean()
        losses.append(loss.item())
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert losses[-1] < 0.5 * losses[0]


@EACH
def test_multiscale_reads_its_layers(make, prefix, numbers):
    model = made(make)
    network = VisionTransformer(model)
    layer = next(name for name, part in network.named_modules() if re.search(r"layers?\.1$", name))
    x = images(32, 48).requires_grad_()
    features = multiscale(network, [layer], patches=(2,))(x)
    assert features[f"{layer}/location"].shape == (2, 24, 16)
    features[f"{layer}/location"].square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    # The same features without the wrapper.
    mean, std = numbers
    plain = multiscale(
        model, [layer.removeprefix("model.")], patches=(2,), mean=[2 * m - 1 for m in mean], std=[2 * s for s in std],
        **({"call": unmasked} if isinstance(model, ViTMAEModel) else {"call": interpolated(model)}),
    )(x)  # fmt: skip
    for name, value in features.items():
        if name != "input/square":
            torch.testing.assert_close(value, plain[name.removeprefix("model.")], rtol=1e-4, atol=1e-5)


def interpolated(model):
    if isinstance(model, ViTModel):
        return lambda module, x: module(x, interpolate_pos_encoding=True)
    return lambda module, x: module(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionTransformer(nn.Linear(1, 1)), "a Linear as vision transformer: expected one of ViTModel"),
        (lambda: VisionTransformer(ViTForImageClassification(ViTConfig(**SIZES))), "give the model inside"),
        (lambda: VisionTransformer(MODELS["vit"][0](), mean=(0.1, 0.2)), "one number or 3"),
        (lambda: VisionTransformer(MODELS["vit"][0](), std=(0.0,)), "positive deviations"),
        (lambda: VisionTransformer(MODELS["vit"][0](), size=28), "multiple of the patch of 8"),
        (lambda: VisionTransformer(MODELS["vit"][0]())(images(28, 28)), "28 x 28.*give size="),
        (lambda: VisionTransformer(MODELS["vit"][0]())(images(channels=2)), "expected .batch, 3 or 1"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
