"""Our tasks for t5x: a feature converter, lengths by feature, and training data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf
from jax.experimental import multihost_utils

from plug_jax.data.features import Feature, feature_lengths
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter, side_lengths
from plug_jax.data.pipeline.pipeline import DatasetConfig, stream_batches
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.objectives.composition import Objectives, features_of

if TYPE_CHECKING:
    from t5x import utils


class T5xFeatureConverter(RowFeatureConverter):
    """`RowFeatureConverter` with the interface of t5x and seqio's Evaluator.

    Unpacked output has a known length if the input has one: t5x takes `len` of evaluation data.
    """

    def __init__(
        self, features: Iterable[Feature], pack: bool = True, use_custom_packing_ops: bool = False
    ) -> None:
        """PlugError for `use_custom_packing_ops`, which t5x passes from its DatasetConfig."""
        if use_custom_packing_ops:
            raise PlugError("plug-jax packs by itself: set use_custom_packing_ops to False")
        self.features = tuple(features)
        super().__init__(self.features, pack=pack)

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Rows; lengths of other features, which the Evaluator adds for `targets`, are ignored."""
        lengths = {k: v for k, v in task_feature_lengths.items() if k in self.TASK_FEATURES}
        rows, count = super().__call__(ds, lengths), int(ds.cardinality())
        if self.pack or count < 0:
            return rows
        return rows.apply(tf.data.experimental.assert_cardinality(count))


@typed
def task_feature_lengths(*, objectives: Objectives, lengths: Mapping[str, int]) -> dict[str, int]:
    """For TASK_FEATURE_LENGTHS: each feature's length, from those of the sides.

    `lengths` is {"encoder": E} or {"encoder": E, "decoder": D}, in tokens per row.
    """
    return feature_lengths(lengths, [feature.name for feature in features_of(objectives)])


@typed
def vocabulary(*, path: str) -> PlugVocabulary:
    """For gin: the vocabulary at `path`."""
    return load_vocabulary(path)


def get_dataset(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Callable[..., T5xFeatureConverter],
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
    """For `train.get_dataset_fn`: our own trainer's batches, one stream per shard.

    t5x's `utils.get_dataset` also works, with the same rows for one shard; this one makes examples
    in batches, packs faster, and reports errors of a task, its lengths or its cache.

    Raises:
        PlugError: any of these, or data that are not endless.
    """
    if num_epochs is not None or continue_from_last_checkpoint:
        raise PlugError("get_dataset is for train.get_dataset_fn alone: t5x's own reads the rest")
    if cfg.batch_size % num_shards:
        raise PlugError(f"BATCH_SIZE {cfg.batch_size} does not divide into {num_shards} shards")
    seed = cfg.seed
    if seed is None:  # as in t5x: random, but the same on all hosts
        seed = int(multihost_utils.broadcast_one_to_all(np.int32(time.time())))
    config = DatasetConfig(
        mixture_or_task_name=cfg.mixture_or_task_name,
        feature_lengths=side_lengths(cfg.task_feature_lengths),
        split=cfg.split,
        batch_size=cfg.batch_size,
        shuffle=cfg.shuffle,
        seed=seed,
        pack=cfg.pack,
        use_cached=cfg.use_cached,
        module=cfg.module,
    )
    features = feature_converter_cls(pack=cfg.pack).features
    return stream_batches(config, features, seqio.ShardInfo(shard_id, num_shards))
