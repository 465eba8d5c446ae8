"""The score of a sampler on a distribution."""

import math
from types import SimpleNamespace

import pytest
import torch

from onestep_adapters.metrics import toy_reference, toy_score
from onestep_core.errors import ConfigError
from onestep_core.fields.divergences import energy_distance


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Ring:
    def __init__(self, modes=4, std=0.1):
        angle = torch.arange(modes) * (2 * math.pi / modes)
        self.means, self.std = torch.stack([angle.cos(), angle.sin()], 1), std
        self.modes = SimpleNamespace(means=self.means)

    def sample(self, count, *, generator=None):
        mode = torch.randint(len(self.means), (count,), generator=generator)
        return self.means[mode] + self.std * torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def ring():
    distribution = Ring()
    return distribution, toy_reference(distribution, generator=generator(), count=1500, draws=3)


def scored(ring, sampler):
    distribution, reference = ring
    return toy_score(sampler, distribution, generator=generator(7), reference=reference)


def test_toy_energies_are_the_energy_distance(ring):
    _, reference = ring
    drawn = []
    found = scored(ring, lambda n, g: drawn.append(torch.randn(n, 2, generator=g)) or drawn[-1])
    energies = [energy_distance(x.double(), y).item() for x, y in zip(drawn, reference.real, strict=True)]
    assert found.energy == pytest.approx(sum(energies) / 3, rel=1e-10)


def test_toy_score_says_what_is_wrong(ring):
    with pytest.raises(ConfigError, match="1500 of 1500 samples hold NaN"):
        scored(ring, lambda n, g: torch.full((n, 2), math.nan))
    with pytest.raises(ConfigError, match=r"expected samples of shape \[1500, 2\]"):
        scored(ring, lambda n, g: torch.zeros(n, 3))
