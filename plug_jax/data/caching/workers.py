"""Local worker processes for shards, and their progress."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

import tensorflow as tf

from plug_jax.data.caching.files import SplitFiles, read_json
from plug_jax.data.caching.process import start_worker
from plug_jax.data.caching.shards import ShardWork
from plug_jax.errors import PlugError

_POLL_SECONDS = 0.5

# The worker processes of a local runner; None on a remote worker, which does the work itself.
_pool: futures.ProcessPoolExecutor | None = None


@dataclasses.dataclass(frozen=True)
class CacheProgress:
    """Progress of one pass over a split."""

    split: str
    step: str  # "comparing" or "writing"
    shards_done: int
    shards: int
    documents: int  # so far, including earlier runs


def work_on(
    shards: Sequence[int],
    *,
    function: Callable[[ShardWork, int], None],
    work: ShardWork,
    processes: int,
) -> None:
    """Processes the shards here, or in this many of the `worker_processes`, as they get free.

    Raises PlugError if one of them dies.
    """
    if _pool is None or processes < 2:
        for index in shards:
            function(work, index)
        return
    running: set[futures.Future[None]] = set()
    try:
        for index in shards:
            if len(running) == processes:
                done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                _raise_errors(done)
            running.add(_pool.submit(function, work, index))
        _raise_errors(futures.as_completed(running))
    except BrokenProcessPool as error:
        raise PlugError(
            "A worker process was killed, perhaps because memory ran out. What is finished is "
            "kept: run the command again, with fewer --workers if it was the memory."
        ) from error


@contextlib.contextmanager
def worker_processes(most: int) -> Iterator[None]:
    """Provides processes for `work_on` within the block, started as needed."""
    global _pool
    others = set(multiprocessing.active_children())
    # Neither tensorflow nor gRPC survives a fork.
    context = multiprocessing.get_context("spawn")
    _pool = futures.ProcessPoolExecutor(most, context, initializer=start_worker)
    try:
        yield
        _pool.shutdown()
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        _pool = None


def _raise_errors(done: Iterable[futures.Future[None]]) -> None:
    for future in done:
        future.result()


@contextlib.contextmanager
def watch(
    directory: str, files: SplitFiles, step: str, report: Callable[[CacheProgress], None] | None
) -> Iterator[None]:
    """Reports the progress of shards in a directory within the block."""
    if report is None:
        yield
        return
    stop = threading.Event()
    documents: dict[str, int] = {}

    def look() -> None:
        names = tf.io.gfile.listdir(directory)
        counts = dict(documents)
        for name in names:
            if name not in documents and (is_done(name) or name.endswith(".progress")):
                known = read_json(os.path.join(directory, name)) or {}
                of_shard = known.get("statistics", known)
                counts[name] = of_shard.get("documents", of_shard.get("examples", 0))
                if is_done(name):
                    documents[name] = counts[name]
        report(CacheProgress(files.split, step, len(documents), files.shards, sum(counts.values())))

    def keep_looking() -> None:
        while not stop.wait(_POLL_SECONDS):
            look()

    look()
    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()


def is_done(name: str) -> bool:
    """Whether a file name marks a finished shard."""
    return re.fullmatch(r"\d{5,}\.json", name) is not None


def shards_done(directory: str) -> set[int]:
    """The finished shards, of any number of digits, by the marks in a directory."""
    names = tf.io.gfile.listdir(directory)
    return {int(name.removesuffix(".json")) for name in names if is_done(name)}
