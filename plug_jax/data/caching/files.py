"""The files of an offline cache: seqio's own, and the cache's settings."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.atomic_files import write_whole
from plug_jax.data.caching.deduplication import Deduplication
from plug_jax.data.descriptions import (
    describe,
    describe_reader,
    describe_vocabularies,
    file_sizes,
)
from plug_jax.data.many_files import of_each
from plug_jax.data.sources.file_source import name_some
from plug_jax.data.sources.tfds_source import TfdsSource
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.errors import PlugError

COMPLETED = "COMPLETED"
# Document length in tokens: bins [1, 32), [32, 64), ..., [16384, infinity).
LENGTH_EDGES = (1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_IN_WORDS = {
    "format": "another version of plug-jax",
    "vocabulary": "another vocabulary",
    "preprocessing": "other preprocessing",
    "source": "another kind of source",
    "files": "other source files",
    "dataset": "another slice or text feature of the TFDS dataset",
    "deduplication": "other deduplication",
}
_LATER = ("dataset",)  # older caches do not tell
# Drops that are not documents.
_NO_DOCUMENTS = ("damaged_file", "empty_file")
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are, in `<cache directory>/<task>/`."""

    directory: str
    split: str
    shards: int

    @property
    def info(self) -> str:
        """seqio's info.<split>.json."""
        return seqio.utils.get_cached_info_path(self.directory, self.split)

    @property
    def stats(self) -> str:
        """seqio's stats.<split>.json."""
        return seqio.utils.get_cached_stats_path(self.directory, self.split)

    @property
    def fingerprint(self) -> str:
        """The settings that the cache was made with."""
        return _fingerprint_path(self.directory, self.split)

    @property
    def records(self) -> str:
        """Directory with a record of each finished shard, and with unfinished shards."""
        return os.path.join(self.directory, f"shards.{self.split}")

    @property
    def duplicates(self) -> str:
        """Directory of deduplication results."""
        return os.path.join(self.directory, f"duplicates.{self.split}")

    def shard(self, index: int) -> str:
        """The TFRecord file of one shard, as seqio names it."""
        prefix = seqio.utils.get_cached_tfrecord_prefix(self.directory, self.split)
        return f"{prefix}-{index:05d}-of-{self.shards:05d}"

    def finished(self) -> dict[int, dict[str, Any]]:
        """The record of each complete shard, by its index."""
        found = of_each(self._finished_shard, range(self.shards))
        return {index: known for index, known in enumerate(found) if known is not None}

    def _finished_shard(self, index: int) -> dict[str, Any] | None:
        known = read_json(os.path.join(self.records, f"{index:05d}.json"))
        path = self.shard(index)
        if known is None or not tf.io.gfile.exists(path):
            return None
        return known if tf.io.gfile.stat(path).length == known["bytes"] else None

    def reopen(self) -> None:
        """Marks a split as incomplete."""
        if tf.io.gfile.exists(self.info):
            for path in (os.path.join(self.directory, COMPLETED), self.info, self.stats):
                if tf.io.gfile.exists(path):
                    tf.io.gfile.remove(path)

    def remove(self) -> None:
        """Removes all files of this split, for any number of shards; first the completion mark."""
        prefix = f"{self.split}.tfrecord-"
        names = [name for name in tf.io.gfile.listdir(self.directory) if name.startswith(prefix)]
        shards = [os.path.join(self.directory, name) for name in names]
        completed = os.path.join(self.directory, COMPLETED)
        for path in [completed, self.info, self.stats, *shards, self.fingerprint]:
            if tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)
        for directory in (self.records, self.duplicates):
            if tf.io.gfile.exists(directory):
                tf.io.gfile.rmtree(directory)


def cache_directory(output_cache_dir: str, task_name: str) -> str:
    """The directory of a task within a seqio cache directory."""
    return os.path.join(output_cache_dir, seqio.utils.get_task_dir_from_name(task_name))


