"""Whether the files of a data set can be read, and are whole, before anything is made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent import futures

import seqio

from plug_jax.data import pipeline
from plug_jax.data.caching.files import cached_shards
from plug_jax.data.descriptions import file_sizes
from plug_jax.data.file_source import FileSource, name_some
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.data.token_source import damage_of_records
from plug_jax.errors import PlugError

# What it takes a second or two to read. Of more only the beginning of each file is.
_BYTES_TO_READ = 1 << 28
_READERS = 32  # threads, for the latency of remote file systems


def check_files(config: DatasetConfig) -> None:
    """Raise PlugError for files of the split that cannot be opened, or are seen to be damaged.

    Text that is not compressed has nothing to be seen by. What is, and records of tokens and of a
    cache, are read to their end where all of them together have up to 256 MiB; of more files
    only the beginnings are, and sources that are not ours find out for themselves.
    """
    pipeline.register_tasks(config)
    for task in pipeline.tasks_of(config):
        files, damage = _files(task, config)
        sizes = file_sizes(files)
        if missing := [file for file, size in zip(files, sizes, strict=True) if size is None]:
            raise PlugError(_message(config, "are not there or cannot be read", missing))
        to_end = sum(filter(None, sizes)) <= _BYTES_TO_READ
        with futures.ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(functools.partial(damage, to_end=to_end), files))
        if damaged := [f"{file} {what}" for file, what in zip(files, found, strict=True) if what]:
            raise PlugError(_message(config, "are no good", damaged))


def _files(
    task: seqio.Task, config: DatasetConfig
) -> tuple[Sequence[str], Callable[..., str | None]]:
    """The files that are read of a task, and what tells of damage in one."""
    if config.use_cached and task.supports_caching:
        if not task.cache_dir:
            return (), damage_of_records  # which is an error of its own
        return cached_shards(task, config.split), damage_of_records
    if isinstance(task.source, FileSource):
        return task.source.list_shards(config.split), task.source.damage
    return (), damage_of_records


def _message(config: DatasetConfig, what: str, files: Sequence[str]) -> str:
    return (
        f"{len(files):,} of the files of the {config.split} split of "
        f"{config.mixture_or_task_name!r} {what}: {name_some(files)}. Fetch or make them anew, or "
        "name the others only"
    )
