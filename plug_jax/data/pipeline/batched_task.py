"""Tasks that make examples in batches: single ones for seqio's tools, padded for training."""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from plug_jax.data.caching.files import cached_shards
from plug_jax.data.features import length_name, side_of
from plug_jax.data.preprocessors.documents import unbatch_examples, unbatch_padded


class CachedTask(seqio.Task):
    """A task whose cache may be in a directory of any name, such as `lr=[1e-4]`."""

    def _get_cached_source(self, split: str, *args: Any, **options: Any) -> seqio.DataSource:
        source = super()._get_cached_source(split, *args, **options)
        # seqio would treat the directory as part of a glob.
        source._split_to_filepattern = {split: list(map(glob.escape, cached_shards(self, split)))}
        return source


class BatchedTask(CachedTask):
    """A task whose preprocessors make batches of examples, ragged int32 [n, None] each.

    Like any task it gives examples of rank 1. `padded` gives the same examples, padded with 0 to a
    common length and with their own length (see `unbatch_padded`), which takes tf.data a fraction
    of the time. `plug_jax.data.pipeline.pipeline` reads that.
    """

    def __init__(
        self,
        name: str,
        source: seqio.DataSource,
        preprocessors: Sequence[Callable[..., tf.data.Dataset]],
        output_features: Mapping[str, seqio.Feature],
        *,
        max_lengths: Mapping[str, int],
    ) -> None:
        """`max_lengths`: maximum tokens per example by side."""
        names = tuple(output_features)
        one_by_one = functools.partial(unbatch_examples, features=names)
        super().__init__(
            name,
            source=source,
            preprocessors=[*preprocessors, one_by_one],
            output_features=output_features,
        )
        self.max_lengths = max_lengths
        padded = functools.partial(unbatch_padded, features=names, max_lengths=max_lengths)
        lengths = {length_name(side_of(feature)): _LENGTH for feature in names}
        self.padded = CachedTask(
            name,
            source=source,
            preprocessors=[*preprocessors, padded],
            output_features={**output_features, **lengths},
        )


class BatchedMixture(seqio.Mixture):
    """A mixture of batched tasks, whose `padded` mixes theirs."""

    def __init__(self, name: str, tasks: Sequence[tuple[BatchedTask, float]]) -> None:
        """Mixes tasks with their rates."""
        super().__init__(name, tasks)
        self.padded = seqio.Mixture(name, [(task.padded, rate) for task, rate in tasks])


_LENGTH = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.int32, rank=0)
