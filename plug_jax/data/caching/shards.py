"""A worker's job on one shard of a source: write it, or sketch its documents."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import pickle
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.atomic_files import write_whole
from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.caching.deduplication import PERMUTATIONS, Deduplication, digest, signature
from plug_jax.data.caching.files import (
    LENGTH_EDGES,
    SplitFiles,
    dropped_documents,
    preprocessors,
    write_json,
)
from plug_jax.data.drops import change_counts, count_drops, drop_counts
from plug_jax.data.preprocessors.documents import tokenize_documents
from plug_jax.errors import PlugError

KEPT, EXACT, NEAR = range(3)  # a document's fate
_DROP_REASONS = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}
_REPORT_SECONDS = 1.0

# Drop counts are per process: do one shard at a time so that counts can be attributed. Heavy work
# runs in tf.data's threads anyway.
_one_shard_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class ShardWork:
    """What a worker needs to know; can be pickled."""

    task: bytes  # the result of `before_cache`, pickled
    files: SplitFiles
    deduplication: Deduplication | None
    threads: int | None = None  # of tf.data; None: one per core

    def documents(self, index: int) -> tf.data.Dataset:
        """The source's shard through the preprocessors before the cache, in a fixed order."""
        task = _unpickle(self.task)
        stages = preprocessors(task)
        if self.deduplication is not None:
            drop = functools.partial(drop_duplicates, fates=self.load_fates(index))
            stages.insert(_tokenization(stages), drop)
        return self._apply(task, stages, index)

    def cleaned_texts(self, index: int) -> tf.data.Dataset:
        """The shard's blocks of texts as they are before `tokenize_documents`."""
        task = _unpickle(self.task)
        stages = preprocessors(task)
        return self._apply(task, stages[: _tokenization(stages)], index)

    def load_fates(self, index: int) -> np.ndarray:
        """KEPT, EXACT or NEAR for each cleaned document of the shard: uint8 [n]."""
        return load_array(os.path.join(self.files.duplicates, f"{index:05d}.fates.npy"))

    def _apply(self, task: seqio.Task, stages: Sequence[Any], index: int) -> tf.data.Dataset:
        part = task.replace(preprocessors=[*stages, seqio.CacheDatasetPlaceholder()])
        dataset = task.source.get_dataset(
            split=self.files.split,
            shuffle=False,
            shard_info=seqio.ShardInfo(index, self.files.shards),
        )
        # As in seqio's own script, random preprocessors are seeded by task and shard.
        named = hashlib.sha256(f"{task.name} {index}".encode()).digest()
        dataset = part.preprocess_precache(dataset, seed=int.from_bytes(named[:3]))
        options = tf.data.Options()
        options.deterministic = True
        if self.threads is not None:
            options.threading.private_threadpool_size = self.threads
        return without_autotuning(dataset.prefetch(2).with_options(options))


def before_cache(task: seqio.Task, *, deduplicate: bool) -> seqio.Task:
    """The task without what comes after its cache.

    Raises PlugError if it has no CacheDatasetPlaceholder, or no stage before which to deduplicate.
    """
    stages = preprocessors(task)
    if deduplicate:
        _tokenization(stages)
    return seqio.Task(
        task.name,
        source=task.source,
        preprocessors=[*stages, seqio.CacheDatasetPlaceholder()],
        output_features=dict(task.output_features),
    )


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def drop_duplicates(dataset: tf.data.Dataset, *, fates: np.ndarray) -> tf.data.Dataset:
    """Drops and counts the documents of one shard that repeat others.

    Example, with fates [KEPT, EXACT, KEPT, NEAR]: the blocks ["甲", "甲"], ["乙", "乙。"] become
    ["甲"], ["乙"], and `drop_counts()` is {"exact_duplicate": 1, "near_duplicate": 1}.

    Args:
      dataset: blocks of texts, {"text": tf.string [d]}.
      fates: each document's fate: uint8 [documents of the shard].
    """
    table = tf.constant(fates)

    def step(start: tf.Tensor, block: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Any]:
        end = start + tf.size(block["text"])
        here = table[start:end]
        text = count_drops(
            tf.boolean_mask(block["text"], here == KEPT),
            {reason: tf.math.count_nonzero(here == fate) for fate, reason in _DROP_REASONS.items()},
        )
        return end, {"text": text}

    return dataset.scan(0, step)


