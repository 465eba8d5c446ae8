"""Optimal couplings of a batch against all permutations."""

import itertools

import pytest
import torch

from onestep_adapters.data.transport import optimal_noise
from onestep_core.errors import ConfigError


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_optimal_noise_is_the_best_order_and_an_order(shape):
    g = torch.Generator().manual_seed(3)
    data, noise = (torch.randn(6, *shape, generator=g) for _ in "ab")
    found = optimal_noise(data, noise)
    costs = [((data - noise[list(order)]) ** 2).sum() for order in itertools.permutations(range(6))]
    torch.testing.assert_close(((data - found) ** 2).sum(), torch.stack(costs).min())
    assert sorted(found.flatten(1).tolist()) == sorted(noise.flatten(1).tolist())


def test_optimal_noise_stays_within_its_class():
    g = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (40,), generator=g)
    data, noise = torch.randn(40, 2, generator=g), torch.randn(40, 2, generator=g)
    found = optimal_noise(data, noise, labels)
    for k in range(3):
        own = labels == k
        assert sorted(found[own].tolist()) == sorted(noise[own].tolist())
        torch.testing.assert_close(found[own], optimal_noise(data[own], noise[own]))


def test_optimal_noise_refuses_two_shapes():
    with pytest.raises(ConfigError, match="one shape"):
        optimal_noise(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="size = 0"):
        optimal_noise(torch.zeros(3, 2), torch.zeros(3, 2), size=0)


@pytest.mark.parametrize("labels", [torch.eye(6), torch.tensor([0, 1]), torch.tensor(0)], ids=["one-hot", "two", "one"])
def test_optimal_noise_wants_one_class_for_each_sample(labels):
    with pytest.raises(ConfigError, match=r"for 6 samples: expected one integer for each.*labels\.argmax\(1\)"):
        optimal_noise(torch.zeros(6, 2), torch.zeros(6, 2), labels)


def test_optimal_noise_in_parts():
    g = torch.Generator().manual_seed(5)
    data, noise = torch.randn(10, 2, generator=g), torch.randn(10, 2, generator=g)
    found = optimal_noise(data, noise, size=4)
    for start in (0, 4, 8):
        part = slice(start, start + 4)
        torch.testing.assert_close(found[part], optimal_noise(data[part], noise[part]))
