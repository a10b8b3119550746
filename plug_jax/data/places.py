"""The files of places in data streams: stream_<i>-of-<n>.*, in one directory for all streams."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from plug_jax.errors import PlugError

_PLACE = re.compile(r"stream_\d+-of-(\d+)\.index")
_MAGIC = re.compile(r"[*?[\\]")
# What TensorFlow raises for an iterator's checkpoint that is damaged or of another pipeline.
_READ_ERRORS = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)


def place_of(directory: str | os.PathLike[str], stream: int, streams: int) -> str:
    """What the names of a stream's files begin with."""
    return os.path.join(os.fspath(directory), f"stream_{stream:05d}-of-{streams:05d}")


def counts_file(place: str) -> str:
    """Where a place has its counts of drops and changes."""
    return f"{place}.counts.json"


def saved_streams(directory: str | os.PathLike[str]) -> int | None:
    """Of how many streams `directory` holds the places; None without any."""
    path = os.fspath(directory)
    names = tf.io.gfile.listdir(path) if tf.io.gfile.isdir(path) else []
    return next((int(found[1]) for name in names if (found := _PLACE.fullmatch(name))), None)


def write_place(iterator: Iterator, place: str) -> None:
    """Write where a tf.data iterator is, replacing what is there."""
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    if not _MAGIC.search(place):
        checkpoint.write(place)
        return
    directory, name = os.path.split(place)
    with tempfile.TemporaryDirectory() as plain:
        checkpoint.write(os.path.join(plain, name))
        _copy(name, plain, directory)


def read_place(iterator: Iterator, place: str) -> None:
    """Take a tf.data iterator to where another one of the same pipeline was.

    Raises:
        PlugError: there is no such place, or it is damaged or of another pipeline.
    """
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    try:
        if not _MAGIC.search(place):
            checkpoint.read(place).assert_existing_objects_matched()
            return
        # TensorFlow reads a name as a pattern, and has no way to escape what is none.
        directory, name = os.path.split(place)
        with tempfile.TemporaryDirectory() as plain:
            _copy(name, directory, plain)
            checkpoint.read(os.path.join(plain, name)).assert_existing_objects_matched()
    except _READ_ERRORS as error:
        raise PlugError(
            f"The place in the data in {place}.* cannot be restored: it is missing or damaged, or "
            f"was saved with another task or other settings of the data. ({error})"
        ) from error


def _copy(name: str, source: str, target: str) -> None:
    """Copy the files whose names begin with `name`."""
    for file in tf.io.gfile.listdir(source):
        if file.startswith(f"{name}."):
            to = os.path.join(target, file)
            tf.io.gfile.copy(os.path.join(source, file), to, overwrite=True)
