"""Where a model of inference lies, and the rows that it works on.

Axis letters: P texts, E encoder length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.partitioning import Partitioner

_SMALLEST_BUCKET = 32


class PlacedModel:
    """Parameters on one device; with a partitioner over a mesh, rows over its data and fsdp."""

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take over `params`, which lie where the partitioner has them.

        Raises:
            PlugError: the vocabulary is not the one that the model was trained with.
        """
        if vocabulary.vocab_size > config.padded_vocab_size:
            raise PlugError(
                f"the vocabulary has {vocabulary.vocab_size} pieces, the model rows for "
                f"{config.padded_vocab_size}: it is not the one that the model was trained with"
            )
        self.config = config
        self.params = params
        self.vocabulary = vocabulary
        self.partitioner = partitioner

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the encoder reads, [CLS] and [SEP] included."""
        return self.config.max_positions

    def bucket(self, length: int) -> int:
        """The length that `length` tokens are padded to: the next power of two, 32 at least."""
        return min(max(_SMALLEST_BUCKET, power_of_two(length)), self.longest)

    def batch(self, texts: Sequence[Sequence[int]], bucket: int | None = None) -> tuple[Any, Any]:
        """Token and segment ids, int32 [P, E]: a text is segment 1, padding segment 0."""
        length = self.bucket(max(map(len, texts))) if bucket is None else bucket
        tokens = np.full((len(texts), length), self.vocabulary.pad_id, np.int32)
        segment_ids = np.zeros_like(tokens)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
            segment_ids[row, : len(ids)] = 1
        padded: tuple[Any, Any] = self.padded((tokens, segment_ids), self.rows(len(texts)))
        return padded

    def rows(self, count: int) -> int:
        """`count`, or the next number that the mesh divides."""
        if self.partitioner is None:
            return count
        mesh = self.partitioner.mesh.shape
        return -(-count // (mesh["data"] * mesh["fsdp"])) * mesh["data"] * mesh["fsdp"]

    def padded(self, tree: Any, rows: int) -> Any:
        """Arrays [n, ...] as [rows, ...], the last row repeated, on the devices of their rows."""

        def pad(leaf: Any) -> Any:
            if len(leaf) < rows:
                leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], rows - len(leaf), axis=0)])
            return leaf if self.partitioner is None else self._put(leaf)

        return jax.tree.map(pad, tree)

    def context(self) -> contextlib.AbstractContextManager[None]:
        """What the model's programs are called in."""
        return contextlib.nullcontext() if self.partitioner is None else self.partitioner.context()

    def _put(self, leaf: Any) -> jax.Array:
        assert self.partitioner is not None
        sharding = self.partitioner.batch_sharding
        if sharding.is_fully_addressable:
            placed: jax.Array = jax.device_put(leaf, sharding)
            return placed
        # Every process has the whole leaf, and keeps the rows of its own devices.
        return jax.jit(_same, out_shardings=sharding)(leaf)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def to_host(tree: Any) -> Any:
    """Arrays of devices as NumPy's; those that lie over several processes as a whole on each.

    All processes must call it.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def power_of_two(number: int) -> int:
    """The next power of two: sizes are rounded up to few, for each has a program of its own."""
    return 1 << max(number - 1, 0).bit_length()
