"""Folders of images: classes, corrupt files, and a data set that depends on contents alone."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from onestep_adapters.data import open_dataset
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import noise, photos, write
from tests.adapters.tiny import seeded


def opened(folder, **keywords):
    return open_dataset(f"folder:{folder}", **keywords)


def every(data):
    """All images as uint8, in the order of the splits."""
    return {name: data.images[rows] for name, rows in data.rows.items()}


def test_sub_folders_are_the_classes(tmp_path):
    data = opened(photos(tmp_path / "p", 60))
    assert (data.shape, data.classes, data.class_names) == ((3, 8, 8), 2, ("cat", "dog"))
    assert sum(data.counts.values()) == 60
    assert np.sum([data.class_counts(name) for name in data.counts], axis=0).tolist() == [30, 30]
    for name in data.counts:
        images, labels = data.split(name)
        for image, label in zip(images, labels, strict=True):
            pixels = ((image + 1) * 127.5).round().byte()
            k = next(k for k in range(60) if np.array_equal(noise(8, 3, k).transpose(2, 0, 1), pixels.numpy()))
            assert int(label) == k % 2


def test_images_without_sub_folders_have_no_classes(tmp_path):
    data = opened(photos(tmp_path / "p", classes=()))
    assert data.classes is None
    assert data.split("train").labels is None
    assert data.labels(3, seeded()) is None
    mixed = photos(tmp_path / "q")
    write(mixed, "alone.png", noise(seed=99))
    assert opened(mixed).classes is None
    assert opened(photos(tmp_path / "r", classes=("one",))).classes is None
    assert opened(photos(tmp_path / "s"), classes=False).classes is None


def test_nested_folders_belong_to_their_class_and_hidden_files_are_ignored(tmp_path):
    folder = photos(tmp_path / "p", 40)
    write(folder, "cat/more/deep/a.png", noise(seed=500))
    write(folder, ".hidden/a.png", noise(seed=501))
    write(folder, "dog/.a.png", noise(seed=502))
    (folder / "notes.txt").write_text("no image")
    write(folder, "dog/UPPER.PNG", noise(seed=503))
    data = opened(folder)
    assert sum(data.counts.values()) == 42
    assert np.sum([data.class_counts(name) for name in data.counts], axis=0).tolist() == [21, 21]


def test_folders_called_train_and_test_are_the_splits(tmp_path):
    for part, count, seed in (("train", 80, 0), ("test", 10, 1)):
        photos(tmp_path / "p" / part, count, seed=seed)
    data = opened(tmp_path / "p")
    assert data.class_names == ("cat", "dog")
    assert data.counts["test"] == 10
    assert data.counts["train"] + data.counts["validation"] == 80
    assert data.counts["validation"] > 0
    tests = {noise(8, 3, 1000 + k).transpose(2, 0, 1).tobytes() for k in range(10)}
    assert {image.numpy().tobytes() for image in every(data)["test"]} == tests


def test_a_table_gives_the_classes(tmp_path):
    folder = photos(tmp_path / "p", 30, classes=())
    lines = "".join(f"{k:03}.png,{'even' if k % 2 == 0 else 'odd'}\n" for k in range(30))
    (tmp_path / "t.csv").write_text(f"file,class\n{lines}")
    data = opened(folder, labels=str(tmp_path / "t.csv"))
    assert data.class_names == ("even", "odd")
    assert np.sum([data.class_counts(name) for name in data.counts], axis=0).tolist() == [15, 15]
    assert data.source["labels"] == str(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("name,class\n000.png,a\n", "columns name, class: expected file and class"),
        ("file,class\n000.png,a\n", "29 files of .* are in the folder and not in the table: 001.png"),
        ("file,class\nnone.png,a\n", "1 files of .* in the table and not in the folder: none.png"),
        ("file,class\n000.png,a\n000.png,b\n", "gives '000.png' two classes"),
        ("file,class\n000.png,\n", "gives '000.png' no class"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, told, tmp_path):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ConfigError, match=told):
        opened(photos(tmp_path / "p", 30, classes=()), labels=str(tmp_path / "t.csv"))


def test_corrupt_files_are_named_and_counted_and_left_out_only_on_request(tmp_path):
    folder = photos(tmp_path / "p", 40)
    for k in range(7):
        (folder / "cat" / f"bad{k}.jpg").write_bytes(b"not an image at all")
    cut = (folder / "dog" / "001.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(cut[: len(cut) // 2])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"8 of 48 images of folder:.*cat/bad0.jpg \(not an image.*and 3 more"):
            opened(folder)
    data = opened(folder, skip_corrupt=True)
    assert sum(data.counts.values()) == 40
    assert [name for name, _ in data.facts["skipped"]] == [*(f"cat/bad{k}.jpg" for k in range(7)), "dog/cut.png"]
    with pytest.raises(ConfigError, match="8 of 48 images"):
        opened(folder)
    assert opened(folder, skip_corrupt=True).name == data.name


def test_a_folder_of_corrupt_files_alone_is_refused(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="1 of 1 images"):
        opened(tmp_path / "p", skip_corrupt=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder:{0}/none", "none does not exist: expected a folder"),
        ("folder:{0}/empty", "empty has no image: .*it has 1 other file"),
        ("folder:{0}/file", "file is a file"),
        ("folder:", "has no place: expected folder:PATH"),
        ("hub:", "has no place: expected hub:NAME"),
        ("folders:{0}", "did you mean 'folder'"),
    ],
)
def test_a_place_without_images_is_refused(name, told, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=told):
        open_dataset(name.format(tmp_path))


def test_the_size_is_that_of_the_images_if_they_have_one(tmp_path):
    assert opened(photos(tmp_path / "a", 20, size=12)).shape == (3, 12, 12)
    assert opened(photos(tmp_path / "b", 20, size=12, channels=1)).shape == (1, 12, 12)
    mixed = photos(tmp_path / "c", 20, size=12, channels=1)
    write(mixed, "cat/wide.png", np.zeros((12, 20), dtype=np.uint8))
    assert opened(mixed).shape == (1, 32, 32)
    write(mixed, "cat/colour.png", noise(12))
    assert opened(mixed).shape == (3, 32, 32)
    assert opened(mixed, size=7).shape == (3, 7, 7)
    assert opened(mixed, channels=1).shape == (1, 32, 32)
    assert opened(photos(tmp_path / "d", 20, size=80)).shape == (3, 32, 32)


def split_of_every(data):
    return {image.numpy().tobytes(): name for name, images in every(data).items() for image in images}


def test_a_split_does_not_move_when_files_are_added_or_renamed(tmp_path):
    folder = photos(tmp_path / "p", 100, classes=())
    before = opened(folder, size=8, channels=3)
    assert all(5 <= before.counts[name] <= 18 for name in ("validation", "test"))
    for k in range(0, 100, 2):
        (folder / f"{k:03}.png").rename(folder / f"z{999 - k}.png")
    renamed = opened(folder, size=8, channels=3)
    assert renamed.name == before.name
    for name, images in every(before).items():
        assert torch.equal(images, every(renamed)[name])
    for k in range(50):
        write(folder, f"new/{k}.png", noise(seed=5000 + k))
    after = opened(folder, size=8, channels=3)
    assert after.name != before.name
    known, now = split_of_every(before), split_of_every(after)
    assert len(now) == 150
    assert all(now[image] == name for image, name in known.items())


def test_copies_of_a_file_are_in_one_split_and_other_sizes_have_the_same_splits(tmp_path):
    folder = photos(tmp_path / "p", 60, classes=())
    for k in range(60):
        (folder / f"copy{k}.png").write_bytes((folder / f"{k:03}.png").read_bytes())
    data = opened(folder)
    where = {}
    for name, images in every(data).items():
        for image in images:
            where.setdefault(image.numpy().tobytes(), []).append(name)
    assert len(where) == 60
    assert all(len(names) == 2 and len(set(names)) == 1 for names in where.values())
    assert opened(folder, size=5, channels=1).counts == data.counts


def test_the_name_tells_size_contents_and_options(tmp_path):
    folder = photos(tmp_path / "my photos (new)", 30)
    name = opened(folder).name
    assert name.startswith("my-photos-new-8x8x3-")
    others = [opened(folder, **keywords).name for keywords in ({"size": 6}, {"channels": 1}, {"flip": True})]
    assert len({name, *others, opened(folder, classes=False).name, opened(folder, background="black").name}) == 6
    copied = tmp_path / "elsewhere" / "my photos (new)"
    photos(copied, 30)
    assert opened(copied).name == name
    os.utime(copied / "cat" / "000.png", (1, 1))
    assert opened(copied).name == name


def test_a_class_without_training_images_is_named(tmp_path):
    folder = photos(tmp_path / "p", 40)
    position = 1.0
    for k in range(100):
        # An image whose hash puts it in the test split.
        file = write(folder, "rare/a.png", noise(seed=7000 + k))
        position = int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:8], "big") / 2**64
        if position < 0.1:
            break
    assert position < 0.1
    with pytest.raises(ConfigError, match=r"no training sample of the classes \['rare'\]"):
        opened(folder)


def test_a_link_to_nothing_is_refused(tmp_path):
    """It may lead to a disk that is not there at the moment: it is never kept as damaged."""
    folder = photos(tmp_path / "p", 20)
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(ConfigError, match=r"cat/gone\.png cannot be opened \(No such file"):
        opened(folder)


def test_all_kinds_of_files_are_read_together(tmp_path):
    folder = tmp_path / "p"
    pixels = noise(16, seed=77)
    for k in range(10):
        write(folder, f"{k}.png", noise(16, seed=k))
    write(folder, "a.jpg", pixels, quality=95)
    write(folder, "b.bmp", pixels)
    write(folder, "c.webp", pixels, lossless=True)
    write(folder, "d.tiff", pixels)
    write(folder, "e.ppm", pixels)
    write(folder, "f.gif", noise(16, 1))
    write(folder, "g.png", (noise(16, 1).astype(np.uint16) * 257))
    Image.fromarray(noise(16, 4)).save(folder / "h.png")
    Image.fromarray(pixels).convert("P").save(folder / "i.png")
    data = opened(folder)
    assert sum(data.counts.values()) == 19
    found = [image.numpy() for images in every(data).values() for image in images]
    assert sum(np.array_equal(image, pixels.transpose(2, 0, 1)) for image in found) == 4
