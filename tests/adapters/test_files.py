"""Files that are whole or absent."""

import contextlib
import multiprocessing
import os
import pickle
import stat
import time
from pathlib import Path

import pytest

from onestep_adapters.files import LockedError, one_writer, require_writable, write_whole


class Crash(BaseException):
    pass


def test_bytes_and_text_arrive_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "report.md"
    for data, expected in ((b"\x00\xff", b"\x00\xff"), ("± 1\r\n", "± 1\r\n".encode()), ("", b"")):
        write_whole(file, data)
        assert file.read_bytes() == expected
        assert list(tmp_path.iterdir()) == [file]
    write_whole(str(file), "a path as text")
    assert file.read_text() == "a path as text"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    """A user's ``--picture /dev/null`` must not remove the device."""
    place = tmp_path / "place"
    make(place)
    kind = stat.S_IFMT(place.lstat().st_mode)
    with pytest.raises(OSError, match="place"):
        write_whole(place, "new")
    with pytest.raises(OSError, match="null"):
        write_whole(os.devnull, "new")
    assert stat.S_IFMT(place.lstat().st_mode) == kind
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_in_place_of_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for folder in (tmp_path / "pipe", os.devnull):
        with pytest.raises(NotADirectoryError, match=Path(folder).name):
            require_writable(folder)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, name):
    file = tmp_path / "report.md"
    write_whole(file, "old")

    def fail(*args):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(Crash):
            write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def _hold(file, inside):
    with one_writer(file):
        inside.set()
        time.sleep(60)


@contextlib.contextmanager
def held(file):
    """Another process that holds a lock; killed at the end."""
    context = multiprocessing.get_context("fork")
    inside = context.Event()
    process = context.Process(target=_hold, args=(file, inside), daemon=True)
    process.start()
    assert inside.wait(60)
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_the_holder_of_a_lock_is_named_also_after_a_killed_one(tmp_path):
    file, known = tmp_path / ".lock", []
    for _ in range(2):
        with held(file) as pid:
            with pytest.raises(
                LockedError, match=rf"^process {pid} on .* writes there already \(.*\.lock\): wait"
            ) as caught:
                one_writer(file).__enter__()
            known.append(caught.value.holder)
    assert known[0] != known[1]
    killed = file.read_text()
    assert killed
    with one_writer(file):
        # The new holder has not written its name yet: the killed one is not named in its place.
        file.write_text(killed)
        with pytest.raises(LockedError, match=r"^another process writes there"):
            one_writer(file).__enter__()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.holder) == (str(caught.value), caught.value.holder)


def test_a_lock_on_a_full_disk_names_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            one_writer(tmp_path / ".lock").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / ".lock")
    with one_writer(tmp_path / ".lock"):
        pass


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_whole(tmp_path / "file" / "report.md", "new")
    assert caught.value.filename == str(tmp_path / "file" / "report.md")


def test_a_disk_that_is_full_halfway_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    write_whole(tmp_path / "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large.*/a'") as caught:
            write_whole(tmp_path / "a", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "a")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_honours_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644 & ~mask


def test_no_link_is_followed(tmp_path, monkeypatch):
    outside, link = tmp_path / "outside", tmp_path / "link"
    outside.write_text("kept")
    link.symlink_to(outside)
    write_whole(link, "new")
    assert outside.read_text() == "kept"
    assert not link.is_symlink()
    # Somebody who knew the temporary name cannot have it point elsewhere.
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 16)
    (tmp_path / "b.0000000000000000.partial").symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "b", "new")
    assert outside.read_text() == "kept"
