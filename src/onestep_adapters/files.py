"""Files that are whole or absent, and folders with one writer at a time."""

import contextlib
import errno
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from onestep_core.errors import ConfigError, OneStepError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


_LOOKS, _PAUSE = 20, 0.02
"""Readings of a lock until its holder has written its name, and seconds between them."""


class LockedError(OneStepError):
    """Another process writes there; the message names it.

    Args:
        holder: the process: ``"process 12 on HOST"``.
        file: the lock.
    """

    def __init__(self, holder: str, file: str | os.PathLike[str]) -> None:
        super().__init__(holder, file)
        self.holder, self.file = holder, Path(file)

    def __str__(self) -> str:
        return f"{self.holder} writes there already ({self.file}): wait until it ends, or choose another folder"


@contextlib.contextmanager
def one_writer(file: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, this process alone holds the lock on ``file``; the system releases it if the process dies.

    Args:
        file: the lock, created if it does not exist, and never removed. It says who holds it.

    Raises:
        LockedError: if another process, or another thread of this one, holds it.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, one_writer(Path(folder) / ".lock"):
        ...     with one_writer(Path(folder) / ".lock"):  # doctest: +ELLIPSIS
        ...         pass
        Traceback (most recent call last):
        ...
        onestep_adapters.files.LockedError: process ... writes there already...
    """
    file = require_path("file", file)
    # A link is not followed: what it points to would be overwritten.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file, flags, 0o644)
    try:
        with errors_name(file):
            if not _locked(descriptor):
                raise LockedError(_holder(descriptor), file)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        if fcntl is None:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise
        return False
    return True


def _holder(descriptor: int) -> str:
    """What the holder of a lock wrote about itself; it may be about to write it."""
    for _ in range(_LOOKS):
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            said = json.loads(os.read(descriptor, 1000))
            process, host = int(said["process"]), str(said["host"])[:100]
        except (ValueError, KeyError, TypeError):
            pass
        else:
            # A killed process leaves its name in the file.
            if host != socket.gethostname() or _runs(process):
                return f"process {process} on {host}"
        time.sleep(_PAUSE)
    return "another process"


def _runs(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def errors_name(file: Path) -> Iterator[None]:
    """Inside, an error of the operating system names ``file``: a full disk is reported without a name.

    Example:
        >>> with errors_name(Path("report.md")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] No space left on device: 'report.md'
    """
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(file)
        raise


def require_path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a path.

    Raises:
        ConfigError: if it is no path, or the empty string, which would be the current folder.

    Example:
        >>> require_path("folder", None)
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: folder = None: expected a path, a str or a pathlib.Path
    """
    if not isinstance(value, str | os.PathLike) or value == "" or "\0" in str(value):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{name} = {value!r}: expected a path, a str or a pathlib.Path")
    return Path(value)


def is_pipeline(folder: str) -> bool:
    """Whether a folder was written by ``save_pretrained`` of a pipeline of diffusers, which need not be installed.

    Example:
        >>> is_pipeline("/nowhere")
        False
    """
    return (Path(folder).expanduser() / "model_index.json").is_file()


def partial_name(file: Path) -> Path:
    """An unpredictable name beside ``file`` for what is not whole yet."""
    return file.with_name(f"{file.name}.{secrets.token_hex(8)}.partial")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, created with its parents if it does not exist.

    Raises:
        OSError: if it cannot be created; it names the folder.
    """
    folder = require_path("folder", folder)
    with errors_name(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Create a folder if it does not exist, and find out whether files can be written there: before a long computation.

    Raises:
        OSError: if not; it names the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     require_writable(Path(home) / "new")
        ...     [file.name for file in Path(home).rglob("*")]
        ['new']
    """
    folder = make_folder(folder)
    with errors_name(folder):
        trial = partial_name(folder / "trial")
        try:
            write_whole(trial, b"trial")
        except FileNotFoundError as error:
            # The folder exists, and is of a kind in which nothing can be created, such as /proc.
            raise PermissionError(errno.EACCES, "No file can be created there") from error
        trial.unlink()


def require_replaceable(file: Path) -> None:
    """Refuse what is neither a regular file nor a link: moving a file there would remove a device or a pipe.

    Raises:
        OSError: for such a file; it names the file.

    Example:
        >>> require_replaceable(Path(os.devnull))
        Traceback (most recent call last):
        ...
        FileExistsError: [Errno 17] Is a device, pipe or socket, and is not replaced: '/dev/null'
    """
    try:
        mode = file.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(file))
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "Is a device, pipe or socket, and is not replaced", os.fspath(file))


def write_whole(file: str | os.PathLike[str], data: bytes | str, *, partial: Path | None = None) -> None:
    """Write ``data`` to ``file``, wholly or not at all.

    The data goes to a new file with an unpredictable name in the same folder, is flushed to the disk and moved into
    place. If anything fails, the new file is removed and ``file`` is as it was. If the process is killed, ``file`` is
    as it was, and a file ``NAME.RANDOM.partial`` may stay beside it. A link at ``file`` is replaced, not followed. A
    folder, a device such as ``/dev/null``, a pipe or a socket stays.

    Args:
        file: in a folder that exists.
        data: text is encoded as UTF-8, without a change of its line ends.
        partial: the name of the new file until it is whole, by default :func:`partial_name`.

    Raises:
        OSError: if the folder does not exist or cannot be written to, or if ``file`` exists and is no regular file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a", "whole")
        ...     (Path(folder) / "a").read_bytes(), len(list(Path(folder).iterdir()))
        (b'whole', 1)
    """
    file = require_path("file", file)
    partial = partial_name(file) if partial is None else partial
    # O_EXCL: the file is new, so nothing that exists is overwritten and no link is followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with errors_name(file):
        require_replaceable(file)
        descriptor = os.open(partial, flags, 0o644)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data.encode() if isinstance(data, str) else data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    if os.name == "posix":
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
