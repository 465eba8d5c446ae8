"""Pairs of data and noise: couplings, classes, stable targets."""

import pytest
import torch

from onestep_adapters.data import ArrayDataset, Batch, Draw, Draws, couplings, open_dataset, states_at, velocity_at
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.tracking import untracked
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded


def test_optimal_pairs_are_nearer_and_leave_the_data_as_they_were():
    apart, near = (
        Draws(open_dataset("8gaussians"), coupling)(200, seeded()) for coupling in ("independent", "optimal")
    )
    assert torch.equal(apart.data, near.data)
    assert (near.data - near.noise).square().mean() < 0.8 * (apart.data - apart.noise).square().mean()


@pytest.mark.parametrize("coupling", ["optimal", "precomputed"])
def test_stable_targets_need_independent_pairs(coupling):
    with pytest.raises(ConfigError, match="independent"):
        Draws(open_dataset("8gaussians"), coupling, further=5)


@pytest.mark.parametrize("coupling", ["independent", "optimal", "precomputed"])
def test_pairs_in_a_row_have_one_class(coupling):
    """Of the training images, in their frequencies, each with its own class."""
    data = open_dataset("digits")
    found = Draws(data, coupling, alike=8)(4000, seeded())
    images, labels = data.split("train")
    assert (found.labels.reshape(-1, 8) == found.labels[::8, None]).all()
    assert (found.labels.bincount(minlength=10) / 4000 - labels.bincount() / len(labels)).abs().max() < 0.06
    nearest = torch.cdist(found.data[:200].flatten(1), images.flatten(1)).argmin(1)
    assert torch.equal(labels[nearest], found.labels[:200])
    odd = Draws(data, alike=4)(11, seeded())
    assert len(odd.data) == len(odd.labels) == 11


def test_precomputed_pairs_are_nearer_than_those_of_a_batch():
    data, generator = open_dataset("digits"), seeded()

    def apart(coupling):
        draws = Draws(data, coupling)
        batches = [draws(64, generator) for _ in range(20)]
        return torch.cat([(found.data - found.noise).square().flatten(1).sum(1) for found in batches])

    independent, batch, many = (apart(coupling) for coupling in ("independent", "optimal", "precomputed"))
    error = many.std() / len(many) ** 0.5
    assert many.mean() < batch.mean() - 3 * error
    assert batch.mean() < independent.mean() - 3 * error


def test_precomputed_pairs_are_those_of_the_seed(monkeypatch):
    """Made again, as in a resumed run, they are the same; those of another seed are not."""
    monkeypatch.setattr(couplings, "_POINTS", (200, 50))

    def drawn(seed):
        return Draws(open_dataset("8gaussians"), "precomputed", seed=seed)(50, seeded(3))

    expected, found = drawn(3), drawn(3)
    assert torch.equal(found.data, expected.data)
    assert torch.equal(found.noise, expected.noise)
    assert not torch.isin(drawn(4).noise, expected.noise).any()


def test_precomputed_pairs_are_made_once_for_a_data_set_and_a_seed(monkeypatch):
    monkeypatch.setattr(couplings, "_POINTS", (200, 50))
    data, shown = open_dataset("8gaussians"), []

    def track(items, title, total):
        shown.append((title, total))
        return iter(items)

    for seed in (0, 0, 1):
        Draws(data, "precomputed", seed=seed, track=track)
    assert shown == [("coupled pairs", 4)] * 2


def test_stable_targets_are_the_expected_ones_among_all_data():
    """Of two data on the line with noise in between, closed form: the posterior mean is ``tanh(alpha z / sigma^2)``."""
    own, further = Batch(torch.tensor([[1.0]]), None), Batch(torch.tensor([[-1.0]]), None)
    t, m, noise = torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([[-0.4]])
    drawn = Draw(own.data, noise, None, further)
    z, v = velocity_at(drawn, t, path=PATH)
    mean = torch.tanh(0.5 * z / 0.25)
    torch.testing.assert_close(v, (z - mean) / 0.5)
    first, second = states_at(drawn, t, m, path=PATH)
    torch.testing.assert_close(first, z)
    torch.testing.assert_close(second, z - 0.25 * v)


def test_stable_targets_stay_in_their_class():
    """A class of one: its own data is what is expected, whatever lies near."""
    drawn = Draw(torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]), Batch(torch.zeros(1, 1), torch.tensor([1])))
    plain = drawn._replace(further=None)
    t = torch.full((2,), 0.9)
    (_, v), (_, pairs) = (velocity_at(x, t, path=PATH) for x in (drawn, plain))
    torch.testing.assert_close(v[0], pairs[0])
    assert (v[1] - pairs[1]).abs() > 0.1


def test_precomputed_pairs_of_large_samples_are_fewer(monkeypatch):
    """Their data have at most so many numbers in all."""
    monkeypatch.setattr(couplings, "_VALUES", 100)
    data = ArrayDataset("mine", Batch(torch.randn(50, 5, generator=seeded()), None))
    assert couplings._made(data, 0, untracked).data.shape == (20, 5)
