"""Deduplication of documents: equal texts exactly, nearly equal ones by MinHash.

Nothing here knows about files or Beam; `plug_jax.data.caching.run` brings the documents together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plug_jax.errors import PlugError

SHINGLE_CHARACTERS = 5
PERMUTATIONS = 128
# Candidates are verified, so a missed pair costs more than a needless candidate: at a threshold of
# 0.8, 87% of pairs with exactly that similarity share a band; with datasketch's even weights 40%.
_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT = 0.1, 0.9
# Bounds the work on a bucket whose documents are all different; real ones have a handful.
_MAX_FIRSTS = 1024
_SHINGLES_AT_ONCE = 1 << 14  # 8 MB of permuted hashes

DocumentId = tuple[int, int]  # (shard, index of the document in it); "first" means this order


@dataclasses.dataclass(frozen=True)
class Deduplication:
    """What counts as a duplicate: equal texts, and with a threshold near duplicates too.

    `near_threshold` is the Jaccard similarity of two texts' sets of 5-character shingles at which
    the later one is dropped. Raises PlugError unless it lies between 0 and 1, and is not too close
    to 1 for the signatures.
    """

    near_threshold: float | None = None

    def __post_init__(self) -> None:
        """Checks the threshold."""
        if self.near_threshold is not None and not 0 < self.near_threshold < 1:
            raise PlugError(
                f"The threshold of near duplicates must lie between 0 and 1, not "
                f"{self.near_threshold}; equal documents need none."
            )
        if self.near_threshold is not None:
            self.bands()

    def bands(self) -> tuple[int, int]:
        """Number of LSH bands and rows per band, as optimised by datasketch."""
        try:
            lsh = _datasketch().MinHashLSH(
                threshold=self.near_threshold,
                num_perm=PERMUTATIONS,
                weights=(_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT),
            )
        except ValueError as error:  # fewer than two bands
            raise PlugError(
                f"The threshold of near duplicates, {self.near_threshold}, is too close to 1 for "
                f"signatures of {PERMUTATIONS} hashes; give 0.99 or less."
            ) from error
        return lsh.b, lsh.r


def digest(text: bytes) -> bytes:
    """A 16-byte hash, in practice shared only by equal texts."""
    return hashlib.blake2b(text, digest_size=16).digest()


def signature(text: str) -> np.ndarray:
    """MinHash of the text's 5-character shingles: uint32 [128]; a shorter text is one shingle.

    The share of equal entries of two signatures estimates the Jaccard similarity of the two sets
    of shingles, with a standard error of at most 0.045 (Broder 1997).

    Example: "abcdefgh" has the shingles abcde, bcdef, cdefg, defgh, and "abcdefgx" shares 3 of
    them: the similarity is 3 / 5.
    """
    # Making the sketch's permutations takes 0.1 ms; copies share them.
    sketch = _empty_sketch().copy()
    shingles = _shingle_hashes(text)
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        sketch.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
    return sketch.hashvalues


def band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Hashes of the bands of signatures uint32 [n, 128]: uint64 [n, bands].

    Documents with an equal band have equal hashes there, others hardly ever.
    """
    used = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    keys = np.sum(used * np.array(_factors(rows)), axis=2, dtype=np.uint64)
    # Workers are chosen by the remainder, so low bits must be as random as high ones.
    return np.multiply(keys ^ (keys >> np.uint64(32)), _factors(1)[0])


def link_similar(
    members: Iterable[tuple[DocumentId, np.ndarray]], threshold: float
) -> list[tuple[DocumentId, DocumentId]]:
    """Pairs (later, earlier) of documents that share a band and are similar enough.

    In document order, each is compared with those that were similar to no earlier one; the result
    does not depend on the order given.

    Args:
      members: ids and signatures, uint32 [128].
      threshold: the minimum share of equal entries.
    """
    ordered = sorted(members, key=lambda member: member[0])
    firsts = np.empty((min(len(ordered), _MAX_FIRSTS), PERMUTATIONS), np.uint32)
    places: list[DocumentId] = []
    links = []
    for place, values in ordered:
        similarities = np.mean(firsts[: len(places)] == values, axis=1)
        near = np.flatnonzero(similarities >= threshold)
        if near.size:
            links.append((place, places[near[0]]))
        elif len(places) < _MAX_FIRSTS:
            firsts[len(places)] = values
            places.append(place)
    return links


def later_members(links: Iterable[tuple[DocumentId, DocumentId]]) -> set[DocumentId]:
    """All but the first document of each connected group.

    Example: (0, 7)-(0, 2) and (1, 0)-(0, 7) make one group: (0, 7) and (1, 0) go, (0, 2) stays.
    """
    parent: dict[DocumentId, DocumentId] = {}

    def first_of(place: DocumentId) -> DocumentId:
        root = place
        while (above := parent.get(root, root)) != root:
            root = above
        while place != root:
            parent[place], place = root, parent[place]
        return root

    for one, other in links:
        roots = first_of(one), first_of(other)
        parent[max(roots)] = min(roots)
    return {place for place, above in parent.items() if place != above}


def _shingle_hashes(text: str) -> np.ndarray:
    """The distinct 32-bit hashes of the text's shingles, sorted: uint64 [n]."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    width = min(SHINGLE_CHARACTERS, len(points))
    count = len(points) - width + 1
    # Multilinear hashing: the upper half of a sum of products with odd 64-bit factors.
    products = [points[i : i + count] * factor for i, factor in enumerate(_factors(width))]
    return np.unique(np.sum(products, axis=0, dtype=np.uint64) >> np.uint64(32))


@functools.cache
def _factors(count: int) -> Sequence[np.uint64]:
    draws = np.random.RandomState(5).randint(0, 1 << 63, count, np.uint64)
    return list(draws * np.uint64(2) + np.uint64(1))


@functools.cache
def _empty_sketch() -> Any:
    # The scheme is named because caches are resumed with newer releases of datasketch.
    return _datasketch().MinHash(PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise PlugError(
            "Finding near duplicates needs datasketch: pip install 'plug-jax[cache]'."
        ) from error
    return datasketch
