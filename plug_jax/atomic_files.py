"""Atomic file writes: a file is complete or absent, whatever ends the process or the machine."""

from __future__ import annotations

import contextlib
import os
import uuid

from etils import epath


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store such as gs://, where writes replace objects at once."""
    return "://" in os.fspath(path)


def write_whole(
    path: str | os.PathLike[str], content: bytes | str, *, shared: bool = False
) -> None:
    """Write or replace a file atomically; text is written in UTF-8.

    The old file stays until the new one is on disk. A killed process may leave `path`.tmp, which
    the next call replaces. One process at a time, unless the file is `shared`: then each call has
    a temporary file of its own, and the last one's content stays. Devices and pipes are written to,
    not replaced.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    name = os.fspath(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if is_remote(name):
        epath.Path(name).write_bytes(data)
        return
    # /dev/stdout cannot be renamed over, and the superuser could replace /dev/null.
    special = os.path.exists(name) and not os.path.isfile(name)
    own = f".{uuid.uuid4().hex}" if shared else ""
    part = name if special else f"{name}{own}.tmp"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            if special:
                return
            os.fsync(file.fileno())
        os.replace(part, name)
    except OSError as error:
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise OSError(error.errno, error.strerror, name) from error
    with contextlib.suppress(OSError):  # some file systems have no such call for directories
        sync(os.path.dirname(name) or ".")


def sync(path: str | os.PathLike[str]) -> None:
    """fsync a local file, or a directory's entries."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
