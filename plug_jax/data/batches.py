"""The batches of one process, out of data streams whose places can be saved and restored."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from plug_jax.errors import PlugError

# What TensorFlow raises for an iterator's checkpoint that is damaged or of another pipeline.
_RESTORE_ERRORS = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)
# (stream, of so many streams) to batches of that stream's rows.
OpenStream = Callable[[int, int], tf.data.Dataset]


def rows_of_process(
    *, batch_size: int, streams: int, process_index: int, process_count: int
) -> list[tuple[int, slice]]:
    """The streams that a process reads, and which rows of each stream's part of a batch.

    A batch is the parts of its streams, in order; each process has an equal share of its rows. So
    the batches are the same for every number of processes.

    Example, 8 rows of 4 streams: the second of 2 processes has [(2, [0:2]), (3, [0:2])], the fifth
    of 8 has [(2, [0:1])].

    Raises PlugError if rows, streams and processes cannot be divided.
    """
    if batch_size % streams or batch_size % process_count:
        raise PlugError(
            f"A batch of {batch_size} rows cannot be split evenly over {streams} data streams and "
            f"{process_count} processes; choose a multiple of both."
        )
    if streams % process_count and process_count % streams:
        raise PlugError(
            f"{streams} data streams cannot be shared by {process_count} processes: one number "
            "has to divide the other."
        )
    rows, part = batch_size // process_count, batch_size // streams
    first, last = process_index * rows, (process_index + 1) * rows
    return [
        (stream, slice(max(first - stream * part, 0), min(last - stream * part, part)))
        for stream in range(first // part, -(-last // part))
    ]


class BatchIterator:
    """Iterates over the batches of one process; `plug_jax.data.pipeline.make_iterator` makes it.

    Restoring takes a place that was saved by any number of processes that divides the number of
    streams, or is a multiple of it: the very same batches follow, no example is lost and none is
    seen twice.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        check_stream: Callable[[int, int], None],
        endless: bool,
        batch_size: int,
        streams: int,
        process_index: int,
        process_count: int,
    ) -> None:
        """Builds the pipelines; nothing is read before the first batch is asked for.

        `check_stream` raises if a stream has no example. It is asked before the first batch of
        `endless` streams, which would never give one, and after finite ones that gave none.
        """
        self._open_stream = open_stream
        self._check_stream = check_stream
        self._endless = endless
        self._under_way = False
        self._shape = {
            "batch_size": batch_size,
            "process_index": process_index,
            "process_count": process_count,
        }
        self._iterators: list[Iterator] = []
        self._open(streams)
        # Threads of tf.data that call Python while the interpreter shuts down would never end, and
        # the program neither: the iterators have to go before.
        weakref.finalize(self, self._iterators.clear)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch: int32 [batch_size // process_count, row length] of every model feature.

        Raises PlugError if there is no example at all, or one that does not fit its row.
        """
        try:
            if self._endless and not self._under_way:
                self._check_streams()
            parts = [next(iterator) for iterator in self._iterators]
        except StopIteration:
            if not self._under_way:
                self._check_streams()
            raise
        except tf.errors.InvalidArgumentError as error:
            # A PlugError raised inside the graph arrives as text, below a traceback.
            if found := re.search(r"PlugError: (.*)", error.message):
                raise PlugError(found[1]) from error
            raise
        self._under_way = True
        return {
            name: np.concatenate(
                [
                    part[name].numpy()[rows]
                    for part, (_, rows) in zip(parts, self._rows, strict=True)
                ]
            )
            for name in parts[0]
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the places of the process's streams to `directory`/stream_<i>-of-<streams>.*.

        Of several processes that read a stream, the first writes.
        """
        tf.io.gfile.makedirs(os.fspath(directory))
        for iterator, (stream, rows) in zip(self._iterators, self._rows, strict=True):
            if rows.start == 0:
                place = _place(directory, stream, self._streams)
                tf.train.Checkpoint(iterator=iterator).write(place)

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Goes to the place that `save` wrote: the batches that followed it follow again.

        Task, settings, batch size and seed must be those of the run that saved; the number of
        streams becomes that run's. Raises PlugError if `directory` holds no place, or one that so
        many processes cannot share.
        """
        saved = _saved_streams(directory)
        if saved is None:
            raise PlugError(
                f"{os.fspath(directory)} holds no place in the data (stream_*.index); restore a "
                "complete checkpoint."
            )
        if saved != self._streams:
            self._open(saved)
        for iterator, (stream, _) in zip(self._iterators, self._rows, strict=True):
            place = _place(directory, stream, saved)
            try:
                checkpoint = tf.train.Checkpoint(iterator=iterator)
                checkpoint.read(place).assert_existing_objects_matched()
            except _RESTORE_ERRORS as error:
                raise PlugError(
                    f"The place in the data in {place}.* cannot be restored: it is missing or "
                    "damaged, or was saved with another task or other settings of the data. "
                    f"({error})"
                ) from error
        self._under_way = True

    def _check_streams(self) -> None:
        for stream, _ in self._rows:
            self._check_stream(stream, self._streams)

    def _open(self, streams: int) -> None:
        self._rows = rows_of_process(streams=streams, **self._shape)
        self._streams = streams
        options = tf.data.Options()
        options.deterministic = True
        self._iterators[:] = [
            iter(
                self._open_stream(stream, streams).prefetch(tf.data.AUTOTUNE).with_options(options)
            )
            for stream, _ in self._rows
        ]


def _place(directory: str | os.PathLike[str], stream: int, streams: int) -> str:
    return os.path.join(os.fspath(directory), f"stream_{stream:05d}-of-{streams:05d}")


def _saved_streams(directory: str | os.PathLike[str]) -> int | None:
    """Of how many streams `directory` holds the places; None without any."""
    files = tf.io.gfile.glob(os.path.join(os.fspath(directory), "stream_*-of-*.index"))
    return int(files[0].removesuffix(".index")[-5:]) if files else None
