"""Files that are whole or absent."""

import os
import secrets
from pathlib import Path


def write_whole(file: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` to ``file``, wholly or not at all.

    The data goes to a new file with an unpredictable name in the same folder, is flushed to the disk and moved into
    place. If anything fails, the new file is removed and ``file`` is as it was. If the process is killed, ``file`` is
    as it was, and a file ``NAME.RANDOM.partial`` may stay beside it. A link at ``file`` is replaced, not followed.

    Args:
        file: in a folder that exists.
        data: text is encoded as UTF-8, without a change of its line ends.

    Raises:
        OSError: if the folder does not exist or cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a", "whole")
        ...     (Path(folder) / "a").read_bytes(), len(list(Path(folder).iterdir()))
        (b'whole', 1)
    """
    file = Path(file)
    partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}.partial")
    # O_EXCL: the file is new, so nothing that exists is overwritten and no link is followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
