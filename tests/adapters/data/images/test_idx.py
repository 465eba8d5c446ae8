"""IDX files written in the tests, and the real Fashion-MNIST where it is installed."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.data.images import fashion_mnist
from onestep_adapters.data.images.idx import read_idx
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import mnist_like, noise, write_idx
from tests.adapters.tiny import seeded


@pytest.mark.parametrize("packed", [False, True])
def test_an_array_is_read_as_it_was_written(packed, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 2), dtype=np.uint8)
    assert np.array_equal(read_idx(write_idx(tmp_path / "a", array, packed=packed)), array)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "starts with the bytes"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "00 00 0d 01: expected 00 00 08"),
        (bytes([0, 0, 8, 3, 0, 0]), "cut off in its header"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2]), "has 2 bytes of data: its header says 5"),
        (gzip.compress(b"x" * 2000, mtime=0)[:20], "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused(content, told, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("packed", [False, True])
def test_the_test_file_is_the_test_split(packed, tmp_path):
    folder = mnist_like(tmp_path / "m", packed=packed)
    data = open_dataset(f"idx:{folder}")
    assert (data.shape, data.classes) == ((1, 6, 6), 3)
    assert data.name.startswith("m-6x6x1-")
    assert data.counts["test"] == 12
    assert data.counts["train"] + data.counts["validation"] == 60
    end = ".gz" if packed else ""
    images, labels = (read_idx(folder / f"t10k-{name}-ubyte{end}") for name in ("images-idx3", "labels-idx1"))
    found = data.split("test")
    pairs = {(((image + 1) * 127.5).round().byte().numpy().tobytes(), int(k)) for image, k in zip(*found, strict=True)}
    assert pairs == {(image.tobytes(), int(k)) for image, k in zip(images, labels, strict=True)}


def test_one_file_and_files_without_labels(tmp_path):
    folder = mnist_like(tmp_path / "m")
    alone = open_dataset(f"idx:{folder / 'train-images-idx3-ubyte'}")
    assert alone.classes == 3
    assert sum(alone.counts.values()) == 60
    assert alone.counts["test"] > 0
    assert open_dataset(f"idx:{folder}", classes=False).classes is None
    (folder / "train-labels-idx1-ubyte").unlink()
    assert open_dataset(f"idx:{folder}").classes is None
    other = write_idx(tmp_path / "pictures", np.stack([noise(6, 1, k) for k in range(30)]))
    assert open_dataset(f"idx:{other}").shape == (1, 6, 6)


def test_other_sizes_colour_and_other_names(tmp_path):
    folder = mnist_like(tmp_path / "m")
    assert open_dataset(f"idx:{folder}", size=4, channels=3).shape == (3, 4, 4)
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"emnist-letters-{file.name.replace('-idx', '.idx')}")
    assert open_dataset(f"idx:{folder}").counts["test"] == 12
    colour = np.stack([noise(6, 3, k) for k in range(30)])
    assert open_dataset(f"idx:{write_idx(tmp_path / 'colour', colour)}").shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "x-train-images-idx3-ubyte").write_bytes(b""), "has several sets"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "has no file of images"),
        (lambda folder: write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((3, 5, 5), np.uint8)), "different sizes"),
        (lambda folder: write_idx(folder / "train-labels-idx1-ubyte", np.zeros(9, np.uint8)), "for 60 images"),
        (lambda folder: write_idx(folder / "train-images-idx3-ubyte", np.zeros((9, 5), np.uint8)), "expected images"),
    ],
)
def test_files_that_do_not_fit_are_refused(spoil, told, tmp_path):
    folder = mnist_like(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ConfigError, match=told):
        open_dataset(f"idx:{folder}")


def test_options_of_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"labels = 'x\.csv' with IDX files"):
        open_dataset(f"idx:{mnist_like(tmp_path / 'm')}", labels="x.csv")


# Fashion-MNIST.


@pytest.fixture(scope="module")
def installed():
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip(fashion_mnist.HOW)


@pytest.mark.usefixtures("installed")
def test_fashion_mnist_is_itself(tmp_path):
    data = open_dataset("fashion-mnist")
    assert (data.name, data.shape, data.classes) == ("fashion-mnist", (1, 28, 28), 10)
    assert data.class_names[9] == "ankle boot"
    assert data.counts == {"train": 53_897, "validation": 6_103, "test": 10_000}
    assert data.class_counts("test") == [1000] * 10
    found = part = data.part("test", 100)
    assert torch.equal(data.finish(found.data), part.data)
    assert data.batch(4, seeded()).data.shape == (4, 1, 28, 28)
    assert data.source == {"name": "fashion-mnist", "size": 28, "channels": 1}
    assert open_dataset("fashion-mnist", flip=True).name.startswith("fashion-mnist-28x28x1-")


@pytest.mark.usefixtures("installed")
def test_fashion_mnist_is_found_in_a_folder_too(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in fashion_mnist.DEBIAN.iterdir():
        (folder / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv(fashion_mnist.FOLDER, str(folder))
    data = open_dataset("fashion-mnist")
    assert data.name == "fashion-mnist"
    assert data.facts["origin"] == f"idx:{folder}"


def test_without_the_images_the_message_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.delenv(fashion_mnist.FOLDER, raising=False)
    monkeypatch.setattr(fashion_mnist, "HUB", str(tmp_path / "no-such-data-set"))
    with pytest.raises(ConfigError) as caught:
        open_dataset("fashion-mnist")
    for command in (
        "apt-get install dataset-fashion-mnist",
        "export ONESTEP_FASHION_MNIST=",
        "pip install 'onestep[hub]'",
    ):
        assert command in str(caught.value)


def test_other_images_under_its_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_mnist.FOLDER, str(mnist_like(tmp_path / "m", size=28)))
    with pytest.raises(ConfigError, match="are not those of Fashion-MNIST"):
        open_dataset("fashion-mnist")


def test_debians_folder_is_absolute():
    assert Path(fashion_mnist.DEBIAN).is_absolute()
