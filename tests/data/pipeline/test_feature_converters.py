from __future__ import annotations

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data import features
from plug_jax.data.features import Feature, feature_lengths, features_declared, output_features
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.errors import PlugError

STRUCTBERT = {
    "encoder_input_tokens": [[2, 4, 3, 8, 3], [2, 9, 3]],
    "encoder_original_tokens": [[2, 7, 3, 8, 3], [2, 9, 3]],
    "encoder_loss_weights": [[0, 1, 0, 0, 0], [0, 0, 0]],
    "encoder_shuffled": [[0, 0, 0, 0, 0], [0, 0, 0]],
    "encoder_token_types": [[0, 0, 0, 1, 1], [0, 0, 0]],
    "sentence_labels": [[1, 0, 0, 0, 0], [0, 0, 0]],
    "sentence_weights": [[1, 0, 0, 0, 0], [1, 0, 0]],
}
STRUCTBERT_ROW = {
    "encoder_input_tokens": [2, 4, 3, 8, 3, 2, 9, 3, 0, 0],
    "encoder_original_tokens": [2, 7, 3, 8, 3, 2, 9, 3, 0, 0],
    "encoder_loss_weights": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "encoder_shuffled": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "encoder_token_types": [0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
    "sentence_labels": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "sentence_weights": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0],
    "encoder_segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
    "encoder_positions": [0, 1, 2, 3, 4, 0, 1, 2, 0, 0],
}
PALM = {
    "encoder_input_tokens": [[2, 4, 8, 3], [2, 9, 3]],
    "encoder_original_tokens": [[2, 7, 8, 3], [2, 9, 3]],
    "encoder_loss_weights": [[0, 1, 0, 0], [0, 0, 0]],
    "encoder_token_types": [[0, 0, 0, 0], [0, 0, 0]],
    "decoder_input_tokens": [[2, 6], [2, 5, 5]],
    "decoder_target_tokens": [[6, 3], [5, 5, 3]],
    "decoder_loss_weights": [[1, 1], [1, 1, 1]],
}
PALM_ROW = {
    "encoder_input_tokens": [2, 4, 8, 3, 2, 9, 3, 0],
    "encoder_original_tokens": [2, 7, 8, 3, 2, 9, 3, 0],
    "encoder_loss_weights": [0, 1, 0, 0, 0, 0, 0, 0],
    "encoder_token_types": [0, 0, 0, 0, 0, 0, 0, 0],
    "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 0],
    "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 0],
    "decoder_input_tokens": [2, 6, 2, 5, 5, 0],
    "decoder_target_tokens": [6, 3, 5, 5, 3, 0],
    "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
    "decoder_segment_ids": [1, 1, 2, 2, 2, 0],
    "decoder_positions": [0, 1, 0, 1, 2, 0],
}
PALM_LENGTHS = feature_lengths({"encoder": 8, "decoder": 6}, PALM)
STRUCTBERT_LENGTHS = feature_lengths({"encoder": 10}, STRUCTBERT)


def make_dataset(examples):
    return tf.data.Dataset.from_tensor_slices(
        {name: tf.ragged.constant(values, tf.int32) for name, values in examples.items()}
    )


def rows_of(dataset):
    return [
        {name: values.tolist() for name, values in row.items()}
        for row in dataset.as_numpy_iterator()
    ]


def test_structbert_documented_example():
    rows = RowFeatureConverter(features.STRUCTBERT)(make_dataset(STRUCTBERT), STRUCTBERT_LENGTHS)
    assert rows_of(rows) == [STRUCTBERT_ROW]


def test_palm_documented_example():
    assert rows_of(RowFeatureConverter(features.PALM)(make_dataset(PALM), PALM_LENGTHS)) == [
        PALM_ROW
    ]


@pytest.mark.parametrize(
    ("converter", "examples", "lengths"),
    [
        (RowFeatureConverter(features.STRUCTBERT, pack=False), STRUCTBERT, STRUCTBERT_LENGTHS),
        (RowFeatureConverter(features.PALM, pack=False), PALM, PALM_LENGTHS),
    ],
)
def test_without_packing_each_example_has_a_row_of_the_same_features(converter, examples, lengths):
    rows = rows_of(converter(make_dataset(examples), lengths))
    assert len(rows) == 2
    for index, row in enumerate(rows):
        assert set(row) == set(converter.MODEL_FEATURES)
        for name, values in examples.items():
            padding = [0] * (lengths[name] - len(values[index]))
            assert row[name] == values[index] + padding
        used = len(examples["encoder_input_tokens"][index])
        padding = [0] * (lengths["encoder_input_tokens"] - used)
        assert row["encoder_segment_ids"] == [1] * used + padding
        assert row["encoder_positions"] == [*range(used)] + padding


def test_window_limits_what_shares_a_row():
    rows = RowFeatureConverter(features.PALM, window=1)(make_dataset(PALM), PALM_LENGTHS)
    assert [max(row["encoder_segment_ids"]) for row in rows_of(rows)] == [1, 1]


