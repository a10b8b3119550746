"""Finds the documents of a split that repeat others, over all its shards, with Apache Beam.

What is grouped are not documents but arrays of them, at most some hundred from each shard: a runner
that keeps groups in memory, as the local one does, needs 2 kB a document then, instead of 25.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import tensorflow as tf

from plug_jax.data.caching import deduplication
from plug_jax.data.caching.shards import EXACT, KEPT, NEAR, ShardWork, load_array, save_array

_PARTITIONS = 256  # of the keys; all documents of one key are in one

# Columns of an array of documents, uint64 [n, 4]: what documents are grouped by, then the place.
_KEY, _SHARD, _NUMBER = slice(0, 2), 2, 3

Keyed = tuple[int, np.ndarray]  # by partition or by shard


def group_equal(pipeline: beam.Pipeline, work: ShardWork) -> None:
    """Saves the numbers of the documents whose text an earlier one has, by shard."""
    _ = (
        pipeline
        | beam.Create(range(work.files.shards))
        | "digests" >> beam.FlatMap(_keyed_by_digest, work=work)
        | "equal" >> beam.GroupByKey()
        | "later" >> beam.FlatMap(_later_of_equal)
        | "by shard" >> beam.GroupByKey()
        | "save" >> beam.Map(_save, work=work, name="equal")
    )


def group_similar(pipeline: beam.Pipeline, work: ShardWork) -> None:
    """Saves pairs of documents that are similar, by the shard of the later one.

    Signatures are looked up for those documents alone that share a band with another.
    """
    assert work.deduplication is not None
    bands, rows = work.deduplication.bands()
    threshold = work.deduplication.near_threshold
    _ = (
        pipeline
        | beam.Create(range(work.files.shards))
        | "bands" >> beam.FlatMap(_keyed_by_band, work=work, bands=bands, rows=rows)
        | "candidates" >> beam.GroupByKey()
        | "of several" >> beam.FlatMap(_sharing_a_band)
        | "by shard" >> beam.GroupByKey()
        | "signatures" >> beam.FlatMap(_with_signatures, work=work)
        | "buckets" >> beam.GroupByKey()
        | "compare" >> beam.FlatMap(_similar_pairs, threshold=threshold)
        | "by later shard" >> beam.GroupByKey()
        | "save" >> beam.Map(_save, work=work, name="similar")
    )


def _keyed_by_digest(index: int, *, work: ShardWork) -> Iterator[Keyed]:
    keys = load_array(_path(work, index, "digests")).view("<u8")
    places = np.stack([np.full(len(keys), index), np.arange(len(keys))], axis=1)
    yield from _by_partition(np.concatenate([keys, places.astype(np.uint64)], axis=1))


def _later_of_equal(group: tuple[int, Iterable[np.ndarray]]) -> Iterator[Keyed]:
    documents = _sorted(np.concatenate(list(group[1])))
    later = documents[1:][_like_the_one_before(documents)]
    for index, of_shard in _split(later, later[:, _SHARD]):
        yield index, of_shard[:, [_NUMBER]]


def _keyed_by_band(index: int, *, work: ShardWork, bands: int, rows: int) -> Iterator[Keyed]:
    signatures = load_array(_path(work, index, "signatures"))
    equal = _load(work, index, "equal", 1)
    numbers = np.setdiff1d(np.arange(len(signatures)), equal)
    keys = deduplication.band_keys(signatures[numbers], bands, rows)
    for band in range(bands):
        columns = [np.full(len(numbers), band), keys[:, band], np.full(len(numbers), index)]
        documents = np.stack([column.astype(np.uint64) for column in [*columns, numbers]], axis=1)
        yield from _by_partition(documents)


def _sharing_a_band(group: tuple[int, Iterable[np.ndarray]]) -> Iterator[Keyed]:
    documents = _sorted(np.concatenate(list(group[1])))
    like = _like_the_one_before(documents)
    shared = documents[np.append(False, like) | np.append(like, False)]
    yield from _split(shared, shared[:, _SHARD])


def _with_signatures(
    group: tuple[int, Iterable[np.ndarray]], *, work: ShardWork
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    index, parts = group
    signatures = load_array(_path(work, index, "signatures"))
    for partition, documents in _by_partition(np.concatenate(list(parts))):
        yield partition, (documents, signatures[documents[:, _NUMBER].astype(np.int64)])


def _similar_pairs(
    group: tuple[int, Iterable[tuple[np.ndarray, np.ndarray]]], *, threshold: float
) -> Iterator[Keyed]:
    parts = list(group[1])
    documents, signatures = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    order = np.lexsort(documents.T[::-1])
    documents, signatures = documents[order], signatures[order]
    starts = np.flatnonzero(~np.append(False, _like_the_one_before(documents)))
    for start, end in zip(starts, [*starts[1:], len(documents)], strict=True):
        places = [(int(d[_SHARD]), int(d[_NUMBER])) for d in documents[start:end]]
        bucket = zip(places, signatures[start:end], strict=True)
        for later, earlier in deduplication.link_similar(bucket, threshold):
            yield later[0], np.array([[later[1], *earlier]], np.uint64)


def _by_partition(documents: np.ndarray) -> Iterator[Keyed]:
    return _split(documents, documents[:, 1] % np.uint64(_PARTITIONS))


def _split(documents: np.ndarray, keys: np.ndarray) -> Iterator[Keyed]:
    """The documents of each key."""
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    borders = [*starts.tolist(), len(order)]
    for value, (start, end) in zip(values, itertools.pairwise(borders), strict=True):
        yield int(value), documents[order[start:end]]


def _sorted(documents: np.ndarray) -> np.ndarray:
    return documents[np.lexsort(documents.T[::-1])]


def _like_the_one_before(documents: np.ndarray) -> np.ndarray:
    """Whether each document but the first has the key of the one before it: bool [n - 1]."""
    return (documents[1:, _KEY] == documents[:-1, _KEY]).all(axis=1)


def _path(work: ShardWork, index: int, name: str) -> str:
    return os.path.join(work.files.duplicates, f"{index:05d}.{name}.npy")


def _save(group: tuple[int, Iterable[np.ndarray]], *, work: ShardWork, name: str) -> None:
    index, parts = group
    save_array(_path(work, index, name), np.concatenate(list(parts)).astype(np.int64))


def _load(work: ShardWork, index: int, name: str, columns: int) -> np.ndarray:
    """What was saved of a shard, int64 [n, columns]; n is 0 if there was nothing to save."""
    path = _path(work, index, name)
    return load_array(path) if tf.io.gfile.exists(path) else np.zeros((0, columns), np.int64)


def decide_fates(work: ShardWork) -> None:
    """Writes the fates of all documents, out of what the two groupings saved."""
    shards = range(work.files.shards)
    links = (
        ((index, number), (first_index, first))
        for index in shards
        for number, first_index, first in _load(work, index, "similar", 3).tolist()
    )
    near = deduplication.later_members(links)
    near_by_shard: dict[int, list[int]] = {}
    for index, number in near:
        near_by_shard.setdefault(index, []).append(number)
    for index in shards:
        fates = np.full(len(load_array(_path(work, index, "digests"))), KEPT, np.uint8)
        fates[_load(work, index, "equal", 1)[:, 0]] = EXACT
        fates[near_by_shard.get(index, [])] = NEAR
        save_array(_path(work, index, "fates"), fates)


def remove_sketches(work: ShardWork) -> None:
    """Removes what is of no use any more when the fates are known."""
    for index in range(work.files.shards):
        for name in ("digests", "signatures", "equal", "similar"):
            if tf.io.gfile.exists(_path(work, index, name)):
                tf.io.gfile.remove(_path(work, index, name))
