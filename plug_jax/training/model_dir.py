"""The lock on MODEL_DIR: one run at a time writes to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar

import jax
from etils import epath

from plug_jax import file_locks
from plug_jax.atomic_files import is_remote
from plug_jax.errors import PlugError

LOCK_FILE = "run.lock"
# Directories and appended files of a run; others are rewritten.
_DIRECTORIES = ("checkpoints", "tensorboard", "vocabulary")
_WRITTEN_IN = (*_DIRECTORIES, "metrics.jsonl", LOCK_FILE)


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
    with file_locks.alone(
        model_dir / LOCK_FILE,
        f"MODEL_DIR {model_dir} is in use by another run",
        advice="Wait for it, end it, or choose another MODEL_DIR",
        error=ModelDirInUse,
    ):
        yield


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