def test_rows_have_static_shapes():
    spec = RowFeatureConverter(features.PALM)(make_dataset(PALM), PALM_LENGTHS).element_spec
    assert {name: tuple(s.shape) for name, s in spec.items()} == {
        name: (8,) if name.startswith("encoder") else (6,) for name in PALM_ROW
    }
    assert {s.dtype for s in spec.values()} == {tf.int32}


@pytest.mark.parametrize("name", ["encoder_token_types", "decoder_target_tokens"])
def test_task_without_a_feature_is_rejected(name):
    others = {key: values for key, values in PALM.items() if key != name}
    with pytest.raises(ValueError, match=f"missing an expected feature.*{name}"):
        RowFeatureConverter(features.PALM)(make_dataset(others), PALM_LENGTHS)


def test_stage_2_task_is_rejected_by_stage_1():
    with pytest.raises(ValueError, match="extra features.*decoder_input_tokens"):
        RowFeatureConverter(features.STRUCTBERT)(make_dataset(PALM), PALM_LENGTHS)


def test_feature_of_another_type_is_rejected():
    dataset = make_dataset(PALM).map(
        lambda example: (
            example | {"encoder_token_types": tf.cast(example["encoder_token_types"], tf.int64)}
        )
    )
    with pytest.raises(ValueError, match="encoder_token_types.*int64"):
        RowFeatureConverter(features.PALM)(dataset, PALM_LENGTHS)


def test_unequal_lengths_of_one_side_are_rejected():
    with pytest.raises(PlugError, match="9 for encoder_token_types and 8"):
        RowFeatureConverter(features.PALM)(
            make_dataset(PALM), PALM_LENGTHS | {"encoder_token_types": 9}
        )


@pytest.mark.parametrize("pack", [True, False])
def test_too_long_example_is_an_error(pack):
    lengths = feature_lengths({"encoder": 3, "decoder": 6}, PALM)
    rows = RowFeatureConverter(features.PALM, pack=pack)(make_dataset(PALM), lengths)
    with pytest.raises(tf.errors.InvalidArgumentError, match="4 encoder tokens, but a row holds 3"):
        list(rows)


@pytest.mark.parametrize(
    ("examples", "declared", "lengths", "row"),
    [
        (STRUCTBERT, features.STRUCTBERT, STRUCTBERT_LENGTHS, STRUCTBERT_ROW),
        (PALM, features.PALM, PALM_LENGTHS, PALM_ROW),
    ],
)
def test_through_seqio(examples, declared, lengths, row):
    """A task declared with these features works; other features of its examples are dropped."""
    task = seqio.Task(
        f"test_converter_{len(row)}",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: make_dataset(examples | {"text": [[1], [2]]}),
            splits=["train"],
        ),
        preprocessors=[],
        output_features=output_features(declared, seqio.PassThroughVocabulary(10)),
    )
    rows = seqio.get_dataset(task, lengths, RowFeatureConverter(declared), shuffle=False)
    assert rows_of(rows) == [row]


def test_declared_features():
    vocabulary = seqio.PassThroughVocabulary(123)
    stage_1 = output_features(features.STRUCTBERT, vocabulary)
    stage_2 = output_features(features.PALM, vocabulary)
    assert set(stage_1) == set(STRUCTBERT) and set(stage_2) == set(PALM)
    assert list(stage_1) == [feature.name for feature in features.STRUCTBERT]
    assert list(stage_2) == [feature.name for feature in features.PALM]
    for name, feature in (stage_1 | stage_2).items():
        assert (feature.vocabulary is vocabulary) == name.endswith("_tokens")
        assert (feature.dtype, feature.rank, feature.add_eos) == (tf.int32, 1, False)
    labels = np.array([2])
    np.testing.assert_array_equal(stage_1["sentence_labels"].vocabulary.encode(labels), labels)


def test_a_row_may_hold_numbers_that_are_not_whole():
    """A float32 feature is packed and padded like the others, whatever the examples' lengths."""
    wanted = (Feature("encoder_input_tokens"), Feature("score", dtype="float32"))
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "encoder_input_tokens": tf.ragged.constant([[2, 7, 3], [2, 3]], tf.int32),
            "score": tf.ragged.constant([[0.5, 0.0, 0.0], [-1.5, 0.0]], tf.float32),
        }
    )
    lengths = {"encoder_input_tokens": 6, "score": 6}
    for pack, scores in (
        (True, [[0.5, 0.0, 0.0, -1.5, 0.0, 0.0]]),
        (False, [[0.5] + [0.0] * 5, [-1.5] + [0.0] * 5]),
    ):
        rows = rows_of(RowFeatureConverter(wanted, pack=pack)(examples, lengths))
        assert [row["score"] for row in rows] == scores
    declared = output_features(wanted, seqio.PassThroughVocabulary(9))
    assert features_declared(declared)[1] == wanted[1]
    scalar = {"id": seqio.Feature(seqio.PassThroughVocabulary(9), rank=0)}
    with pytest.raises(PlugError, match="'id' is of rank 0 and type int32; rows are made of"):
        features_declared(scalar)
