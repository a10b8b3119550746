"""TensorBoard's event files, which are TFRecord files of `Event`s."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from plug_jax import atomic_files

_VERSION = "brain.Event:2"  # by which TensorBoard knows the meaning of a `SessionLog`
_RGBA = 4  # TensorBoard's number of that color space
_count = itertools.count()  # of the files of this process


class EventFiles:
    """The event files of a run, one or more a process; those of earlier ones stay as they are.

    They are written without tf.summary, which has a thread of its own that would meet a full disk,
    and keeps every number that it has ever seen.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Make the directory."""
        self._directory = os.fspath(directory)
        tf.io.gfile.makedirs(self._directory)
        self._path: str | None = None
        self._file: tf.io.TFRecordWriter | None = None

    def append(self, event: Event) -> None:
        """Add an event, and hand it to the system.

        Raises:
            OSError: it cannot be written. The next event begins a file of its own, for a reader
                goes no further in one than to half an event.
        """
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(event.SerializeToString())
            self._file.flush()
        except tf.errors.OpError as error:
            self.close()
            raise OSError(error.error_code, error.message, self._directory) from error

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        if self._path is not None:
            atomic_files.sync(self._path)

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self._file is not None:
            with contextlib.suppress(tf.errors.OpError):  # each event is written already, or lost
                self._file.close()
            self._file = None

    def _open(self) -> tf.io.TFRecordWriter:
        # TensorBoard reads the files in the order of their names.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count):04d}"
        self._path = os.path.join(self._directory, f"events.out.tfevents.{name}")
        file = tf.io.TFRecordWriter(self._path)
        file.write(Event(wall_time=time.time(), file_version=_VERSION).SerializeToString())
        return file


def going_on_from(step: int) -> Event:
    """What makes TensorBoard forget all that stands after `step` in what it has read so far."""
    start = SessionLog(status=SessionLog.START)
    return Event(wall_time=time.time(), step=step + 1, session_log=start)


def scalars(step: int, values: Mapping[str, float]) -> Event:
    """Scalars by name."""
    # As simple values: readers in Python do not forget tensors where a run goes back.
    summary = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=summary))


def picture(step: int, name: str, png: bytes) -> Event:
    """A picture as a PNG file holds it."""
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=png)
    value = Summary.Value(tag=f"{name}/image/0", image=image)
    return Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))
