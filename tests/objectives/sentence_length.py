"""An objective that plug_jax knows nothing of, in one file: how long is the example?

A toy regression on [CLS]: the share of the longest example's length. Used by
test_new_objective.py, which names it in gin as a user would.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from plug_jax.config import PlugConfig
from plug_jax.data.features import ENCODER_TEXT, Feature, output_features
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary
from plug_jax.losses import weighted
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape
from plug_jax.models.layers import projection
from plug_jax.models.torch_tensors import Entry, linear
from plug_jax.objectives.objective import Batch, Forward, Objective
from plug_jax.objectives.shares import NO_CHANCE, Share

LONGEST = 24


class SentenceLength(Objective):
    """The squared error of a linear head on the state at [CLS]."""

    name: ClassVar[str] = "sentence_length"
    tensors: ClassVar[tuple[Entry, ...]] = linear("heads/sentence_length", "length_head")

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
            *ENCODER_TEXT,
            Feature("sentence_length", dtype="float32"),
            Feature("sentence_length_weights", 2),
        )

    def head(self, config: PlugConfig) -> nn.Module:
        return projection(config, 1, axes=("embed", None))

    def predictions(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["sentence_length_weights"]).astype(jnp.float32)

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        head = self.head(forward.config)
        guess = forward.apply_head(self.name, head, forward.encoded)[..., 0]
        error = (guess - forward.batch["sentence_length"]) ** 2
        loss = weighted(error, forward.batch["sentence_length_weights"])
        return {"sentence_length_loss": Mean(*loss)}

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        return {"sentence_length_rmse": values["sentence_length_loss"] ** 0.5}

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        return {"length_head": 2 * rows.batch_size * rows.encoder * config.hidden_size}

    def facts(self, example: Mapping, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        yield "length", f"{example['sentence_length'][0]:.3f} of {LONGEST}"

    def tally(self, vocabulary: PlugVocabulary, settings: object) -> _WrongLengths:
        return _WrongLengths()


class _WrongLengths:
    """Counts examples whose label is not their length."""

    def __init__(self) -> None:
        self._wrong = self._examples = 0

    def add(self, flat: Mapping, sizes: Mapping[str, np.ndarray]) -> None:
        said = flat["sentence_length"][flat["sentence_length_weights"] > 0] * LONGEST
        self._wrong += int((np.round(said) != sizes["encoder"]).sum())
        self._examples += len(said)

    def shares(self) -> Iterator[Share]:
        yield Share(
            "wrong_length", "wrong lengths", self._wrong, self._examples, "examples", 0.0, NO_CHANCE
        )


def add_task(*, files: str, vocabulary: str, name: str = "sentence_lengths") -> str:
    """Register the task over a text file of short lines, and return its name."""
    loaded = load_vocabulary(vocabulary)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=TextSource(train=files, validation=files, file_format="lines"),
        preprocessors=[functools.partial(_examples, vocabulary=loaded)],
        output_features=output_features(SentenceLength().features, loaded),
    )
    return name


def _examples(dataset: tf.data.Dataset, vocabulary: PlugVocabulary) -> tf.data.Dataset:
    def example(fields: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        ids = vocabulary.encode_tf(fields["text"])[: LONGEST - 2]
        tokens = tf.concat([[vocabulary.cls_id], ids, [vocabulary.sep_id]], axis=0)
        size = tf.size(tokens)
        at_cls = tf.one_hot(0, size, dtype=tf.int32)
        share = tf.cast(size, tf.float32) / LONGEST
        return {
            "encoder_input_tokens": tokens,
            "encoder_token_types": tf.zeros_like(tokens),
            "sentence_length": share * tf.cast(at_cls, tf.float32),
            "sentence_length_weights": at_cls,
        }

    return dataset.map(example)
