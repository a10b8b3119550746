"""The seqio feature converter: from a task's examples to the model's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import seqio
import tensorflow as tf

from plug_jax.data.features import (
    DECODER,
    ENCODER,
    Feature,
    length_name,
    row_features,
    side_of,
)
from plug_jax.data.pipeline.packing import DEFAULT_WINDOW, pack_examples, pad_examples
from plug_jax.errors import PlugError


class RowFeatureConverter(seqio.FeatureConverter):
    """Keeps features of a task and adds segment ids and positions of their sides.

    With `pack=True` a row has several whole examples, with `pack=False` one. Rows are padded with 0
    and have `encoder_segment_ids` (0 at padding) and `encoder_positions`, and the same for the
    decoder if there are features of that side; examples of several texts have their own, and are
    not packed. An example must fit on both sides of its row, with the same segment id on both.

    Takes unpadded examples, or padded ones from `BatchedTask.padded`. A feature that is missing or
    of another type raises ValueError; other features of the examples are dropped. seqio's own
    length check is off: packing checks, with a message that says what to do. An example longer than
    the row ends the iteration with an InvalidArgumentError; seqio must not trim it before
    (`trim_output_features=False`).

    Two examples of stage 1, `features.STRUCTBERT` ([CLS] = 2, [SEP] = 3, [MASK] = 4; label 1 at
    the first [CLS], 0 at the second):

        encoder_input_tokens     [2, 4, 3, 8, 3]   [2, 9, 3]
        encoder_original_tokens  [2, 7, 3, 8, 3]   [2, 9, 3]
        encoder_loss_weights     [0, 1, 0, 0, 0]   [0, 0, 0]
        encoder_shuffled         [0, 0, 0, 0, 0]   [0, 0, 0]
        encoder_token_types      [0, 0, 0, 1, 1]   [0, 0, 0]
        sentence_labels          [1, 0, 0, 0, 0]   [0, 0, 0]
        sentence_weights         [1, 0, 0, 0, 0]   [1, 0, 0]

    become this row with every length in `task_feature_lengths` 10:

        encoder_input_tokens     [2, 4, 3, 8, 3, 2, 9, 3, 0, 0]
        encoder_original_tokens  [2, 7, 3, 8, 3, 2, 9, 3, 0, 0]
        encoder_loss_weights     [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
        encoder_shuffled         [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        encoder_token_types      [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
        sentence_labels          [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        sentence_weights         [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
        encoder_segment_ids      [1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
        encoder_positions        [0, 1, 2, 3, 4, 0, 1, 2, 0, 0]

    Two of stage 2, `features.PALM`:

        encoder_input_tokens     [2, 4, 8, 3]   [2, 9, 3]
        encoder_original_tokens  [2, 7, 8, 3]   [2, 9, 3]
        encoder_loss_weights     [0, 1, 0, 0]   [0, 0, 0]
        encoder_token_types      [0, 0, 0, 0]   [0, 0, 0]
        decoder_input_tokens     [2, 6]         [2, 5, 5]
        decoder_target_tokens    [6, 3]         [5, 5, 3]
        decoder_loss_weights     [1, 1]         [1, 1, 1]

    become this row with encoder lengths of 8 and decoder lengths of 6:

        encoder_input_tokens     [2, 4, 8, 3, 2, 9, 3, 0]
        encoder_original_tokens  [2, 7, 8, 3, 2, 9, 3, 0]
        encoder_loss_weights     [0, 1, 0, 0, 0, 0, 0, 0]
        encoder_token_types      [0, 0, 0, 0, 0, 0, 0, 0]
        encoder_segment_ids      [1, 1, 1, 1, 2, 2, 2, 0]
        encoder_positions        [0, 1, 2, 3, 0, 1, 2, 0]
        decoder_input_tokens     [2, 6, 2, 5, 5, 0]
        decoder_target_tokens    [6, 3, 5, 5, 3, 0]
        decoder_loss_weights     [1, 1, 1, 1, 1, 0]
        decoder_segment_ids      [1, 1, 2, 2, 2, 0]
        decoder_positions        [0, 1, 0, 1, 2, 0]
    """

    TASK_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(
        self, features: Iterable[Feature], *, pack: bool = True, window: int = DEFAULT_WINDOW
    ) -> None:
        """`window`: number of examples packed together; unused if `pack` is false."""
        features = tuple(features)
        added = row_features(features)[len(features) :]
        if pack and len(added) < 2 * len({feature.side for feature in features}):
            raise PlugError(
                "examples with their own segment ids and positions are rows already: set "
                "DatasetConfig.pack to False"
            )
        # seqio also reads these from the instance.
        self.TASK_FEATURES = _specs(features)
        self.MODEL_FEATURES = _specs(row_features(features))
        self.PACKING_FEATURE_DTYPES = {
            name: spec.dtype
            for name, spec in self.MODEL_FEATURES.items()
            if name not in self.TASK_FEATURES
        }
        super().__init__(pack=pack, apply_length_check=False)
        self._window = window

    def batches(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int], batch_size: int
    ) -> tf.data.Dataset:
        """Converts and batches in one step, which is faster; the last batch may be smaller."""
        return self._to_rows(ds, task_feature_lengths, batch_size)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        return self._to_rows(ds, task_feature_lengths)

    def _to_rows(
        self,
        ds: tf.data.Dataset,
        task_feature_lengths: Mapping[str, int],
        batch_size: int | None = None,
    ) -> tf.data.Dataset:
        lengths = side_lengths(task_feature_lengths)
        names = {*self.TASK_FEATURES, *map(length_name, lengths)} & set(ds.element_spec)
        if set(ds.element_spec) != names:
            ds = ds.map(
                lambda example: {name: example[name] for name in names},
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        if self.pack:
            return pack_examples(ds, lengths=lengths, window=self._window, batch_size=batch_size)
        return pad_examples(ds, lengths=lengths, batch_size=batch_size)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """The row length of every model feature, its side's."""
        lengths = side_lengths(task_feature_lengths)
        return {name: lengths[side_of(name)] for name in self.MODEL_FEATURES}


def _specs(features: Iterable[Feature]) -> dict[str, seqio.FeatureConverter.FeatureSpec]:
    return {
        feature.name: seqio.FeatureConverter.FeatureSpec(dtype=tf.as_dtype(feature.dtype), rank=1)
        for feature in features
    }


def side_lengths(task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """{"encoder": E, "decoder": D} from the row lengths of features; PlugError if they disagree."""
    lengths: dict[str, int] = {}
    for name, length in task_feature_lengths.items():
        if lengths.setdefault(side_of(name), length) != length:
            raise PlugError(
                f"All {side_of(name)} features share one row length, but task_feature_lengths is "
                f"{length} for {name} and {lengths[side_of(name)]} for others."
            )
    return {side: lengths[side] for side in (ENCODER, DECODER) if side in lengths}
