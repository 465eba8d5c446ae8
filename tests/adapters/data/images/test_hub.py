"""Hugging Face data sets, made here and saved to disk: nothing is downloaded."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from onestep_adapters.data import open_dataset
from onestep_adapters.data.images.hub import HubSource
from onestep_adapters.data.images.options import ImageOptions
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import noise, photos

FEATURES = datasets.Features(
    {"id": datasets.Value("int64"), "picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and the library's own cache in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True, raising=False)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def table(count, *, seed=0, channels=3, features=FEATURES, **changes):
    rows = {
        "id": list(range(count)),
        "picture": [png(noise(6, channels, 1000 * seed + k)) for k in range(count)],
        "kind": [k % 2 for k in range(count)],
    }
    rows = {name: changes.get(name, values) for name, values in rows.items() if name in features}
    return datasets.Dataset.from_dict(rows, features=features)


def test_one_split_is_divided_by_the_content(tmp_path):
    table(60).save_to_disk(tmp_path / "mine")
    data = open_dataset(f"hub:{tmp_path / 'mine'}")
    assert (data.shape, data.class_names) == ((3, 6, 6), ("cat", "dog"))
    assert data.name.startswith("mine-6x6x3-")
    assert sum(data.counts.values()) == 60
    assert data.counts["test"] > 0
    kinds = {noise(6, 3, k).transpose(2, 0, 1).tobytes(): k % 2 for k in range(60)}
    images, labels = data.split("train")
    for image, label in zip(images, labels, strict=True):
        assert kinds[((image + 1) * 127.5).round().byte().numpy().tobytes()] == int(label)
    assert open_dataset(f"hub:{tmp_path / 'mine'}").name == data.name


def test_splits_of_the_data_set_are_kept(tmp_path):
    parts = {"train": table(60), "test": table(15, seed=1)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert open_dataset(f"hub:{tmp_path / 'two'}").counts["test"] == 15
    parts["validation"] = table(9, seed=2)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "three")
    assert open_dataset(f"hub:{tmp_path / 'three'}").counts == {"train": 60, "validation": 9, "test": 15}


def test_grey_images_without_classes(tmp_path):
    features = datasets.Features({"picture": datasets.Image()})
    table(30, channels=1, features=features).save_to_disk(tmp_path / "grey")
    data = open_dataset(f"hub:{tmp_path / 'grey'}")
    assert (data.shape, data.classes) == ((1, 6, 6), None)
    table(30).save_to_disk(tmp_path / "colour")
    assert open_dataset(f"hub:{tmp_path / 'colour'}", classes=False, size=4).shape == (3, 4, 4)


def test_a_folder_that_the_library_knows(tmp_path):
    photos(tmp_path / "p" / "train", 30, size=6)
    data = open_dataset(f"hub:{tmp_path / 'p'}")
    assert (data.classes, data.class_names) == (2, ("cat", "dog"))
    assert sum(data.counts.values()) == 30


def test_a_corrupt_image_is_named(tmp_path):
    pictures = [png(noise(6, 3, k)) for k in range(29)] + [{"bytes": b"broken", "path": None}]
    table(30, picture=pictures).save_to_disk(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"1 of 30 images of hub:.*train row 29 \(not an image"):
        open_dataset(f"hub:{tmp_path / 'mine'}")
    assert sum(open_dataset(f"hub:{tmp_path / 'mine'}", skip_corrupt=True).counts.values()) == 29


def test_content_by_pixels_is_that_of_idx_files(tmp_path):
    import hashlib

    table(3, channels=1).save_to_disk(tmp_path / "mine")
    source = HubSource(str(tmp_path / "mine"), ImageOptions(), by_pixels=True)
    for k in range(3):
        found = source.read(k, ImageOptions(size=6, channels=1))
        assert found.digest == hashlib.sha256(noise(6, 1, k).tobytes()).digest()
        assert np.array_equal(found.pixels[0], noise(6, 1, k))


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"hub:no/such-data-set cannot be loaded .*save_to_disk"):
        open_dataset("hub:no/such-data-set")
    features = datasets.Features({"id": datasets.Value("int64")})
    table(3, features=features).save_to_disk(tmp_path / "numbers")
    with pytest.raises(ConfigError, match="has the columns id: expected one of images"):
        open_dataset(f"hub:{tmp_path / 'numbers'}")
    table(20, kind=[0] * 19 + [None]).save_to_disk(tmp_path / "unknown")
    with pytest.raises(ConfigError, match=r"1 images of hub:.* have no class: .*--no-classes"):
        open_dataset(f"hub:{tmp_path / 'unknown'}")