def write_shard(work: ShardWork, index: int) -> None:
    """Writes one shard and its record, both or neither."""
    temporary = os.path.join(work.files.records, f"{index:05d}.tmp-{uuid.uuid4().hex}")
    with _one_shard_at_a_time, _Report(work.files.records, index) as report:
        drops, changes = drop_counts(), change_counts()
        features: dict[str, Any] = {}
        dataset = work.documents(index)
        statistics = _no_statistics(dataset.element_spec)
        with tf.io.TFRecordWriter(temporary) as writer:
            for example in dataset:
                record = seqio.dict_to_tfexample(example)
                # Without this the order of features differs from process to process.
                writer.write(record.SerializeToString(deterministic=True))
                features = features or _info(example)
                report.documents += _add_example(statistics, example)
        statistics["drops"] = _since(drops, drop_counts())
        statistics["changes"] = _since(changes, change_counts())
    if _is_block(dataset.element_spec):
        dropped = dropped_documents(statistics["drops"])
        statistics["documents"] = statistics["documents_used"] + dropped
    known = {
        "bytes": tf.io.gfile.stat(temporary).length,
        "features": features,
        "statistics": statistics,
    }
    tf.io.gfile.rename(temporary, work.files.shard(index), overwrite=True)
    write_json(os.path.join(work.files.records, f"{index:05d}.json"), known)


def sketch_shard(work: ShardWork, index: int) -> None:
    """Saves the digest of each cleaned document of a shard, and its signature if need be."""
    assert work.deduplication is not None
    near = work.deduplication.near_threshold is not None
    digests: list[bytes] = []
    signatures: list[np.ndarray] = []
    with _Report(work.files.duplicates, index) as report:
        for block in work.cleaned_texts(index).as_numpy_iterator():
            for text in block["text"]:
                digests.append(digest(text))
                if near:
                    signatures.append(signature(text.decode()))
            report.documents += len(block["text"])
    arrays = {"digests": np.frombuffer(b"".join(digests), "S1").view("u1").reshape(-1, 16)}
    if near:
        arrays["signatures"] = np.array(signatures, np.uint32).reshape(-1, PERMUTATIONS)
    for name, array in arrays.items():
        save_array(os.path.join(work.files.duplicates, f"{index:05d}.{name}.npy"), array)
    known = {"statistics": {"documents": len(digests)}}
    write_json(os.path.join(work.files.duplicates, f"{index:05d}.json"), known)


def save_array(path: str, array: np.ndarray) -> None:
    """Writes an array atomically."""
    content = io.BytesIO()
    np.save(content, array)
    write_whole(path, content.getvalue())


def load_array(path: str) -> np.ndarray:
    """Reads what `save_array` wrote."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return np.load(io.BytesIO(file.read()))


class _Report:
    """Periodically reports how many documents a shard has so far."""

    def __init__(self, directory: str, index: int) -> None:
        self._path = os.path.join(directory, f"{index:05d}.progress")
        self._count = 0
        self._next = time.monotonic() + _REPORT_SECONDS

    @property
    def documents(self) -> int:
        return self._count

    @documents.setter
    def documents(self, count: int) -> None:
        self._count = count
        if time.monotonic() > self._next:
            write_json(self._path, {"documents": count})
            self._next = time.monotonic() + _REPORT_SECONDS

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *unused: object) -> None:
        if tf.io.gfile.exists(self._path):
            tf.io.gfile.remove(self._path)


def _is_block(example: Mapping[str, Any]) -> bool:
    """Whether examples are blocks of tokens, which can be counted by document."""
    return {"tokens", "sentence_lengths", "document_lengths"} <= set(example)


def _no_statistics(example: Mapping[str, Any]) -> dict[str, Any]:
    statistics: dict[str, Any] = {"examples": 0}
    if _is_block(example):
        statistics |= dict.fromkeys(("documents", "documents_used", "tokens", "sentences"), 0)
        statistics["document_length_histogram"] = [0] * len(LENGTH_EDGES)
    return statistics


def _add_example(statistics: dict[str, Any], example: Mapping[str, tf.Tensor]) -> int:
    """Adds an example to the statistics; returns its number of documents."""
    statistics["examples"] += 1
    if not _is_block(example):
        return 1
    lengths = example["document_lengths"].numpy()
    histogram = np.histogram(lengths, [*LENGTH_EDGES, np.inf])[0]
    statistics["documents_used"] += len(lengths)
    statistics["tokens"] += int(lengths.sum())
    statistics["sentences"] += int(tf.size(example["sentence_lengths"]))
    bins = statistics["document_length_histogram"]
    statistics["document_length_histogram"] = (bins + histogram).tolist()
    return len(lengths)


def _info(example: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes as seqio's GetInfo has them."""
    info = {}
    for name, value in example.items():
        shape = value.shape.as_list()
        info[name] = {"shape": [None, *shape[1:]] if shape else [], "dtype": value.dtype.name}
    return info


def _since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    counts = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in sorted(counts.items()) if count}


def _tokenization(stages: Sequence[Any]) -> int:
    for number, stage in enumerate(stages):
        if getattr(stage, "func", None) is tokenize_documents:
            return number
    raise PlugError(
        "Documents are deduplicated before plug_jax.data.preprocessors.documents."
        "tokenize_documents, which this task does not have as a functools.partial before its "
        "CacheDatasetPlaceholder."
    )


@functools.lru_cache(1)
def _unpickle(task: bytes) -> seqio.Task:
    return pickle.loads(task)
