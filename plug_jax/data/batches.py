"""The batches of one process, out of data streams whose places can be saved and restored."""

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

from plug_jax.data.caching.files import read_json, write_json
from plug_jax.data.drops import DatasetCounts
from plug_jax.data.places import (
    counts_file,
    place_of,
    read_place,
    saved_streams,
    write_place,
)
from plug_jax.data.stream_settings import Settings, changes
from plug_jax.errors import PlugError

# (stream, of so many streams) to batches of that stream's rows.
OpenStream = Callable[[int, int], tf.data.Dataset]
# How much by its name, under "dropped" and "changed": see `plug_jax.data.drops`.
Counts = Mapping[str, Mapping[str, int]]

_SETTINGS = "settings.json"
# What TensorFlow raises for files that are damaged, gone, or out of reach.
_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.FailedPreconditionError,
)
_PATIENCE = 10.0  # seconds for a stream to rest, so that its counts are those of its place


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


@dataclasses.dataclass
class _Stream:
    """A stream that a process reads."""

    index: int
    rows: slice  # of its part of a batch: those that the process takes
    iterator: Iterator
    counts: DatasetCounts
    # Those on the way to the place that was last saved or restored.
    placed: Counts = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether this process, of those that read the stream, is the first and speaks for it."""
        return self.rows.start == 0


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
        settings: Callable[[], Settings],
        endless: bool,
        batch_size: int,
        streams: int,
        process_index: int,
        process_count: int,
    ) -> None:
        """Builds the pipelines; nothing is read before the first batch is asked for.

        `check_stream` raises if a stream has no example. It is asked before the first batch of
        `endless` streams, which would never give one, and after finite ones that gave none.
        `settings` gives what goes with a place, see `plug_jax.data.stream_settings`; the number of
        "streams" among them is None if a place's own is to be kept.
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
        # Threads of tf.data that call Python while the interpreter shuts down would never end, and
        # the program neither: the iterators have to go before.
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
                self._settings()  # as they are when reading begins
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
                f"the data cannot be read any more: {error.message.splitlines()[0]}. See what "
                "became of their files; the same command goes on from the newest checkpoint, and "
                "looks through them first"
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

    def counts(self) -> Counts:
        """What was dropped and changed on the way to the place last saved or restored.

        A place holds batches that were prepared and not yet asked for: so do the counts. Of several
        processes that read a stream, the first has its counts.
        """
        return add_counts(stream.placed for stream in self._opened if stream.is_ours)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the places of the process's streams to `directory`/stream_<i>-of-<streams>.*.

        With the counts of each stream, and with the first the settings. Of several processes that
        read a stream, the first writes.
        """
        tf.io.gfile.makedirs(os.fspath(directory))
        for stream in self._opened:
            if not stream.is_ours:
                continue
            place = place_of(directory, stream.index, self._streams)
            # Threads read ahead, and what they count meanwhile could lie on either side of the
            # place. They soon rest, for nobody takes batches from them; where reading is slow, the
            # run does not wait for ever, and a restored one may lack what was counted in between.
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
        """What the batches depend on and is not as it was when `save` wrote to `directory`.

        In words, see `plug_jax.data.stream_settings.changes`; None if it was not kept, by a version
        of plug-jax that did not.
        """
        then = read_json(os.path.join(directory, _SETTINGS))
        if then is None:
            return None
        now = dict(self._settings())
        if now["streams"] is None:
            now["streams"] = then["streams"]
        return changes(then, now)

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Goes to the place that `save` wrote: the batches that followed it follow again.

        The number of streams becomes that of the run that saved. Raises PlugError if `directory`
        holds no place, one in other data or of other settings, or one that so many processes cannot
        share.
        """
        saved = saved_streams(directory)
        if saved is None:
            raise PlugError(
                f"{os.fspath(directory)} holds no place in the data (stream_*.index); restore a "
                "complete checkpoint."
            )
        if found := self.changes_since(directory):
            raise PlugError(
                f"{os.fspath(directory)} is a place in other data than this run's:\n  "
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
        """Stays at the beginning, after other data of which `directory` is a place.

        Counts go on from there.
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
            self._opened.append(_Stream(index, rows, iter(batches), counts))


def add_counts(parts: Iterable[Counts]) -> Counts:
    """The counts of several streams together."""
    total: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in parts:
        for kind, counts in part.items():
            total[kind].update(counts)
    return {kind: dict(sorted(counts.items())) for kind, counts in total.items()}
