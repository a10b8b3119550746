"""Data positions of streams: stream_<i>-of-<n>.*, in one directory."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from plug_jax.errors import PlugError

_PLACE = re.compile(r"stream_\d+-of-(\d+)\.index")
_MAGIC = re.compile(r"[*?[\\]")
# TensorFlow's errors for an iterator checkpoint that is damaged or of another pipeline.
_READ_ERRORS = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)


def place_of(directory: str | os.PathLike[str], stream: int, streams: int) -> str:
    """The common prefix of a stream's files."""
    return os.path.join(os.fspath(directory), f"stream_{stream:05d}-of-{streams:05d}")


def counts_file(place: str) -> str:
    """The file with a position's counts of drops and changes."""
    return f"{place}.counts.json"


def saved_streams(directory: str | os.PathLike[str]) -> int | None:
    """The number of streams with positions in `directory`; None without any."""
    path = os.fspath(directory)
    names = tf.io.gfile.listdir(path) if tf.io.gfile.isdir(path) else []
    return next((int(found[1]) for name in names if (found := _PLACE.fullmatch(name))), None)


def write_place(iterator: Iterator, place: str) -> None:
    """Save the position of a tf.data iterator, replacing an earlier one."""
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    if not _MAGIC.search(place):
        checkpoint.write(place)
        return
    directory, name = os.path.split(place)
    with tempfile.TemporaryDirectory() as plain:
        checkpoint.write(os.path.join(plain, name))
        _copy(name, plain, directory)


def read_place(iterator: Iterator, place: str) -> None:
    """Restore a tf.data iterator to a position saved by the same pipeline.

    Raises:
        PlugError: the position is missing, damaged or of another pipeline.
    """
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    try:
        if not _MAGIC.search(place):
            checkpoint.read(place).assert_existing_objects_matched()
            return
        # TensorFlow treats a name as a pattern, and cannot escape it.
        directory, name = os.path.split(place)
        with tempfile.TemporaryDirectory() as plain:
            _copy(name, directory, plain)
            checkpoint.read(os.path.join(plain, name)).assert_existing_objects_matched()
    except _READ_ERRORS as error:
        raise PlugError(
            f"The data position in {place}.* cannot be restored: it is missing or damaged, or "
            f"was saved with another task or other settings of the data. ({error})"
        ) from error


def _copy(name: str, source: str, target: str) -> None:
    """Copy the files whose names begin with `name`."""
    for file in tf.io.gfile.listdir(source):
        if file.startswith(f"{name}."):
            to = os.path.join(target, file)
            tf.io.gfile.copy(os.path.join(source, file), to, overwrite=True)
