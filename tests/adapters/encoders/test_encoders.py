"""Encoders: random convolutions, pixels, and several as one."""

import pytest
import torch

from onestep_adapters.encoders import RandomConvolutions, joined, pixels
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded


def test_random_convolutions_are_frozen_and_belong_to_their_generator():
    one, same, other = (RandomConvolutions(1, width=4, generator=seeded(s)) for s in (0, 0, 1))
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    features = one(x)
    for name, feature in features.items():
        assert torch.equal(feature, same(x)[name])
        assert not torch.equal(feature, other(x)[name])
        assert feature.shape[0] == 3
        assert feature.ndim == 3
    sum(f.square().sum() for f in features.values()).backward()
    assert x.grad is not None
    assert not any(p.requires_grad for p in one.parameters())
    flat = one(torch.zeros(2, 1, 8, 8, requires_grad=True))
    (gradient,) = torch.autograd.grad(sum(f.sum() for f in flat.values()), list(flat.values())[:1], allow_unused=True)
    assert all(f.isfinite().all() for f in (*flat.values(), gradient))
    with pytest.raises(ConfigError, match=r"expected \[batch, 1, height, width\]"):
        one(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="depth = 0"):
        RandomConvolutions(1, depth=0)


def test_moments_are_those_of_the_locations():
    features = RandomConvolutions(2, width=3, depth=1)(torch.randn(4, 2, 6, 6))
    local = features["stage_1"]
    expected = torch.cat([local.mean(1), local.std(1, correction=0)], 1)[:, None]
    torch.testing.assert_close(features["moments_1"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(local.square().mean(2), torch.ones(4, 9), rtol=1e-2, atol=1e-2)


def test_joined_encoders_do_not_hide_one_another():
    with pytest.raises(ConfigError, match=r"called \['pixels'\]"):
        joined(pixels, pixels)(torch.zeros(2, 1, 8, 8))
