"""The data set of images: ranges, noise, flips, splits by hash."""

import hashlib

import numpy as np
import pytest
import torch

from onestep_adapters.data import Dataset, ImageDataset, part_of, source_of
from onestep_adapters.data.images.dataset import LEVEL, finished
from onestep_adapters.data.images.splits import hashes_of, split_rows
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded


def pixels(count=200, channels=3, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def test_it_has_the_members_of_a_data_set_and_no_source():
    data = ImageDataset("noise", pixels(), np.arange(200) % 3)
    assert isinstance(data, Dataset)
    assert (data.kind, data.shape, data.classes, data.class_names) == ("images", (3, 4, 4), 3, ("0", "1", "2"))
    assert source_of(data) is None


def test_pixels_are_scaled_to_one_and_back():
    images = np.zeros((16, 1, 4, 4), dtype=np.uint8)
    images[:] = np.arange(256, dtype=np.uint8).reshape(16, 1, 4, 4)
    rows = {"train": torch.arange(16), "validation": torch.arange(0), "test": torch.arange(0)}
    data = ImageDataset("levels", images, rows=rows)
    found = data.split("train").data
    assert (found.min(), found.max()) == (-1, 1)
    torch.testing.assert_close(found.flatten().double(), 2 * torch.arange(256).double() / 255 - 1, rtol=0, atol=1e-7)
    assert torch.equal(data.finish(found), found)
    off = found + LEVEL * (torch.rand(found.shape, generator=seeded()) - 0.5) * 0.999
    torch.testing.assert_close(data.finish(off), found, rtol=0, atol=1e-6)
    assert finished(torch.tensor([-5.0, 5.0])).tolist() == [-1, 1]


def test_training_images_have_uniform_noise_of_one_level():
    images = np.full((100, 1, 8, 8), 128, dtype=np.uint8)
    rows = {"train": torch.arange(100), "validation": torch.arange(5), "test": torch.arange(0)}
    data = ImageDataset("grey", images, rows=rows)
    for found in (data.batch(500, seeded()).data, data.held_out(5, seeded())):
        noise = (found - (2 * 128 / 255 - 1)) / (2 / 255)
        assert noise.abs().max() <= 0.5 + 1e-5
    noise = (data.batch(500, seeded()).data - (2 * 128 / 255 - 1)) / (2 / 255)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.var()) - 1 / 12) < 0.002
    assert torch.equal(data.sample(3, seeded()), data.split("train").data[:3])


def test_half_of_the_training_images_are_mirrored():
    images = np.zeros((100, 1, 4, 4), dtype=np.uint8)
    images[..., 0] = 255
    rows = {"train": torch.arange(100), "validation": torch.arange(9), "test": torch.arange(9)}
    data = ImageDataset("edges", images, np.arange(100) % 2, rows=rows, flip=True)

    def left(found):
        """Whether the bright edge is on the left; it must be on one side alone, and the rest dark."""
        bright = found[:, 0, :, :] > 0
        assert bool((bright.sum(2) == 1).all())
        assert bool((bright[:, :, 0] | bright[:, :, 3]).all())
        assert torch.equal(bright[:, :, 0].all(1), bright[:, :, 0].any(1))
        return bright[:, 0, 0]

    share = left(data.batch(2000, seeded()).data).double().mean()
    assert abs(float(share) - 0.5) < 0.05
    assert 10 < int(left(data.groups(25, seeded())).sum()) < 40
    for found in (data.held_out(9, seeded()), data.sample(50, seeded()), data.split("test").data):
        assert bool(left(found).all())
    assert bool(left(ImageDataset("edges", images, rows=rows).batch(100, seeded()).data).all())


def test_the_split_is_by_the_hash_of_the_pixels():
    images = pixels(3000)
    data = ImageDataset("noise", images)
    assert abs(data.counts["test"] - 300) < 60
    assert abs(data.counts["validation"] - 300) < 60
    for name, low, high in (("test", 0.0, 0.1), ("validation", 0.1, 0.2), ("train", 0.2, 1.0)):
        for row in data.rows[name][:50].tolist():
            position = int.from_bytes(hashlib.sha256(images[row].tobytes()).digest()[:8], "big") / 2**64
            assert low <= position < high
    other = ImageDataset("noise", images[::-1].copy())
    for name in data.counts:
        mine, theirs = ({i.tobytes() for i in d.images[d.rows[name]].numpy()} for d in (data, other))
        assert mine == theirs


def test_a_split_of_the_source_is_kept():
    hashes = hashes_of(pixels(1000))
    free = split_rows(hashes)
    parts = np.zeros(1000, dtype=np.int64)
    parts[:100] = 2
    tested = split_rows(hashes, parts)
    assert tested["test"].tolist() == list(range(100))
    kept = [row for row in free["validation"].tolist() if row >= 100]
    assert tested["validation"].tolist() == kept
    parts[100:200] = 1
    both = split_rows(hashes, parts)
    assert both["validation"].tolist() == list(range(100, 200))
    assert both["train"].tolist() == list(range(200, 1000))
    parts[:100] = 0
    validated = split_rows(hashes, parts)
    assert validated["validation"].tolist() == list(range(100, 200))
    assert validated["test"].tolist() == [row for row in free["test"].tolist() if not 100 <= row < 200]


def test_a_class_is_drawn_with_its_images_and_labels():
    images = pixels(300, channels=1)
    labels = np.arange(300) % 3
    images[:, 0, 0, 0] = labels * 100
    data = ImageDataset("noise", images, labels, class_names=("a", "b", "c"))

    def class_of(found):
        return ((found[:, 0, 0, 0] + 1) * 127.5 / 100).round().long()

    batch = data.batch(50, seeded(), alike=5)
    assert torch.equal(class_of(batch.data), batch.labels)
    assert torch.equal(batch.labels.reshape(10, 5), batch.labels[::5, None].expand(10, 5))
    groups = data.groups(4, seeded())
    assert class_of(groups).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(groups.unique(dim=0)) == 12
    for name in data.counts:
        found = data.split(name)
        assert torch.equal(class_of(found.data), found.labels)
    with pytest.raises(ConfigError, match="cannot draw 1000 positives of every class"):
        data.groups(1000, seeded())


def test_a_part_of_a_split_is_evenly_spaced():
    data = ImageDataset("noise", pixels(500))
    whole = data.split("train").data
    count = len(whole)
    part = part_of(data, "train", 10).data
    assert torch.equal(part, whole[[k * count // 10 for k in range(10)]])
    assert torch.equal(part_of(data, "train", 10_000).data, whole)


def test_an_empty_split_is_none_and_monitors_then_use_training_images():
    rows = {"train": torch.arange(5), "validation": torch.arange(0), "test": torch.arange(0)}
    data = ImageDataset("few", pixels(5), rows=rows)
    assert data.split("test") is None
    assert part_of(data, "test", 3) is None
    assert data.held_out(9, seeded()).shape == (5, 3, 4, 4)
    with pytest.raises(ConfigError, match="no split is called 'tset'"):
        data.split("tset")


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (pixels().astype(np.float32), None, "float32: expected uint8"),
        (pixels()[0], None, r"\(3, 4, 4\)"),
        (pixels(), np.arange(3), "one integer per image"),
        (pixels(), np.zeros(200), "one integer per image"),
        (pixels(), np.full(200, -1), "one integer per image"),
        (pixels(), np.full(200, 2), r"no training sample of the classes \['0', '1'\]"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, told):
    with pytest.raises(ConfigError, match=told):
        ImageDataset("x", images, labels)
