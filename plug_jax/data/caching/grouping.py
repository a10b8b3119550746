"""Finds the duplicate documents of a split over all its shards, with Apache Beam.

Arrays of documents are grouped instead of single documents, at most some hundred from each shard. A
runner that keeps groups in memory, as the local one does, then needs 200 bytes per document to find
equal ones, and 3.3 kB to find similar ones. To bound this, keys can be grouped in passes over a
part of them each; documents with equal keys are in the same pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import tensorflow as tf

from plug_jax.data.caching import deduplication
from plug_jax.data.caching.files import read_json
from plug_jax.data.caching.shards import EXACT, KEPT, NEAR, ShardWork, load_array, save_array

_PARTITIONS = 256  # of the keys; documents with equal keys share one

# Columns of an array of documents, uint64 [n, 4]: the grouping key, whose second half is a hash,
# then the document id.
_KEY, _HASH, _SHARD, _NUMBER = slice(0, 2), 1, 2, 3

Keyed = tuple[int, np.ndarray]  # by partition or by shard


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over all documents, for a share of the keys."""

    number: int = 0
    of: int = 1

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Whether this pass groups the documents with these hashes: uint64 [n] to bool [n]."""
        return _partition(hashes) % np.uint64(self.of) == self.number


def passes(documents: int, at_once: int) -> list[Pass]:
    """Enough passes for about `at_once` documents each; at most 256."""
    count = min(-(-documents // at_once), _PARTITIONS) or 1
    return [Pass(number, count) for number in range(count)]


def group_equal(pipeline: beam.Pipeline, work: ShardWork, share: Pass) -> None:
    """Saves the indices of documents that repeat an earlier text, by shard."""
    _ = (
        pipeline
        | beam.Create(range(work.files.shards))
        | "digests" >> beam.FlatMap(_keyed_by_digest, work=work, share=share)
        | "equal" >> beam.GroupByKey()
        | "later" >> beam.FlatMap(_later_of_equal)
        | "by shard" >> beam.GroupByKey()
        | "save" >> beam.Map(_save, work=work, name="equal", share=share)
    )


def group_similar(pipeline: beam.Pipeline, work: ShardWork, share: Pass) -> None:
    """Saves pairs of similar documents, by the shard of the later one.

    Signatures are only looked up for documents that share a band with another.
    """
    assert work.deduplication is not None
    bands, rows = work.deduplication.bands()
    threshold = work.deduplication.near_threshold
    _ = (
        pipeline
        | beam.Create(range(work.files.shards))
        | "bands" >> beam.FlatMap(_keyed_by_band, work=work, share=share, bands=bands, rows=rows)
        | "candidates" >> beam.GroupByKey()
        | "of several" >> beam.FlatMap(_sharing_a_band)
        | "by shard" >> beam.GroupByKey()
        | "signatures" >> beam.FlatMap(_with_signatures, work=work)
        | "buckets" >> beam.GroupByKey()
        | "compare" >> beam.FlatMap(_similar_pairs, threshold=threshold)
        | "by later shard" >> beam.GroupByKey()
        | "save" >> beam.Map(_save, work=work, name="similar", share=share)
    )


def _keyed_by_digest(index: int, *, work: ShardWork, share: Pass) -> Iterator[Keyed]:
    keys = load_array(_path(work, index, "digests")).view("<u8")
    places = np.stack([np.full(len(keys), index), np.arange(len(keys))], axis=1)
    documents = np.concatenate([keys, places.astype(np.uint64)], axis=1)
    yield from _by_partition(documents[share.has(documents[:, _HASH])])


def _later_of_equal(group: tuple[int, Iterable[np.ndarray]]) -> Iterator[Keyed]:
    documents = _sorted(np.concatenate(list(group[1])))
    later = documents[1:][_like_the_one_before(documents)]
    for index, of_shard in _split(later, later[:, _SHARD]):
        yield index, of_shard[:, [_NUMBER]]


def _keyed_by_band(
    index: int, *, work: ShardWork, share: Pass, bands: int, rows: int
) -> Iterator[Keyed]:
    path = _path(work, index, "bands")
    if share.number == 0:
        signatures = load_array(_path(work, index, "signatures"))
        equal = _load(work, index, "equal", 1)
        unequal = np.setdiff1d(np.arange(len(signatures)), equal)
        keys = deduplication.band_keys(signatures[unequal], bands, rows)
        table = np.stack([*keys.T, unequal.astype(np.uint64)])
        if share.of > 1:  # a pass that hashed all signatures anew would cost eight times as much
            save_array(path, table)
    else:
        table = load_array(path)
    *hashes_by_band, numbers = table
    for band, hashes in enumerate(hashes_by_band):
        here = np.flatnonzero(share.has(hashes))
        documents = np.empty((len(here), 4), np.uint64)
        documents[:, 0], documents[:, _HASH] = band, hashes[here]
        documents[:, _SHARD], documents[:, _NUMBER] = index, numbers[here]
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
    return _split(documents, _partition(documents[:, _HASH]))


def _partition(hashes: np.ndarray) -> np.ndarray:
    return hashes % np.uint64(_PARTITIONS)


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
    """Whether each document but the first has its predecessor's key: bool [n - 1]."""
    return (documents[1:, _KEY] == documents[:-1, _KEY]).all(axis=1)


def _path(work: ShardWork, index: int, name: str) -> str:
    return os.path.join(work.files.duplicates, f"{index:05d}.{name}.npy")


def _save(
    group: tuple[int, Iterable[np.ndarray]], *, work: ShardWork, name: str, share: Pass
) -> None:
    """Saves what was found of a shard, after what the passes before this one found."""
    index, parts = group
    found = [part.astype(np.int64) for part in parts]
    if share.number > 0:
        found.insert(0, _load(work, index, name, found[0].shape[1]))
    save_array(_path(work, index, name), np.concatenate(found))


def _load(work: ShardWork, index: int, name: str, columns: int) -> np.ndarray:
    """What was saved for a shard, int64 [n, columns]; n is 0 if there was nothing to save."""
    path = _path(work, index, name)
    return load_array(path) if tf.io.gfile.exists(path) else np.zeros((0, columns), np.int64)


def sketched_documents(work: ShardWork) -> int:
    """How many documents there are sketches of."""
    names = (f"{index:05d}.json" for index in range(work.files.shards))
    known = (read_json(os.path.join(work.files.duplicates, name)) for name in names)
    return sum(shard["statistics"]["documents"] for shard in known if shard is not None)


def decide_fates(work: ShardWork) -> None:
    """Writes the fates of all documents, from the results of both groupings."""
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
    """Removes files that are not needed once the fates are known."""
    for index in range(work.files.shards):
        for name in ("digests", "signatures", "bands", "equal", "similar"):
            if tf.io.gfile.exists(_path(work, index, name)):
                tf.io.gfile.remove(_path(work, index, name))
