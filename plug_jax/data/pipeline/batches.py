"""The batches of one process, from resumable data streams."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.caching.files import read_json, write_json
from plug_jax.data.drops import DatasetCounts
from plug_jax.data.pipeline.places import (
    counts_file,
    place_of,
    read_place,
    saved_streams,
    write_place,
)
from plug_jax.data.pipeline.stream_settings import Settings, changes
from plug_jax.errors import PlugError

# (stream, number of streams) to batches of that stream's rows.
OpenStream = Callable[[int, int], tf.data.Dataset]
# Counts by name, under "dropped" and "changed": see `plug_jax.data.drops`.
Counts = Mapping[str, Mapping[str, int]]

_SETTINGS = "settings.json"
# TensorFlow's errors for files that are damaged, missing, or unreachable.
_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.FailedPreconditionError,
)
_PATIENCE = 10.0  # seconds for a stream to become idle, so that counts match its position


def rows_of_process(
    *, batch_size: int, streams: int, process_index: int, process_count: int
) -> list[tuple[int, slice]]:
    """The streams that a process reads, and its rows of each stream's part of a batch.

    A batch consists of its streams' parts, in order; each process has an equal share of its rows.
    So batches are the same for every number of processes.

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
            "must divide the other."
        )
    rows, part = batch_size // process_count, batch_size // streams
    first, last = process_index * rows, (process_index + 1) * rows
    return [
        (stream, slice(max(first - stream * part, 0), min(last - stream * part, part)))
        for stream in range(first // part, -(-last // part))
    ]


@dataclasses.dataclass
class _Stream:
    """A stream that a process reads."""

    index: int
    rows: slice  # the process's rows of the stream's part of a batch
    iterator: Iterator
    counts: DatasetCounts
    # Counts up to the position last saved or restored.
    placed: Counts = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether this is the first process that reads the stream, which saves it."""
        return self.rows.start == 0


class BatchIterator:
    """Iterates over the batches of one process; `pipeline.make_iterator` makes it.

    A position can be restored if the number of processes divides the number of streams or is a
    multiple of it, whatever their number when it was saved: exactly the same batches follow, with
    no example lost or repeated.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        check_stream: Callable[[int, int], None],
        settings: Callable[[], Settings],
        endless: bool,
        batch_size: int,
        streams: int,
        process_index: int,
        process_count: int,
    ) -> None:
        """Builds the pipelines; nothing is read before the first batch.

        `check_stream` raises if a stream has no example. It is called before the first batch of
        `endless` streams, which would never give one, and after finite ones that gave none.
        `settings` returns the settings saved with a position, see `stream_settings`; their number
        of "streams" is None to keep that of a restored position.
        """
        self._open_stream = open_stream
        self._check_stream = check_stream
        self._settings = functools.cache(settings)
        self._endless = endless
        self._under_way = False
        self._shape = {
            "batch_size": batch_size,
            "process_index": process_index,
            "process_count": process_count,
        }
        self._opened: list[_Stream] = []
        self._open(streams)
        # tf.data threads that call Python during interpreter shutdown would never end, nor would
        # the program: delete the iterators first.
        weakref.finalize(self, self._opened.clear)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch: int32 [batch_size // process_count, row length] of every model feature.

        Raises PlugError if there is no example at all, or one that does not fit its row.
        """
        try:
            if self._endless and not self._under_way:
                self._settings()  # the settings when reading begins
                self._check_streams()
            parts = [next(stream.iterator) for stream in self._opened]
        except StopIteration:
            if not self._under_way:
                self._check_streams()
            raise
        except tf.errors.InvalidArgumentError as error:
            # A PlugError raised inside the graph arrives as text, below a traceback.
            if found := re.search(r"PlugError: (.*)", error.message):
                raise PlugError(found[1]) from error
            raise
        except _UNREADABLE as error:
            raise PlugError(
                f"the data can no longer be read: {error.message.splitlines()[0]}. Check the "
                "files; the same command resumes from the newest checkpoint, and checks them first"
            ) from error
        self._under_way = True
        return {
            name: np.concatenate(
                [
                    part[name].numpy()[stream.rows]
                    for part, stream in zip(parts, self._opened, strict=True)
                ]
            )
            for name in parts[0]
        }

    @property
    def streams(self) -> int:
        """The number of streams of all processes; a restored position has its own."""
        return self._streams

    def counts(self) -> Counts:
        """Counts of data dropped and changed up to the position last saved or restored.

        A position includes batches that were prefetched but not yet returned, and so do the counts.
        If several processes read a stream, the first has its counts.
        """
        return add_counts(stream.placed for stream in self._opened if stream.is_ours)

    def counts_so_far(self) -> Counts:
        """What its streams "dropped" and "changed" so far, wherever the position is."""
        return add_counts(stream.counts.read() for stream in self._opened if stream.is_ours)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the positions of the process's streams to `directory`/stream_<i>-of-<streams>.*.

        Also the counts of each stream, and the settings with the first. If several processes read a
        stream, the first writes.
        """
        tf.io.gfile.makedirs(os.fspath(directory))
        for stream in self._opened:
            if not stream.is_ours:
                continue
            place = place_of(directory, stream.index, self._streams)
            # Threads prefetch, and what they count meanwhile could be before or after the position.
            # They soon become idle, as nobody takes their batches; if reading is slow, the run does
            # not wait forever, and a restored one may lack what was counted in between.
            deadline = time.monotonic() + _PATIENCE
            while True:
                stream.placed = stream.counts.read()
                write_place(stream.iterator, place)
                if stream.counts.read() == stream.placed or time.monotonic() > deadline:
                    break
            write_json(counts_file(place), stream.placed)
            if stream.index == 0:
                settings = {**self._settings(), "streams": self._streams}
                write_json(os.path.join(directory, _SETTINGS), settings)

    def changes_since(self, directory: str | os.PathLike[str]) -> list[str] | None:
        """Settings of the batches that changed since `save` wrote to `directory`.

        In words, see `stream_settings.changes`; None if an older version of plug-jax did not save
        them.
        """
        then = read_json(os.path.join(directory, _SETTINGS))
        if then is None:
            return None
        now = dict(self._settings())
        if now["streams"] is None:
            now["streams"] = then["streams"]
        return changes(then, now)

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Restores the position that `save` wrote: the same batches follow.

        The number of streams becomes that of the saving run. Raises PlugError if `directory` has no
        position, one in other data or with other settings, or one that this number of processes
        cannot share.
        """
        saved = saved_streams(directory)
        if saved is None:
            raise PlugError(
                f"{os.fspath(directory)} holds no data position (stream_*.index); restore a "
                "complete checkpoint."
            )
        if found := self.changes_since(directory):
            raise PlugError(
                f"{os.fspath(directory)} is a position in other data than this run's:\n  "
                + "\n  ".join(found)
                + "\nContinue with what it was saved with. Or, if you want the change, set "
                "RESTART_CHANGED_DATA = True: the model stays, and the data start from their "
                "beginning (docs/data.md)."
            )
        if saved != self._streams:
            self._open(saved)
        for stream in self._opened:
            place = place_of(directory, stream.index, saved)
            read_place(stream.iterator, place)
            self._count_from(stream, read_json(counts_file(place)) or {})
        self._under_way = True

    def start_after(self, directory: str | os.PathLike[str]) -> None:
        """Starts from the beginning, after other data with a position in `directory`.

        Counts continue from there.
        """
        saved = saved_streams(directory) or 0
        places = [place_of(directory, index, saved) for index in range(saved)]
        for stream in self._opened:
            if stream.index == 0:
                total = add_counts(read_json(counts_file(place)) or {} for place in places)
                self._count_from(stream, total)

    def _count_from(self, stream: _Stream, counts: Counts) -> None:
        stream.counts.start_from(counts)
        stream.placed = counts

    def _check_streams(self) -> None:
        for stream in self._opened:
            self._check_stream(stream.index, self._streams)

    def _open(self, streams: int) -> None:
        rows_by_stream = rows_of_process(streams=streams, **self._shape)
        self._streams = streams
        options = tf.data.Options()
        options.deterministic = True
        self._opened.clear()
        for index, rows in rows_by_stream:
            counts = DatasetCounts()
            with counts.building():
                batches = self._open_stream(index, streams)
            batches = batches.prefetch(tf.data.AUTOTUNE).with_options(options)
            iterator = iter(without_autotuning(batches))
            self._opened.append(_Stream(index, rows, iterator, counts))


def add_counts(parts: Iterable[Counts]) -> Counts:
    """The counts of several streams together."""
    total: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in parts:
        for kind, counts in part.items():
            total[kind].update(counts)
    return {kind: dict(sorted(counts.items())) for kind, counts in total.items()}
