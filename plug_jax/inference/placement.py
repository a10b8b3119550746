"""Placement of parameters and rows on devices for inference.

Axis letters: P texts, E encoder length.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from plug_jax.checkpoints.saved_model import SavedModel, load_for_inference, open_checkpoint
from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.inference.quantization import quantize
from plug_jax.objectives.composition import Objectives
from plug_jax.partitioning import Partitioner

_SMALLEST_BUCKET = 32


class PlacedModel:
    """Parameters on one device, or with a partitioner on a mesh, with rows over data and fsdp."""

    READS_DECODER: ClassVar[bool] = True  # if the checkpoint has one

    def __init__(
        self,
        config: PlugConfig,
        params: Mapping[str, Any],
        vocabulary: PlugVocabulary,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Take over `params`, sharded by the partitioner.

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

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        partitioner: Partitioner | None = None,
        dtype: ComputeDtype | None = None,
        *,
        int8: bool = False,
        verify: bool = True,
    ) -> Self:
        """Load a MODEL_DIR or one of its checkpoints directly into its shardings and dtype.

        With `int8` the kernels are then quantized, see `plug_jax.inference.quantization`. `verify`
        checks the parameters against their checksums first.

        Raises:
            PlugError: no checkpoint, one without a vocabulary, or one that `check` refuses.
        """
        saved = open_checkpoint(checkpoint)
        cls.check(saved)
        parts = read_parts(
            saved.path, partitioner, dtype, int8=int8, verify=verify, decoder=cls.READS_DECODER
        )
        return cls(*parts, partitioner)

    @classmethod
    def check(cls, saved: SavedModel) -> None:
        """PlugError for a checkpoint of another kind, before its parameters are read."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the encoder reads, including [CLS] and [SEP]."""
        return self.config.max_positions

    def bucket(self, length: int) -> int:
        """The padded length of `length` tokens: the next power of two, at least 32."""
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
        """`count` rounded up to a number that the mesh divides."""
        if self.partitioner is None:
            return count
        mesh = self.partitioner.mesh.shape
        return -(-count // (mesh["data"] * mesh["fsdp"])) * mesh["data"] * mesh["fsdp"]

    def padded(self, tree: Any, rows: int) -> Any:
        """Arrays [n, ...] padded to [rows, ...] with the last row, on their rows' devices."""

        def pad(leaf: Any) -> Any:
            if len(leaf) < rows:
                leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], rows - len(leaf), axis=0)])
            return leaf if self.partitioner is None else self._put(leaf)

        return jax.tree.map(pad, tree)

    def context(self) -> contextlib.AbstractContextManager[None]:
        """The context for calls of the model's programs."""
        return contextlib.nullcontext() if self.partitioner is None else self.partitioner.context()

    def _put(self, leaf: Any) -> jax.Array:
        assert self.partitioner is not None
        sharding = self.partitioner.batch_sharding
        if sharding.is_fully_addressable:
            placed: jax.Array = jax.device_put(leaf, sharding)
            return placed
        # Every process has the whole leaf, and keeps the rows of its own devices.
        return jax.jit(_same, out_shardings=sharding)(leaf)


def read_parts(
    checkpoint: str | os.PathLike[str],
    partitioner: Partitioner | None,
    dtype: ComputeDtype | None,
    *,
    int8: bool,
    verify: bool,
    objectives: Objectives = (),
    decoder: bool = True,
) -> tuple[PlugConfig, Mapping[str, Any], PlugVocabulary]:
    """Like `load_for_inference`; with `int8`, encoder and decoder kernels in 8 bits."""
    config, params, vocabulary = load_for_inference(
        checkpoint, partitioner, dtype, objectives, decoder=decoder, verify=verify
    )
    return config, quantize(params) if int8 else params, vocabulary


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def to_host(tree: Any) -> Any:
    """Device arrays as NumPy arrays; those sharded over processes are gathered on each.

    All processes must call it.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def power_of_two(number: int) -> int:
    """The next power of two, to have few sizes, each with its own program."""
    return 1 << max(number - 1, 0).bit_length()
