"""Files that are there as a whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import contextlib
import os

from etils import epath


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is of a store such as gs://, where writing an object replaces it at once."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file, text in UTF-8, in place of what is there.

    Until all of it is on the disk the old one stays; a process that is killed may leave `path`.tmp,
    which the next call takes over. One process at a time.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    name = os.fspath(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if is_remote(name):
        epath.Path(name).write_bytes(data)
        return
    part = f"{name}.tmp"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, name)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise OSError(error.errno, error.strerror, name) from error
    with contextlib.suppress(OSError):  # some file systems have no such call for directories
        sync(os.path.dirname(name) or ".")


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until what was written to a local file, or a directory's names, are on the disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
