"""The lock on MODEL_DIR: one run at a time writes to it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import ClassVar

import jax
from etils import epath

from plug_jax.atomic_files import is_remote
from plug_jax.errors import PlugError

LOCK_FILE = "run.lock"
# Directories and appended files of a run; others are rewritten.
_DIRECTORIES = ("checkpoints", "tensorboard", "vocabulary")
_WRITTEN_IN = (*_DIRECTORIES, "metrics.jsonl", LOCK_FILE)
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class ModelDirInUse(PlugError):
    """Another run writes to this MODEL_DIR."""

    status: ClassVar[int] = 76


@contextlib.contextmanager
def held(model_dir: epath.Path) -> Iterator[None]:
    """Make MODEL_DIR if it is missing; within the context, no other run writes to it.

    The lock is the system's on MODEL_DIR/run.lock, which names its holder. It ends with the
    process, however that ends, and holds on all machines that share the file system. The first
    process of a run takes it for all. Stores such as gs://, and file systems without locks, have
    none.

    Raises:
        ModelDirInUse: another run has it; the message names its host and process.
        PlugError: MODEL_DIR is not a directory, or cannot be written to.
    """
    _check(model_dir)
    if jax.process_index() > 0:
        yield
        return
    with alone(model_dir):
        yield


@contextlib.contextmanager
def alone(model_dir: epath.Path) -> Iterator[None]:
    """Within the context, no other process writes to an existing MODEL_DIR; see `held`."""
    if is_remote(model_dir):
        yield
        return
    path = os.path.join(model_dir, LOCK_FILE)
    descriptor = _lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _lock(path: str) -> int:
    """The open lock file, locked and with its holder's name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise ModelDirInUse(_in_use(os.path.dirname(path), holder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # of a run that ended and removed it in between
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    this = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
    # Only for messages: a full disk is reported by those who must write.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(this).encode(), 0)
    return descriptor


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _in_use(model_dir: str, holder: bytes) -> str:
    try:
        run = "process {pid} on {host}, since {since}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # empty, or not our format
        run = "it has just started"
    return (
        f"MODEL_DIR {model_dir} is in use by another run: {run}. Wait for it, end it, or choose "
        "another MODEL_DIR"
    )


def _check(model_dir: epath.Path) -> None:
    """PlugError unless files can be created there, and in a run's existing directories."""
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(one for one in (model_dir, *model_dir.parents) if one.exists())
        raise PlugError(
            f"MODEL_DIR {model_dir} cannot be a directory, for {file} is a file; choose another"
        ) from None
    except OSError as error:
        raise PlugError(
            f"MODEL_DIR {model_dir} cannot be made: {error.strerror}; choose another"
        ) from error
    if is_remote(model_dir):
        _check_store(model_dir)
        return
    for path in (model_dir, *(model_dir / name for name in _WRITTEN_IN)):
        if path.exists() and path.is_dir() != (path == model_dir or path.name in _DIRECTORIES):
            kinds = "directory", "file"
            found, needed = kinds if path.is_dir() else reversed(kinds)
            raise PlugError(
                f"{path} is a {found}, and a run needs a {needed} of that name: move it away, or "
                "choose another MODEL_DIR"
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise PlugError(
                f"MODEL_DIR {model_dir} cannot be written to: {path} is not writable for this user "
                "or its file system is mounted read-only; change that, or choose another MODEL_DIR"
            )


def _check_store(model_dir: epath.Path) -> None:
    probe = model_dir / f"writable-{jax.process_index()}.tmp"
    try:
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # any class, from epath's library for the store
        raise PlugError(f"MODEL_DIR {model_dir} cannot be written to: {error}") from error
