"""Checks that the files of a dataset can be read and are complete before a run starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import seqio

from plug_jax.data.caching.files import cached_shards
from plug_jax.data.descriptions import file_sizes
from plug_jax.data.many_files import of_each
from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.sources.file_source import FileSource, name_some
from plug_jax.data.sources.token_source import damage_of_records
from plug_jax.errors import PlugError

# Takes a second or two to read. Of larger splits only the beginning of each file is read.
_BYTES_TO_READ = 1 << 28
_UNEVEN = 1.5  # times the smallest stream


def check_files(config: DatasetConfig) -> None:
    """Raise PlugError for files of the split that cannot be opened, or are visibly damaged.

    Damage to uncompressed text cannot be detected. Compressed text, token files and caches are read
    to the end if all together have at most 256 MiB, otherwise only the beginning of each file.
    Other sources must check themselves.
    """
    pipeline.register_tasks(config)
    for task in pipeline.tasks_of(config):
        files, damage = _files(task, config)
        _check(files, damage, f"the {config.split} split of {config.mixture_or_task_name!r}")


def uneven_streams(config: DatasetConfig, streams: int) -> str | None:
    """A warning if endless streams have files of very different size; None if they have not.

    Every stream gives the same share of each batch, so text of a small one is repeated more often.
    """
    if config.num_epochs is not None or streams == 1:
        return None
    for task in pipeline.tasks_of(config):
        files, _ = _files(task, config)
        if len(files) < streams:
            continue  # seqio deals out documents
        sizes = [size or 0 for size in file_sizes(files)]
        of_streams = [sum(sizes[stream::streams]) for stream in range(streams)]
        if max(of_streams) > _UNEVEN * min(of_streams):
            return (
                f"THE DATA STREAMS ARE UNEVEN: of {streams} with an equal share of every batch, "
                f"the largest has {max(of_streams):,} bytes of {task.name!r}, the smallest "
                f"{min(of_streams):,}, which is repeated more often. Cut the text into more files "
                "or into files of equal size, or set fewer DATA_STREAMS (docs/data.md)"
            )
    return None


def check_source(source: seqio.DataSource, split: str, of: str) -> None:
    """`check_files` of a source; `of` says in messages whose files they are: "the input"."""
    if isinstance(source, FileSource):
        _check(source.list_shards(split), source.damage, of)


def _check(files: Sequence[str], damage: Callable[..., str | None], of: str) -> None:
    sizes = file_sizes(files)
    if missing := [file for file, size in zip(files, sizes, strict=True) if size is None]:
        raise PlugError(_message(of, "are missing or cannot be read", missing))
    to_end = sum(filter(None, sizes)) <= _BYTES_TO_READ
    found = of_each(functools.partial(damage, to_end=to_end), files)
    if damaged := [f"{file} {what}" for file, what in zip(files, found, strict=True) if what]:
        raise PlugError(_message(of, "are damaged", damaged))


def _files(
    task: seqio.Task, config: DatasetConfig
) -> tuple[Sequence[str], Callable[..., str | None]]:
    """The files that are read for a task, and the function that detects damage in one."""
    if config.use_cached and task.supports_caching:
        if not task.cache_dir:
            return (), damage_of_records  # reported elsewhere
        return cached_shards(task, config.split), damage_of_records
    if isinstance(task.source, FileSource):
        return task.source.list_shards(config.split), task.source.damage
    return (), damage_of_records


def _message(of: str, what: str, files: Sequence[str]) -> str:
    return (
        f"{len(files):,} of the files of {of} {what}: {name_some(files)}. Fetch or rebuild them, "
        "or name only the others"
    )
