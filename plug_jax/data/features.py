"""The features of one example, shared by tasks, feature converters and objectives.

Every feature is a rank-1 vector without padding, and all features of one side (encoder or decoder)
of an example have the same length. The name tells the side: `decoder_*` is the decoder's, all
others, `sentence_*` among them, are the encoder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import seqio
import tensorflow as tf

from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

ENCODER, DECODER = "encoder", "decoder"


@dataclasses.dataclass(frozen=True)
class Feature:
    """A vector with one value per token of its side."""

    name: str
    values: int | None = None  # values are 0, 1, ... below this; None: vocabulary ids
    dtype: Literal["int32", "float32"] = "int32"

    @property
    def side(self) -> str:
        """The side, "encoder" or "decoder", whose length it shares."""
        return side_of(self.name)

    def declared(self, vocabulary: PlugVocabulary) -> seqio.Feature:
        """Its declaration in a task's `output_features`."""
        plain = self.values is not None or self.dtype != "int32"
        return seqio.Feature(
            seqio.PassThroughVocabulary(self.values or 1) if plain else vocabulary,
            add_eos=False,
            dtype=tf.as_dtype(self.dtype),
            rank=1,
        )


# At each token: the example's index in its split, to attribute predictions.
EXAMPLE_INDEX = Feature("example_index", 2**31 - 1)
# Read by the encoder, for every objective.
ENCODER_TEXT = (Feature("encoder_input_tokens"), Feature("encoder_token_types", 2))
MASKED_LM = (Feature("encoder_original_tokens"), Feature("encoder_loss_weights", 2))
WORD_STRUCTURAL = (Feature("encoder_shuffled", 2),)
SENTENCE_STRUCTURAL = (Feature("sentence_labels", 3), Feature("sentence_weights", 2))
CONTINUATION = (
    Feature("decoder_input_tokens"),
    Feature("decoder_target_tokens"),
    Feature("decoder_loss_weights", 2),
)

STRUCTBERT = (*ENCODER_TEXT, *MASKED_LM, *WORD_STRUCTURAL, *SENTENCE_STRUCTURAL)
PALM = (*ENCODER_TEXT, *MASKED_LM, *CONTINUATION)


def output_features(
    features: Iterable[Feature], vocabulary: PlugVocabulary
) -> dict[str, seqio.Feature]:
    """The `output_features` of a task with these features, such as `STRUCTBERT` or `PALM`."""
    return {feature.name: feature.declared(vocabulary) for feature in features}


def features_declared(declared: Mapping[str, seqio.Feature]) -> tuple[Feature, ...]:
    """The features of a task, from its `output_features`.

    Raises:
        PlugError: a feature that is not a vector of int32 or float32, one value per token.
    """
    for name, feature in declared.items():
        if feature.rank != 1 or feature.dtype not in (tf.int32, tf.float32):
            raise PlugError(
                f"The task's feature {name!r} is of rank {feature.rank} and type "
                f"{tf.as_dtype(feature.dtype).name}; rows are made of vectors of int32 or float32."
            )
    return tuple(
        Feature(name, dtype="float32" if feature.dtype == tf.float32 else "int32")
        for name, feature in declared.items()
    )


def side_of(feature: str) -> str:
    """The side, "encoder" or "decoder", whose length a feature shares."""
    return DECODER if feature.startswith("decoder_") else ENCODER


def row_features(features: Iterable[Feature]) -> tuple[Feature, ...]:
    """The features of a row of such examples, with segment ids and positions of each side.

    Examples of several texts have their own.
    """
    features = tuple(features)
    used = {feature.side for feature in features}
    sides = [side for side in (ENCODER, DECODER) if side in used]
    added = [Feature(f"{side}_{what}") for side in sides for what in ("segment_ids", "positions")]
    names = {feature.name for feature in features}
    return (*features, *(feature for feature in added if feature.name not in names))


def length_name(side: str) -> str:
    """Name of the feature, int32 [], with the length of a side of a padded example."""
    return f"{side}_length"


def feature_lengths(lengths: Mapping[str, int], features: Iterable[str]) -> dict[str, int]:
    """The row length of every feature, for seqio's `task_feature_lengths`.

    `lengths` has tokens per row by side; a missing or unused side raises PlugError.

    >>> feature_lengths({"encoder": 512}, ["encoder_input_tokens", "sentence_labels"])
    {'encoder_input_tokens': 512, 'sentence_labels': 512}
    """
    names = list(features)
    sides = {side_of(name) for name in names}
    if sides != set(lengths):
        raise PlugError(
            f"The feature lengths are {dict(lengths)}, but the features of a row need lengths for "
            f"{' and '.join(sorted(sides))}, such as {dict.fromkeys(sorted(sides), 1024)}."
        )
    for side, length in lengths.items():
        if length < 1:
            raise PlugError(f"The {side} length of a row must be positive, not {length}.")
    return {name: lengths[side_of(name)] for name in names}
