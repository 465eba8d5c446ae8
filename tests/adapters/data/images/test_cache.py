"""The cache of decoded images: whole or absent, checked when it is opened, built by one of several processes."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from onestep_adapters.data import ImageOptions, open_dataset
from onestep_adapters.data.couplings import untracked
from onestep_adapters.data.images.cache import cache_home, cached_images
from onestep_adapters.data.images.folder import FolderSource
from onestep_adapters.data.images.locking import locked
from onestep_core.errors import ConfigError, OneStepError
from tests.adapters.data.images.made import noise, photos, write

OPEN = r"""
import os, sys, time
from pathlib import Path
from onestep_adapters.data import open_dataset
from onestep_adapters.data.images import folder

read = folder.FolderSource.read

def slow(self, index, options):
    # One call of the operating system: lines of two threads are not mixed.
    os.write(1, f"read {index}\n".encode())
    time.sleep(0.02)
    return read(self, index, options)

def track(items, title, total):
    os.write(1, f"{title}\n".encode())
    yield from items

folder.FolderSource.read = slow
place, together, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
(together / str(os.getpid())).touch()
while len(list(together.iterdir())) < count:
    time.sleep(0.01)
data = open_dataset(f"folder:{place}", size=8, channels=3, track=track)
print("done", data.name, flush=True)
"""


def processes(tmp_path, count):
    """Processes that open one folder at the same time: they wait for one another after their imports."""
    folder, together = photos(tmp_path / "p", 60), tmp_path / "together"
    together.mkdir()
    words = [sys.executable, "-c", OPEN, str(folder), str(together), str(count)]
    return [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)]


def counting(monkeypatch):
    """The number of images that are decoded from now on."""
    from onestep_adapters.data.images import folder

    found, read = [], folder.FolderSource.read

    def counted(self, index, options):
        found.append(index)
        return read(self, index, options)

    monkeypatch.setattr(folder.FolderSource, "read", counted)
    return found


def caches(home):
    return sorted(path for path in (home / "images").iterdir() if path.is_dir())


def test_images_are_decoded_once(tmp_path, monkeypatch, own_cache):
    folder, decoded = photos(tmp_path / "p", 20), counting(monkeypatch)
    first = open_dataset(f"folder:{folder}")
    assert len(decoded) == 20
    again = open_dataset(f"folder:{folder}")
    assert open_dataset(f"folder:{folder}", flip=True).flip
    assert len(decoded) == 20
    assert again.name == first.name
    assert np.array_equal(again.images.numpy(), first.images.numpy())
    assert [str(path) for path in caches(own_cache)] == [first.facts["cache"]]
    open_dataset(f"folder:{folder}", size=4)
    assert len(decoded) == 40
    assert len(caches(own_cache)) == 2


def test_a_changed_file_is_decoded_again(tmp_path, monkeypatch):
    folder, decoded = photos(tmp_path / "p", 20), counting(monkeypatch)
    first = open_dataset(f"folder:{folder}")
    write(folder, "cat/000.png", noise(seed=999))
    os.utime(folder / "cat" / "000.png", (1, 1))
    second = open_dataset(f"folder:{folder}")
    assert len(decoded) == 40
    assert second.name != first.name


def test_a_file_that_cannot_be_opened_for_a_moment_is_not_kept_as_a_damaged_one(tmp_path):
    """It was left out of the cache for ever, and of that of every copy of the folder."""
    folder = photos(tmp_path / "p", 20)
    source, options = FolderSource(folder, ImageOptions()), ImageOptions(size=8, channels=3, skip_corrupt=True)
    (folder / "cat" / "000.png").rename(tmp_path / "away")
    for read in (lambda: cached_images(source, options), lambda: source.natural(ImageOptions(), untracked)):
        with pytest.raises(ConfigError, match=r"cat/000\.png cannot be opened \(No such file"):
            read()
    (tmp_path / "away").rename(folder / "cat" / "000.png")
    assert len(cached_images(source, options).pixels) == 20


def test_progress_is_shown(tmp_path):
    shown = []

    def track(items, title, total):
        shown.append([title, total, 0])
        for item in items:
            yield item
            shown[-1][2] += 1

    open_dataset(f"folder:{photos(tmp_path / 'p', 20)}", track=track)
    assert shown == [["sizes of images", 20, 20], ["decoding images", 20, 20]]


@pytest.mark.parametrize(
    "damage", ["cut pixels", "another pixel", "other hashes", "no index", "cut index", "other facts", "no labels"]
)
def test_a_damaged_cache_is_built_again(damage, tmp_path, monkeypatch):
    folder = photos(tmp_path / "p", 20)
    first = open_dataset(f"folder:{folder}")
    expected, cache = first.images.numpy().copy(), tmp_path / "cache" / "images"
    cache = cache / os.path.basename(first.facts["cache"])
    index = cache / "index.json"
    if damage == "cut pixels":
        content = (cache / "images.u8").read_bytes()
        (cache / "images.u8").write_bytes(content[:-5])
    elif damage == "another pixel":
        content = bytearray((cache / "images.u8").read_bytes())
        content[100] ^= 1
        (cache / "images.u8").write_bytes(content)
    elif damage == "other hashes":
        hashes = np.load(cache / "hashes.npy")
        hashes[0, 0] ^= 1
        np.save(cache / "hashes.npy", hashes)
    elif damage == "no index":
        index.unlink()
    elif damage == "cut index":
        index.write_text(index.read_text()[:-20])
    elif damage == "other facts":
        index.write_text(index.read_text().replace('"cat"', '"cow"'))
    else:
        (cache / "labels.npy").unlink()
    decoded = counting(monkeypatch)
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        again = open_dataset(f"folder:{folder}")
    assert len(decoded) == 20
    assert again.class_names == ("cat", "dog")
    assert np.array_equal(again.images.numpy(), expected)


def test_a_damaged_size_is_found_again(tmp_path, own_cache):
    """One flipped bit made 8 x 8 to 9 x 9, and the run another one."""
    folder = photos(tmp_path / "p", 20)
    first = open_dataset(f"folder:{folder}")
    file = next((own_cache / "images").glob("*.natural.json"))
    file.write_bytes(file.read_bytes().replace(b"8", b"9", 1))
    with pytest.warns(UserWarning, match=r"natural\.json is damaged: it is made again"):
        again = open_dataset(f"folder:{folder}")
    assert (again.name, again.shape) == (first.name, first.shape)


def test_two_processes_at_once_build_one_cache(tmp_path, own_cache):
    outputs = [found.communicate(timeout=120) for found in processes(tmp_path, 2)]
    lines = [output.splitlines() for output, _ in outputs]
    assert all(found[-1].startswith("done p-8x8x3-") for found in lines), outputs
    titles = sorted(found[0] for found in lines)
    assert titles == ["decoding images", "waiting for another process: decoding images"]
    assert lines[0][-1] == lines[1][-1]
    reads = [line for found in lines for line in found if line.startswith("read")]
    assert sorted(reads) == sorted(f"read {k}" for k in range(60))
    assert len(caches(own_cache)) == 1
    assert not list((own_cache / "images").glob("*.partial"))


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_process_leaves_no_half_cache_and_no_lock(tmp_path, own_cache):
    (killed,) = processes(tmp_path, 1)
    for line in killed.stdout:
        if line.startswith("read 3"):
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    left = caches(own_cache)
    assert [path.suffix for path in left] == [".partial"]
    data = open_dataset(f"folder:{tmp_path / 'p'}", size=8, channels=3)
    assert sum(data.counts.values()) == 60
    assert [str(path) for path in caches(own_cache)] == [data.facts["cache"]]


def test_an_error_leaves_nothing_behind(tmp_path, own_cache, monkeypatch):
    from onestep_adapters.data.images import folder as module

    folder = photos(tmp_path / "p", 20)

    def full(self, index, options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OneStepError, match=r"No space left.*ONESTEP_CACHE"):
        patch.setattr(module.FolderSource, "read", full)
        open_dataset(f"folder:{folder}")
    assert caches(own_cache) == []
    assert sum(open_dataset(f"folder:{folder}").counts.values()) == 20


def test_a_lock_is_held_by_one(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom onestep_adapters.data.images.locking import locked\n"
        "with locked(Path(sys.argv[1]), lambda: print('waiting', flush=True)):\n    print('mine', flush=True)\n"
    )
    with locked(tmp_path / "lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "waiting\n"
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_the_place_of_the_caches(monkeypatch, tmp_path):
    assert cache_home() == tmp_path / "cache"
    monkeypatch.delenv("ONESTEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_home() == tmp_path / "xdg" / "onestep"
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(OneStepError, match=r"cannot be created .*set ONESTEP_CACHE"):
        open_dataset(f"folder:{photos(tmp_path / 'p', 10)}")
