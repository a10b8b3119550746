"""From documents to blocks of tokens, the input of every pre-training objective.

A function call costs tf.data about as much as 500 tokens, so documents go through the pipeline in
blocks. A block of tokens is also the record of an offline cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.features import length_name, side_of
from plug_jax.data.preprocessors.sentence_split import split_sentences

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

DOCUMENTS_A_BLOCK = 16

# Texts tf.string [d] to cleaned and kept texts, tf.string [d']; see cleaning.py.
CleaningStep = Callable[[tf.Tensor], tf.Tensor]


def batch_documents(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Documents {"text": tf.string []} to blocks of 16, {"text": tf.string [d]}, the last smaller.

    Other features are dropped.

    Example: {"text": "甲"}, {"text": "乙"} become {"text": ["甲", "乙"]}.
    """
    if set(dataset.element_spec) != {"text"}:
        dataset = dataset.map(lambda document: {"text": document["text"]})
    return dataset.batch(DOCUMENTS_A_BLOCK)


def clean_documents(dataset: tf.data.Dataset, *, steps: Sequence[CleaningStep]) -> tf.data.Dataset:
    """Applies the steps of `cleaning`, one after the other, to blocks of texts.

    Example, with a step that drops texts of one character: {"text": ["天亮", "下"]} becomes
    {"text": ["天亮"]}.
    """
    if not steps:
        return dataset

    def clean(block: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        texts = block["text"]
        for step in steps:
            texts = step(texts)
        return {"text": texts}

    return seqio.map_over_dataset(clean)(dataset)


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def tokenize_documents(dataset: tf.data.Dataset, *, vocabulary: PlugVocabulary) -> tf.data.Dataset:
    """Blocks of texts, {"text": tf.string [d]}, to blocks of tokens.

    Each sentence is encoded on its own. Documents without a token are left out and counted as
    "empty_document"; a block may be left with none.

    Example, with one id a character: {"text": ["天亮。下雨。", "我走了"]} becomes

        tokens             天 亮 。 下 雨 。 我 走 了
        sentence_lengths   [3, 3, 3]
        document_lengths   [6, 3]

    Returns:
      {"tokens": int32 [t], "sentence_lengths": int32 [s], "document_lengths": int32 [d]}: ids of
      the documents one after the other, the tokens of each sentence and those of each document,
      none 0.
    """

    def tokenize(block: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        sentences = split_sentences(block["text"])
        ids = vocabulary.encode_tf(sentences.flat_values)
        sentence_lengths = tf.cast(ids.row_lengths(), tf.int32)
        document_lengths = tf.reduce_sum(sentences.with_values(sentence_lengths), axis=1)
        empty = document_lengths == 0
        document_lengths = count_drops(
            tf.boolean_mask(document_lengths, ~empty),
            {"empty_document": tf.math.count_nonzero(empty)},
        )
        return {
            "tokens": ids.flat_values,
            "sentence_lengths": tf.boolean_mask(sentence_lengths, sentence_lengths > 0),
            "document_lengths": document_lengths,
        }

    return seqio.map_over_dataset(tokenize)(dataset)


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def unbatch_examples(dataset: tf.data.Dataset, *, features: Sequence[str]) -> tf.data.Dataset:
    """Batches of examples, ragged int32 [n, None] each, to examples int32 [None] with `features`.

    All features of one side of an example have the same length.

    Example: {"a": [[1], [2, 3]], "b": [[0], [0, 0]]} with features ("a",) becomes {"a": [1]},
    {"a": [2, 3]}.
    """

    # Not `unbatch`, whose ragged elements take three times as long to make and split.
    def examples(batch: Mapping[str, tf.RaggedTensor]) -> tf.data.Dataset:
        bounds = {}
        for name in features:
            splits = batch[name].row_splits[:, tf.newaxis]
            bounds[side_of(name)] = (splits[:-1], splits[1:] - splits[:-1])

        def example(bounds: Mapping[str, tuple[tf.Tensor, tf.Tensor]]) -> dict[str, tf.Tensor]:
            return {
                name: tf.slice(batch[name].flat_values, *bounds[side_of(name)]) for name in features
            }

        return tf.data.Dataset.from_tensor_slices(bounds).map(example)

    return dataset.flat_map(examples)


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def unbatch_padded(
    dataset: tf.data.Dataset, *, features: Sequence[str], max_lengths: Mapping[str, int]
) -> tf.data.Dataset:
    """A several times faster `unbatch_examples`: examples are padded with 0, with their length.

    Calls no function per example. Takes batches of examples up to `max_lengths` by side.

    Example: {"encoder_a": [[1], [2, 3]]} with max_lengths {"encoder": 3} becomes
    {"encoder_a": [1, 0, 0], "encoder_length": 1}, {"encoder_a": [2, 3, 0], "encoder_length": 2}.
    """

    def pad(batch: Mapping[str, tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        padded = {}
        for name in features:
            side = side_of(name)
            padded[name] = batch[name].to_tensor(shape=[None, max_lengths[side]])
            padded[length_name(side)] = tf.cast(batch[name].row_lengths(), tf.int32)
        return padded

    return dataset.map(pad, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
