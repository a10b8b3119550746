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

_VERSION = "brain.Event:2"  # tells TensorBoard how to interpret a `SessionLog`
_RGBA = 4  # TensorBoard's number of this colour space
_count = itertools.count()  # numbers this process's files


class EventFiles:
    """The event files of a run, one or more per process; earlier ones are not changed.

    They are written without tf.summary, which writes in its own thread, where errors such as a full
    disk occur, and keeps every value in memory.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Make the directory."""
        self._directory = os.fspath(directory)
        tf.io.gfile.makedirs(self._directory)
        self._path: str | None = None
        self._file: tf.io.TFRecordWriter | None = None

    def append(self, event: Event) -> None:
        """Append an event and flush it.

        Raises:
            OSError: it cannot be written. The next event starts a new file, because readers stop at
                an incomplete event.
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
        """Wait until everything is on disk."""
        if self._path is not None:
            atomic_files.sync(self._path)

    def close(self) -> None:
        """Close the open file, if any."""
        if self._file is not None:
            with contextlib.suppress(tf.errors.OpError):  # events are already written, or lost
                self._file.close()
            self._file = None

    def _open(self) -> tf.io.TFRecordWriter:
        # TensorBoard reads files in name order.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count):04d}"
        self._path = os.path.join(self._directory, f"events.out.tfevents.{name}")
        file = tf.io.TFRecordWriter(self._path)
        file.write(Event(wall_time=time.time(), file_version=_VERSION).SerializeToString())
        return file


def going_on_from(step: int) -> Event:
    """An event that makes TensorBoard discard later steps than `step`."""
    start = SessionLog(status=SessionLog.START)
    return Event(wall_time=time.time(), step=step + 1, session_log=start)


def scalars(step: int, values: Mapping[str, float]) -> Event:
    """Scalars by name."""
    # As simple values: TensorBoard's Python readers do not discard tensors on a restart.
    summary = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=summary))


def picture(step: int, name: str, png: bytes) -> Event:
    """An image in PNG format."""
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=png)
    value = Summary.Value(tag=f"{name}/image/0", image=image)
    return Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))
