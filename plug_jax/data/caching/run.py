"""Offline caches of a seqio task's tokenised documents, made with Apache Beam.

seqio's own script shuffles all examples into a chosen number of shards, in the order of their
arrival. Here each shard of the source becomes one shard of the cache, so that the same input gives
the same bytes, and finished shards survive an interrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from plug_jax.cpu_cores import cores
from plug_jax.data.caching.deduplication import Deduplication
from plug_jax.data.caching.files import (
    COMPLETED,
    SplitFiles,
    cache_directory,
    differences,
    fingerprint,
    read_json,
    write_json,
    write_mark,
    write_summaries,
)
from plug_jax.data.caching.shards import ShardWork, before_cache, sketch_shard, write_shard
from plug_jax.data.caching.workers import (
    CacheProgress,
    shards_done,
    watch,
    work_on,
    worker_processes,
)
from plug_jax.data.descriptions import file_sizes
from plug_jax.data.pipeline.file_checks import check_source
from plug_jax.errors import PlugError
from plug_jax.file_locks import alone

try:
    import apache_beam as beam
    from apache_beam.internal.cloudpickle import cloudpickle
    from apache_beam.options.pipeline_options import (
        DirectOptions,
        PipelineOptions,
        StandardOptions,
    )
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from plug_jax.data.caching.grouping import (
        decide_fates,
        group_equal,
        group_similar,
        passes,
        remove_sketches,
        sketched_documents,
    )
except ImportError as error:
    raise PlugError("Caching needs Apache Beam: pip install 'plug-jax[cache]'.") from error

_BYTES_A_WORKER = 16 << 20  # of text: a few seconds of work
# Documents grouped in memory at once, about half a gigabyte: 200 bytes each to find equal ones,
# 3.3 kB to find similar ones.
_EQUAL_AT_ONCE, _SIMILAR_AT_ONCE = 2_500_000, 150_000
_LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")


@dataclasses.dataclass(frozen=True)
class CachedSplit:
    """A complete split of a cache."""

    directory: str
    split: str
    shards: int
    shards_written: int  # by this call; 0 if the split existed
    statistics: Mapping[str, Any]  # content of stats.<split>.json


def cache_task(
    task: seqio.Task,
    output_cache_dir: str,
    *,
    splits: Sequence[str] | None = None,
    deduplicate: Deduplication | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    beam_options: Sequence[str] = (),
    report: Callable[[CacheProgress], None] | None = None,
) -> list[CachedSplit]:
    """Writes an offline cache of a task, for `seqio.add_global_cache_dirs([output_cache_dir])`.

    Shard i of n of the source becomes <split>.tfrecord-0000i-of-0000n. A shard is written under
    another name and renamed when it is complete; after an interruption, the next call writes what
    is missing. The bytes depend only on the task and its source.

    Args:
      task: registered or not; it is pickled for the workers, including source and vocabulary.
      output_cache_dir: a cache directory of seqio's; the task gets its own below it.
      splits: the splits to cache; default: all.
      deduplicate: the duplicates to drop from each split; default: none.
      overwrite: first remove existing files of these splits.
      workers: processes of the local runner; default: one per core, fewer for little text.
      beam_options: Beam flags, such as --runner=DataflowRunner; default: run locally.
      report: called periodically from another thread.

    Returns:
      The splits, complete.

    Raises:
      PlugError: the task has no CacheDatasetPlaceholder or not that split, the directory cannot be
        written, is in use by another run or holds a cache of other settings, files of the source
        are missing or damaged, the source raised it, or a worker died.
    """
    before_cache(task, deduplicate=deduplicate is not None)  # raises if it cannot be cached
    splits = list(splits or task.splits)
    if unknown := [split for split in splits if split not in task.splits]:
        raise PlugError(
            f"{task.name!r} has no split {unknown[0]!r}, only {', '.join(task.splits)}."
        )
    directory = cache_directory(output_cache_dir, task.name)
    run = _Run(
        task,
        directory,
        deduplicate=deduplicate,
        workers=workers,
        beam_options=list(beam_options),
        report=report,
    )
    _make_writable(directory)
    lock = os.path.join(directory, "cache.lock")
    with (
        alone(lock, f"another run is caching into {directory}"),
        worker_processes(run.most_workers),
    ):
        done = [run.split(split, overwrite=overwrite) for split in splits]
        write_mark(directory)
    return done


class _Run:
    """One call of `cache_task`."""

    def __init__(
        self,
        task: seqio.Task,
        directory: str,
        *,
        deduplicate: Deduplication | None,
        workers: int | None,
        beam_options: list[str],
        report: Callable[[CacheProgress], None] | None,
    ) -> None:
        self._task = task
        self._directory = directory
        self._deduplicate = deduplicate
        self._options = beam_options
        self._local, asked = _check_flags(beam_options)
        self._workers = (workers or asked) if self._local else 1
        self._report = report

    @property
    def most_workers(self) -> int:
        """The maximum number of concurrent processes."""
        return self._workers or cores()

    def split(self, split: str, *, overwrite: bool) -> CachedSplit:
        """Makes one split complete."""
        files = SplitFiles(self._directory, split, len(self._task.source.list_shards(split)))
        self._prepare(files, overwrite)
        finished = files.finished()
        missing = [index for index in range(files.shards) if index not in finished]
        if missing:
            check_source(self._task.source, split, f"the {split} split of {self._task.name!r}")
            files.reopen()
            if self._deduplicate is not None:
                self._find_duplicates(files)
            self._over_shards(write_shard, files, missing, files.records, "writing")
            finished = files.finished()
        shards = [finished[index] for index in range(files.shards)]
        statistics = write_summaries(files, shards)
        return CachedSplit(self._directory, split, files.shards, len(missing), statistics)

    def _prepare(self, files: SplitFiles, overwrite: bool) -> None:
        """Checks that existing files belong to this cache."""
        new = fingerprint(self._task, files.split, self._deduplicate)
        old = read_json(files.fingerprint)
        if overwrite:
            files.remove()
        elif old is None and tf.io.gfile.exists(files.info):
            raise PlugError(
                f"{files.directory} holds a cache of split {files.split!r} that plug-jax did not "
                "make; choose another directory, or --overwrite it."
            )
        elif old is not None and (changed := differences(old, new)):
            raise PlugError(
                f"{files.directory} holds split {files.split!r} made with "
                f"{' and '.join(changed)}; choose another directory, or --overwrite it."
            )
        for directory in (files.records, files.duplicates):
            tf.io.gfile.makedirs(directory)
            for name in tf.io.gfile.listdir(directory):
                if ".tmp" in name or name.endswith(".progress"):
                    tf.io.gfile.remove(os.path.join(directory, name))
        if overwrite or old is None:  # runs that read the cache compare this file
            write_json(files.fingerprint, new)

    def _find_duplicates(self, files: SplitFiles) -> None:
        """Writes the fate of each document to files.duplicates."""
        if tf.io.gfile.exists(os.path.join(files.duplicates, COMPLETED)):
            return
        done = shards_done(files.duplicates)
        missing = [index for index in range(files.shards) if index not in done]
        self._over_shards(sketch_shard, files, missing, files.duplicates, "comparing")
        work = self._work(files)
        documents = sketched_documents(work) if self._local else 0  # others group on their disks
        for share in passes(documents, _EQUAL_AT_ONCE):
            with self._pipeline() as pipeline:
                group_equal(pipeline, work, share)
        if work.deduplication is not None and work.deduplication.near_threshold is not None:
            for share in passes(documents, _SIMILAR_AT_ONCE):
                with self._pipeline() as pipeline:
                    group_similar(pipeline, work, share)
        decide_fates(work)
        write_mark(files.duplicates)
        remove_sketches(work)

    def _over_shards(
        self,
        function: Callable[[ShardWork, int], None],
        files: SplitFiles,
        shards: list[int],
        directory: str,
        step: str,
    ) -> None:
        workers = min(self._workers or _worthwhile_workers(self._task, files), len(shards))
        threads = cores() // workers + 1 if workers > 1 else None
        work = self._work(files, threads)
        # A local runner gets all shards as one element, and assigns them as processes get free.
        elements = [shards] if self._local else [[index] for index in shards]
        with watch(directory, files, step, self._report), self._pipeline() as pipeline:
            _ = (
                pipeline
                | "shards" >> beam.Create(elements)
                | "spread" >> beam.Reshuffle()
                | step >> beam.Map(work_on, function=function, work=work, processes=workers)
            )

    def _work(self, files: SplitFiles, threads: int | None = None) -> ShardWork:
        # By value if necessary: a worker cannot import what gin or a notebook defined.
        task = before_cache(self._task, deduplicate=self._deduplicate is not None)
        return ShardWork(cloudpickle.dumps(task), files, self._deduplicate, threads)

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[beam.Pipeline]:
        """A pipeline that runs when the block ends, and fails with the PlugError of a worker."""
        # Not the DirectRunner, which may download another runner and wait for it.
        runner = FnApiRunner() if self._local else None
        options = PipelineOptions(self._options)
        if self._local:
            options.view_as(DirectOptions).direct_num_workers = 1  # Beam itself hangs if one dies
            options.view_as(DirectOptions).direct_running_mode = "in_memory"
        try:
            with beam.Pipeline(runner=runner, options=options) as pipeline:
                yield pipeline
        except PlugError as error:
            raise PlugError(re.sub(r" \[while running .*\]$", "", str(error))) from error
        except Exception as error:
            if str(error).startswith("KeyboardInterrupt"):  # Beam wraps it in a RuntimeError
                raise KeyboardInterrupt from None
            if found := re.search(r"PlugError: (.*?)( \[while running .*)?$", str(error), re.M):
                raise PlugError(found[1]) from error
            raise


def _make_writable(directory: str) -> None:
    try:
        tf.io.gfile.makedirs(directory)
        probe = os.path.join(directory, "probe.tmp")
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (tf.errors.OpError, OSError) as error:
        raise PlugError(f"The cache directory {directory} cannot be written: {error}") from error


def _worthwhile_workers(task: seqio.Task, files: SplitFiles) -> int:
    """One process per core, or fewer if start-up would dominate."""
    sizes = file_sizes(task.source.list_shards(files.split))
    if None in sizes:
        return cores()
    return min(cores(), sum(filter(None, sizes)) // _BYTES_A_WORKER + 1)


def _check_flags(flags: Sequence[str]) -> tuple[bool, int]:
    """Whether Beam's flags select this machine, and its number of workers, 0 for all cores."""
    options = PipelineOptions(list(flags))
    if options.view_as(StandardOptions).runner not in _LOCAL_RUNNERS:
        return False, 0  # the runner may have its own flags
    known = options.get_all_options()
    if unknown := set(options.get_all_options(retain_unknown_options=True)) - set(known):
        raise PlugError(f"Neither plug-jax nor Beam has an option --{min(unknown)}.")
    asked = any(flag.startswith("--direct_num_workers") for flag in flags)
    return True, options.view_as(DirectOptions).direct_num_workers if asked else 0
