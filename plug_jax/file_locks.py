"""Locks between processes, in local files; they end with the process, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator

from plug_jax.atomic_files import is_remote
from plug_jax.errors import PlugError

# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def alone(
    path: str | os.PathLike[str],
    what: str,
    *,
    advice: str = "Wait for it, or end it",
    error: type[PlugError] = PlugError,
) -> Iterator[None]:
    """Within the context, no other process holds the lock file `path`, which names its holder.

    The file is removed at the end. Stores such as gs://, file systems without locks, and
    directories where nothing can be created (which others report) have no lock.

    Args:
        path: the lock file, in an existing directory.
        what: what the other process does, for the message.
        advice: what to do then.
        error: the message's class.

    Raises:
        PlugError: another process holds it, on any machine that shares the file system.
    """
    name = os.fspath(path)
    try:
        descriptor = None if is_remote(name) else _lock(name)
    except _Held as held:
        raise error(f"{what}: {held}. {advice}") from None
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
            os.close(descriptor)


class _Held(Exception):
    """By another process, which it names."""


def _lock(path: str) -> int | None:
    """The open lock file, locked and with its holder's name; None if it cannot be created."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise _Held(_named(holder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # of a process that ended and removed it in between
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    this = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
    with contextlib.suppress(OSError):  # only for messages
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(this).encode(), 0)
    return descriptor


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _named(holder: bytes) -> str:
    try:
        return "process {pid} on {host}, since {since}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # empty, or not our format
        return "it has just started"
