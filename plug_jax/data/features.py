"""The features of one example, shared by tasks and feature converters.

Every feature is a rank-1 int32 vector without padding, and all features of one side (encoder or
decoder) of an example have the same length. `sentence_*` features belong to the encoder side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

ENCODER, DECODER = "encoder", "decoder"

# Features that hold no tokens, with how many values each may take.
_SIDE_FEATURE_SIZES = {
    "encoder_loss_weights": 2,
    "encoder_shuffled": 2,
    "encoder_token_types": 2,
    "sentence_labels": 3,
    "sentence_weights": 2,
    "decoder_loss_weights": 2,
}

STRUCTBERT_FEATURES = (
    "encoder_input_tokens",
    "encoder_original_tokens",
    "encoder_loss_weights",
    "encoder_shuffled",
    "encoder_token_types",
    "sentence_labels",
    "sentence_weights",
)
PALM_FEATURES = (
    "encoder_input_tokens",
    "encoder_original_tokens",
    "encoder_loss_weights",
    "encoder_token_types",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
)


def structbert_features(vocabulary: PlugVocabulary) -> dict[str, seqio.Feature]:
    """`output_features` of a stage-1 (StructBERT) task: seven features int32 [e]."""
    return {name: _feature(name, vocabulary) for name in STRUCTBERT_FEATURES}


def palm_features(vocabulary: PlugVocabulary) -> dict[str, seqio.Feature]:
    """`output_features` of a stage-2 (PALM) task: four features int32 [e] and three int32 [d]."""
    return {name: _feature(name, vocabulary) for name in PALM_FEATURES}


def side_of(feature: str) -> str:
    """The side, "encoder" or "decoder", whose length a feature shares."""
    return DECODER if feature.startswith("decoder_") else ENCODER


def length_name(side: str) -> str:
    """The feature, int32 [], that tells the tokens of a side of an example that is padded."""
    return f"{side}_length"


def feature_lengths(lengths: Mapping[str, int], features: Iterable[str]) -> dict[str, int]:
    """The row length of every feature, as seqio's `task_feature_lengths` wants it.

    `lengths` holds tokens a row by side; a missing or unused side raises PlugError.

    >>> feature_lengths({"encoder": 512}, ["encoder_input_tokens", "sentence_labels"])
    {'encoder_input_tokens': 512, 'sentence_labels': 512}
    """
    names = list(features)
    sides = {side_of(name) for name in names}
    if sides != set(lengths):
        raise PlugError(
            f"The feature lengths are {dict(lengths)}, but the task's features need lengths for "
            f"{' and '.join(sorted(sides))}, such as {dict.fromkeys(sorted(sides), 1024)}."
        )
    for side, length in lengths.items():
        if length < 1:
            raise PlugError(f"The {side} length of a row must be positive, not {length}.")
    return {name: lengths[side_of(name)] for name in names}


def _feature(name: str, vocabulary: seqio.Vocabulary) -> seqio.Feature:
    size = _SIDE_FEATURE_SIZES.get(name)
    return seqio.Feature(
        vocabulary if size is None else seqio.PassThroughVocabulary(size),
        add_eos=False,
        dtype=tf.int32,
        rank=1,
    )