def fingerprint(
    task: seqio.Task, split: str, deduplication: Deduplication | None
) -> dict[str, Any]:
    """Everything that determines a cache's content, for JSON.

    The vocabulary is represented by its content's hash, the preprocessors before the cache by names
    and arguments, the source's files by names and sizes, a TFDS dataset also by slice and feature.
    """
    files = task.source.list_shards(split)
    is_tfds = isinstance(task.source, TfdsSource)
    return {
        "format": _FORMAT,
        "vocabulary": describe_vocabularies(task),
        "preprocessing": [describe(stage) for stage in preprocessors(task)],
        "source": describe_reader(task.source),
        "files": [list(pair) for pair in zip(files, file_sizes(files), strict=True)],
        "deduplication": describe(deduplication),
        **({"dataset": task.source.description(split)} if is_tfds else {}),
    }


def preprocessors(task: seqio.Task) -> list[Any]:
    """A task's preprocessors before its CacheDatasetPlaceholder. Raises PlugError without one."""
    stages = list(task.preprocessors)
    for number, stage in enumerate(stages):
        if isinstance(stage, seqio.CacheDatasetPlaceholder):
            return stages[:number]
    raise PlugError(
        f"Task {task.name!r} cannot be cached: put seqio.CacheDatasetPlaceholder() after the last "
        "preprocessor that draws nothing at random."
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences of two fingerprints in words: ["another vocabulary"]."""
    known = [name for name in new if name in old or name not in _LATER]
    changed = [name for name in known if old.get(name) != new[name]]
    if "vocabulary" in changed and "preprocessing" in changed:
        changed.remove("preprocessing")  # it includes the vocabulary
    return [_IN_WORDS[name] for name in changed]


def check_cache(task: seqio.Task, split: str) -> None:
    """Raises PlugError if a task's cache lacks the split, or was made with other settings.

    Compares the vocabulary and the preprocessors before the cache; the source's files need not
    exist any more. A cache without a fingerprint, made by seqio's own script, passes.
    """
    if not task.supports_caching or not task.cache_dir:
        return
    cached_shards(task, split)
    if glob.has_magic(task.cache_dir) and not task._get_cached_source(split).list_shards(split):
        raise PlugError(
            f"seqio takes the name of the cache directory {task.cache_dir} for a pattern, which "
            "finds nothing; rename what has [, * or ? in its name."
        )
    old = read_json(_fingerprint_path(task.cache_dir, split))
    if old is None:
        return
    new = {
        "vocabulary": describe_vocabularies(task),
        "preprocessing": [describe(stage) for stage in preprocessors(task)],
    }
    if changed := differences(old, new):
        raise PlugError(
            f"The cache {task.cache_dir} of {task.name!r} was made with "
            f"{' and '.join(changed)} than the task has now: rebuild it with `plug-jax "
            "cache --overwrite`, or restore the task's settings."
        )


def check_token_files(task: seqio.Task, split: str) -> None:
    """Raises PlugError if a `TokenSource` reads an unfit cache.

    One of another vocabulary than the task's, one that is not finished, or one of whose files some
    are missing. Files without a cache fingerprint next to them pass, and so does a part of a
    complete cache that the user names.
    """
    if not isinstance(task.source, TokenSource) or split not in task.splits:
        return
    vocabulary = describe(task.output_features["encoder_input_tokens"].vocabulary)
    shards = [os.path.split(path) for path in task.source.list_shards(split)]
    caches = {(directory, name.partition(".tfrecord-")[0]) for directory, name in shards}
    for directory, cached_split in sorted(caches):
        cache = read_json(_fingerprint_path(directory, cached_split))
        if cache is None:
            continue
        if vocabulary not in cache["vocabulary"]:
            raise PlugError(
                f"The tokens in {directory} are of another vocabulary than that of {task.name!r}: "
                "give the task the vocabulary that the cache was made with."
            )
        info = read_json(seqio.utils.get_cached_info_path(directory, cached_split))
        if info is None:
            raise PlugError(
                f"The cache of split {cached_split!r} in {directory} is not finished, so some of "
                "its text would be left out: first run the `plug-jax cache` that writes it again."
            )
        files = SplitFiles(directory, cached_split, info["num_shards"])
        whole = [files.shard(index) for index in range(files.shards)]
        sizes = file_sizes(whole)
        if missing := [path for path, size in zip(whole, sizes, strict=True) if size is None]:
            raise PlugError(
                f"{len(missing):,} of the {files.shards:,} files of the cache of split "
                f"{cached_split!r} in {directory} are missing: {name_some(missing)}. Fetch them, "
                "or run the `plug-jax cache` that writes them again."
            )


def write_summaries(files: SplitFiles, shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes seqio's info and stats files from the shards' records; returns the statistics."""
    shards = list(shards)
    features = next((shard["features"] for shard in shards if shard["features"]), None)
    statistics = merge_statistics(shard["statistics"] for shard in shards)
    if counts := statistics.get("document_length_histogram"):
        edges = list(LENGTH_EDGES)
        statistics["document_length_histogram"] = {"edges": edges, "counts": counts}
    if features is None or statistics.get("documents_used") == 0:
        dropped = ", ".join(f"{name} {n}" for name, n in statistics["drops"].items())
        raise PlugError(
            f"Nothing is left of split {files.split!r}, so there is no cache. Dropped on the way: "
            f"{dropped or 'nothing, its source is empty'}."
        )
    info = {
        "num_shards": files.shards,
        "features": features,
        "seqio_version": seqio.__version__,
    }
    write_json(files.stats, statistics)
    write_json(files.info, info)
    return statistics


def cached_shards(task: seqio.Task, split: str) -> list[str]:
    """The files that seqio reads for a cached task. Raises PlugError for an incomplete split."""
    info = read_json(seqio.utils.get_cached_info_path(task.cache_dir, split))
    if info is None:
        raise PlugError(
            f"{task.cache_dir} has no complete cache of the {split} split of {task.name!r}: run "
            "`plug-jax cache` again, with this split among its --splits and files for it, or read "
            "this split from its text (use_cached = False in its DatasetConfig)."
        )
    files = SplitFiles(task.cache_dir, split, info["num_shards"])
    return [files.shard(index) for index in range(files.shards)]


def merge_statistics(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of several shards together.

    Example: {"examples": 1, "tokens": 7, "drops": {"a": 1}} and {"examples": 2, "tokens": 5,
    "drops": {"a": 2, "b": 1}} make {"examples": 3, "tokens": 12, "drops": {"a": 3, "b": 1}}.
    """
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                counts = collections.Counter(total.get(name, {}))
                counts.update(value)
                total[name] = dict(sorted(counts.items()))
            elif isinstance(value, list):
                total[name] = np.add(total.get(name, 0), value).tolist()
            else:
                total[name] = total.get(name, 0) + value
    return total


def dropped_documents(drops: Mapping[str, int]) -> int:
    """The number of documents dropped, from drops by reason."""
    return sum(count for reason, count in drops.items() if reason not in _NO_DOCUMENTS)


def read_json(path: str) -> dict[str, Any] | None:
    """The content of a JSON file; None if it is missing or truncated."""
    try:
        with tf.io.gfile.GFile(path) as file:
            return json.load(file)
    except (tf.errors.NotFoundError, json.JSONDecodeError):
        return None


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_mark(directory: str) -> None:
    """Writes the file that marks a directory as complete."""
    with tf.io.gfile.GFile(os.path.join(directory, COMPLETED), "w") as file:
        file.write("")


def _fingerprint_path(directory: str, split: str) -> str:
    return os.path.join(directory, f"fingerprint.{split}.json")
