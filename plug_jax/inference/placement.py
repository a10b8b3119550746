"""Where a model of inference lies, and the rows that it works on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.partitioning import Partitioner


class PlacedModel:
    """Parameters on one device; with a partitioner over a mesh, rows over its data and fsdp."""

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take over `params`, which lie where the partitioner has them."""
        self.config = config
        self.params = params
        self.vocabulary = vocabulary
        self.partitioner = partitioner

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
