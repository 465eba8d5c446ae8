"""The queue of keys, masks, heads, and the two architectures."""

import pytest
import torch
from torch.nn.functional import normalize

from onestep_adapters.encoders import (
    Head,
    KeyQueue,
    MaskedDecoder,
    ResidualEncoder,
    VisionTransformer,
    draw_mask,
    locations,
    patchify,
    pooled,
    visible_places,
)
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded

SMALL = {"width": 16, "depth": 2, "heads": 2, "patch": 2}
ENCODERS = {
    "residual": lambda g: ResidualEncoder(1, width=8, stages=3, blocks=2, generator=g),
    "vit": lambda g: VisionTransformer((1, 8, 8), **SMALL, generator=g),
}


def test_a_queue_holds_the_newest_keys_at_unit_length():
    queue, pushed = KeyQueue(5, 3, generator=seeded()), []
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    first = queue.keys.clone()
    for count in (2, 2, 3, 7, 1):
        keys = torch.randn(count, 3, generator=seeded(count))
        before = queue.negatives()
        queue.push(keys)
        pushed.append(normalize(keys, dim=1))
        newest = torch.cat([first, *pushed])[-5:]
        assert sorted(queue.keys.tolist()) == sorted(newest.tolist())
        assert not torch.equal(before, queue.keys)
    assert int(queue.pushed) == 15
    copy = KeyQueue(5, 3)
    copy.load_state_dict(queue.state_dict())
    again = torch.randn(2, 3, generator=seeded())
    queue.push(again)
    copy.push(again)
    assert torch.equal(queue.keys, copy.keys)
    with pytest.raises(ConfigError, match=r"expected \[n, 3\]"):
        queue.push(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="queue of 0 keys"):
        KeyQueue(0, 3)


def test_a_push_before_the_backward_pass_leaves_the_gradient():
    queue = KeyQueue(4, 3, generator=seeded())
    x = torch.randn(2, 3, generator=seeded(), requires_grad=True)
    expected = torch.autograd.grad((x @ queue.keys.clone().T).square().sum(), x)[0]
    loss = (x @ queue.negatives().T).square().sum()
    queue.push(torch.randn(3, 3))
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def test_masks_hide_the_same_number_at_every_place_alike():
    mask = draw_mask(4000, 10, ratio=0.7, generator=seeded())
    assert (mask.sum(1) == 7).all()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mask.mean(0), torch.full((10,), 0.7), rtol=0, atol=0.035)
    assert torch.equal(mask, draw_mask(4000, 10, ratio=0.7, generator=seeded()))
    visible = visible_places(mask)
    assert visible.shape == (4000, 3)
    assert not mask.gather(1, visible).any()
    for ratio in (0.0, 0.99):
        with pytest.raises(ConfigError, match="at least one visible"):
            draw_mask(2, 4, ratio=ratio, generator=seeded())
    with pytest.raises(ConfigError, match="same number"):
        visible_places(torch.tensor([[1, 0], [0, 0]]))


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_follows_its_generator_and_does_not_depend_on_batch_or_mode(make):
    one, same, other = make(seeded()), make(seeded()), make(seeded(1))
    x = torch.randn(5, 1, 8, 8, generator=seeded())
    found = one(x)
    assert torch.equal(found, same(x))
    assert not torch.equal(found, other(x))
    assert found.isfinite().all()
    torch.testing.assert_close(one(x[2:3]), found[2:3], rtol=1e-4, atol=1e-5)
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    one.train()
    trained = one(x)
    assert torch.equal(one.eval()(x), trained)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_the_named_layers_exist_and_reach_the_images(make):
    encoder = make(seeded())
    known = dict(encoder.named_modules())
    assert [name.split(".")[0] for name in encoder.layers] == [encoder.layers[0].split(".")[0]] * len(encoder.layers)
    outputs = {}
    for name in encoder.layers:
        known[name].register_forward_hook(lambda m, i, o, name=name: outputs.__setitem__(name, locations(o)))
    x = torch.randn(2, 1, 8, 8, generator=seeded(), requires_grad=True)
    encoder(x)
    for output in outputs.values():
        assert output.ndim == 3
        gradient = torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0]
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_a_residual_encoder_halves_from_its_second_stage():
    encoder = ResidualEncoder(3, width=8, stages=3, stride=2)
    assert encoder(torch.zeros(2, 3, 28, 20)).shape == (2, 32, 4, 3)
    assert encoder.channels == 32
    with pytest.raises(ConfigError, match=r"expected \[n, 3, height, width\]"):
        encoder(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ConfigError, match="multiple of 8"):
        ResidualEncoder(1, width=12)


def test_a_transformer_of_visible_patches_ignores_the_hidden_ones():
    encoder = VisionTransformer((1, 8, 8), **SMALL, generator=seeded())
    x = torch.randn(3, 1, 8, 8, generator=seeded())
    mask = draw_mask(3, 16, generator=seeded())
    visible = visible_places(mask)
    hidden = patchify(torch.ones(3, 1, 8, 8), 2) * mask[:, :, None]
    changed = x + hidden.reshape(3, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(3, 1, 8, 8)
    assert not torch.equal(changed, x)
    assert torch.equal(encoder(x, visible), encoder(changed, visible))
    assert not torch.equal(encoder(x), encoder(changed))
    every = torch.arange(16).expand(3, 16)
    assert torch.equal(encoder(x, every), encoder(x))
    decoder = MaskedDecoder(encoder, width=8, depth=1, heads=2, generator=seeded())
    predicted = decoder(encoder(x, visible), visible)
    assert predicted.shape == patchify(x, 2).shape
    # The order in which visible patches are given has no effect.
    order = torch.randperm(visible.shape[1], generator=seeded())
    turned = visible[:, order]
    torch.testing.assert_close(decoder(encoder(x, turned), turned), predicted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="do not divide"):
        VisionTransformer((1, 9, 8), **SMALL)
    with pytest.raises(ConfigError, match="expected"):
        encoder(torch.zeros(2, 1, 8, 4))
    with pytest.raises(ConfigError, match="multiple of 4"):
        VisionTransformer((1, 8, 8), width=18, heads=3)


def test_outputs_of_every_form_become_locations():
    x = torch.randn(2, 3, 4, 5, generator=seeded())
    expected = torch.stack([x[:, :, row, column] for row in range(4) for column in range(5)], 1)
    assert torch.equal(locations(x), expected)
    torch.testing.assert_close(pooled(x), x.mean((2, 3)))
    assert locations(x[:, :, 0, 0]).shape == (2, 1, 3)
    assert locations((x, None)).shape == (2, 20, 3)
    with pytest.raises(ConfigError, match="type dict"):
        locations({})
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        locations(torch.zeros(2))


def test_a_head_is_a_perceptron():
    head = Head([3, 4, 2], generator=seeded())
    x = torch.randn(5, 3)
    expected = torch.relu(x @ head[0].weight.T) @ head[2].weight.T
    torch.testing.assert_close(head(x), expected)
    with pytest.raises(ConfigError, match="at least two widths"):
        Head([3])
