"""Data sets by name, and that each draws everything from the generator that it is given."""

import pytest
import torch

from onestep_adapters.data import (
    DATASETS,
    DEFAULT_DATASET,
    IMAGES,
    TOYS,
    ArrayDataset,
    Dataset,
    ToyDataset,
    open_dataset,
)
from onestep_adapters.data.dataset import members
from onestep_core.errors import ConfigError
from tests.adapters.datasets import OWN
from tests.adapters.tiny import seeded

ALL = {**{name: lambda name=name: open_dataset(name) for name in DATASETS}, **OWN}


def test_names_are_known_and_unknown_ones_are_answered_with_the_nearest():
    assert DEFAULT_DATASET in DATASETS
    assert set(TOYS) < set(DATASETS)
    for name in DATASETS:
        assert open_dataset(name).name == name
    assert list(IMAGES) == ["fashion-mnist"]
    with pytest.raises(ConfigError, match="did you mean 'checkerboard'"):
        open_dataset("chekerboard")
    with pytest.raises(ConfigError, match="did you mean 'two-moons'"):
        ToyDataset("two-moon")


@pytest.mark.parametrize("kind", ALL)
def test_a_data_set_has_the_members_of_the_protocol(kind):
    data, g = ALL[kind](), seeded()
    assert isinstance(data, Dataset)
    assert data.kind in {"points", "images"}
    batch = data.batch(7, g)
    assert batch.data.shape == (7, *data.shape)
    assert (batch.labels is None) == (data.classes is None)
    assert data.groups(3, g).shape == (3 * (data.classes or 1), *data.shape)
    assert data.held_out(4, g).shape == (4, *data.shape)
    assert data.sample(5, g).shape == (5, *data.shape)
    labels = data.labels(5, g)
    assert (labels is None) == (data.classes is None)
    assert labels is None or (labels.shape == (5,) and int(labels.max()) < data.classes)
    assert data.finish(batch.data).shape == batch.data.shape


@pytest.mark.parametrize("kind", ALL)
def test_a_data_set_draws_everything_from_its_generator(kind):
    data = ALL[kind]()

    def draws(seed):
        g = seeded(seed)
        found = [*data.batch(6, g), data.groups(3, g), data.held_out(4, g), data.labels(5, g), data.sample(4, g)]
        return [tensor for tensor in found if tensor is not None]

    torch.manual_seed(0)
    first = draws(1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for a, b in zip(first, draws(1), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first[0], draws(2)[0])


@pytest.mark.parametrize("kind", ["digits", "labelled points", "labelled images", "a plain class"])
def test_samples_in_a_row_have_one_class(kind):
    labels = ALL[kind]().batch(11, seeded(), alike=4).labels
    assert len(labels) == 11
    assert (labels[:8].reshape(2, 4) == labels[:8:4, None]).all()
    assert (labels[8:] == labels[8]).all()


def test_a_toy_of_your_own():
    class Dot:
        modes = None

        def sample(self, count, *, generator=None):
            return torch.ones(count, 2)

    data = ToyDataset("dot", Dot())
    assert (data.name, data.modes, data.split("train")) == ("dot", None, None)
    assert torch.equal(data.batch(3, seeded()).data, torch.ones(3, 2))


def test_members_are_of_the_class_asked_for_and_evenly_drawn():
    counts, kinds = torch.tensor([3, 1, 2]), torch.tensor([0, 2, 1, 0]).repeat(3000)
    place = members(kinds, counts, seeded())
    starts = torch.tensor([0, 3, 4])
    assert (place >= starts[kinds]).all()
    assert (place < (starts + counts)[kinds]).all()
    shares = place[kinds == 0].bincount(minlength=3) / 6000
    assert (shares - 1 / 3).abs().max() < 0.03


def test_digits_come_in_contiguous_classes_and_whole_grey_levels():
    data = open_dataset("digits")
    assert isinstance(data, ArrayDataset)
    groups = data.finish(data.groups(4, seeded()))
    assert groups.shape == (40, 1, 8, 8)
    levels = (groups + 1) * 8
    assert torch.equal(levels, levels.round())
    images, labels = data.split("train")
    for k, image in enumerate(groups):
        same = (images == image).flatten(1).all(1)
        assert labels[same].tolist().count(k // 4) > 0
    with pytest.raises(ConfigError, match="the smallest class has"):
        data.groups(10_000, torch.Generator())
