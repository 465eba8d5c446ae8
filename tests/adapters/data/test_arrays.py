"""Tensors as a data set: splits, classes, grey levels, refusals."""

import pytest
import torch

from onestep_adapters.data import ArrayDataset, Batch
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded

DATA = torch.arange(24.0).reshape(12, 2)
LABELS = torch.arange(12) % 3


def test_shape_classes_and_kind_follow_from_the_tensors():
    data = ArrayDataset("mine", Batch(DATA, LABELS))
    assert (data.name, data.title, data.shape, data.classes, data.kind) == ("mine", "mine", (2,), 3, "points")
    images = ArrayDataset("mine", (torch.zeros(3, 1, 4, 4), None), title="my images")
    assert (images.title, images.shape, images.classes, images.kind) == ("my images", (1, 4, 4), None, "images")
    assert ArrayDataset("mine", (torch.zeros(3, 1, 4, 4), None), kind="points").kind == "points"


def test_splits_that_are_not_given_are_those_before():
    train, validation, test = ((DATA + k, None) for k in range(3))
    one, two, three = (
        ArrayDataset("mine", *splits) for splits in ((train,), (train, validation), (train, validation, test))
    )
    assert torch.equal(one.split("test").data, DATA)
    assert torch.equal(two.split("test").data, DATA + 1)
    assert torch.equal(three.split("test").data, DATA + 2)
    assert torch.equal(three.split("train").data, DATA)
    assert torch.equal(two.held_out(100, seeded()), DATA + 1)
    with pytest.raises(ConfigError, match="no split is called 'tests'"):
        one.split("tests")


def test_a_batch_is_of_training_samples_with_their_classes():
    data = ArrayDataset("mine", (DATA, LABELS), (DATA + 100, LABELS))
    found, labels = data.batch(500, seeded())
    rows = (found[:, 0] / 2).long()
    assert torch.equal(DATA[rows], found)
    assert torch.equal(LABELS[rows], labels)
    assert len(rows.unique()) == 12
    asked = data.labels(6000, seeded())
    assert (asked.bincount() / 6000 - 1 / 3).abs().max() < 0.03


def test_groups_are_different_samples_of_every_class():
    data = ArrayDataset("mine", (DATA, LABELS))
    rows = (data.groups(4, seeded())[:, 0] / 2).long()
    assert torch.equal(LABELS[rows], torch.arange(3).repeat_interleave(4))
    assert len(rows.unique()) == 12
    with pytest.raises(ConfigError, match="cannot draw 5 positives of every class: the smallest class has 4"):
        data.groups(5, seeded())
    single = ArrayDataset("mine", (DATA, None)).groups(5, seeded())
    assert single.shape == (5, 2)


def test_grey_levels_are_dequantised_for_training_and_only_there():
    """Uniform noise as wide as a level, so that rounding gives the data again."""
    data = ArrayDataset("mine", (DATA, LABELS), level=1.0, finish=torch.round)
    found, labels = data.batch(4000, seeded())
    rounded = data.finish(found)
    assert torch.equal(LABELS[(rounded[:, 0] / 2).long()], labels)
    apart = found - rounded
    assert apart.abs().max() <= 0.5
    assert apart.mean().abs() < 0.02
    assert abs(float(apart.var()) - 1 / 12) < 0.005
    for samples in (data.groups(2, seeded()), data.held_out(5, seeded())):
        assert not torch.equal(samples, samples.round())
    for samples in (data.split("train").data, data.sample(9, seeded())):
        assert torch.equal(samples, samples.round())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayDataset("mine", (DATA, LABELS * 2)), r"mine has no training sample of the classes \[1, 3\]"),
        (lambda: ArrayDataset("mine", (DATA, LABELS - 1)), "from 0"),
        (lambda: ArrayDataset("mine", (DATA, LABELS.float())), "one integer per sample"),
        (lambda: ArrayDataset("mine", (DATA, LABELS[:5])), r"labels of shape \(5,\)"),
        (lambda: ArrayDataset("mine", (DATA, LABELS[:, None])), r"labels of shape \(12, 1\)"),
        (lambda: ArrayDataset("mine", (DATA, LABELS > 0)), "one integer per sample"),
        (lambda: ArrayDataset("mine", (DATA[:0], None)), "at least one"),
        (lambda: ArrayDataset("mine", (DATA[:0], LABELS[:0])), "at least one"),
        (lambda: ArrayDataset("mine", (DATA[:, 0], None)), r"floating point, \[n, \*shape\]"),
        (lambda: ArrayDataset("mine", (DATA.long(), None)), "floating point"),
        (
            lambda: ArrayDataset("mine", (DATA, None), (DATA[:, :1], None)),
            r"validation split of mine has samples of \(1,\)",
        ),
        (lambda: ArrayDataset("mine", (DATA, LABELS), (DATA, None)), "has no labels, the training split has labels"),
        (lambda: ArrayDataset("mine", (DATA, None), None, (DATA, LABELS)), "has labels, the training split has none"),
        (
            lambda: ArrayDataset("mine", (DATA, LABELS), (DATA, LABELS + 3)),
            "has class 5: expected 0 to 2, the classes of the training split",
        ),
        (lambda: ArrayDataset("mine", (DATA.numpy(), None)), "is ndarray, NoneType: expected two tensors"),
        (lambda: ArrayDataset("mine", (DATA, LABELS.tolist())), "is Tensor, list: expected two tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_every_integer_type_are_the_same(dtype):
    """As an index a tensor of uint8 is a mask; labels are kept as int64."""
    data, same = ArrayDataset("mine", (DATA, LABELS.to(dtype))), ArrayDataset("mine", (DATA, LABELS))
    assert torch.equal(data.groups(2, seeded()), same.groups(2, seeded()))
    for mine, theirs in zip(data.batch(20, seeded(), alike=4), same.batch(20, seeded(), alike=4), strict=True):
        assert torch.equal(mine, theirs)
    assert data.split("test").labels.dtype == data.labels(3, seeded()).dtype == torch.int64
