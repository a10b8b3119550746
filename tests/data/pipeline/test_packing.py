from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.features import PALM, STRUCTBERT, feature_lengths, side_of
from plug_jax.data.pipeline.packing import assign_rows, pack_examples, pad_examples, unpack_examples
from plug_jax.errors import PlugError

PALM_FEATURES = [feature.name for feature in PALM]
STRUCTBERT_FEATURES = [feature.name for feature in STRUCTBERT]


def draw_examples(names, sizes, seed=0):
    """Examples with side lengths `sizes` [n, sides]; about half of all values are 0."""
    rng = np.random.default_rng(seed)
    column = {"encoder": 0, "decoder": 1}
    return [
        {
            name: rng.integers(0, 9, size[column[side_of(name)]]).astype(np.int32) // 4
            for name in names
        }
        for size in sizes
    ]


def to_dataset(examples):
    splits = {
        name: np.cumsum([0, *(len(example[name]) for example in examples)]) for name in examples[0]
    }
    return tf.data.Dataset.from_tensor_slices(
        {
            name: tf.RaggedTensor.from_row_splits(
                np.concatenate([example[name] for example in examples]),
                splits[name],
                validate=False,
            )
            for name in examples[0]
        }
    )


def to_batch(rows):
    rows = list(rows.as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def as_keys(examples):
    return [
        tuple((name, tuple(values.tolist())) for name, values in sorted(example.items()))
        for example in examples
    ]


def lists(batch):
    return {name: values.tolist() for name, values in batch.items()}


EXAMPLES = {
    "encoder_input_tokens": [[7, 8, 9], [5, 6], [3, 4]],
    "encoder_loss_weights": [[0, 1, 0], [0, 0], [1, 0]],
    "decoder_target_tokens": [[1, 2], [3, 4, 5], [6, 7]],
}


def documented_dataset():
    return tf.data.Dataset.from_tensor_slices(
        {name: tf.ragged.constant(values, tf.int32) for name, values in EXAMPLES.items()}
    )


def test_documented_example():
    rows = pack_examples(documented_dataset(), lengths={"encoder": 6, "decoder": 4})
    assert lists(to_batch(rows)) == {
        "encoder_input_tokens": [[7, 8, 9, 3, 4, 0], [5, 6, 0, 0, 0, 0]],
        "encoder_loss_weights": [[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
        "encoder_segment_ids": [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]],
        "encoder_positions": [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0]],
        "decoder_target_tokens": [[1, 2, 6, 7], [3, 4, 5, 0]],
        "decoder_segment_ids": [[1, 1, 2, 2], [1, 1, 1, 0]],
        "decoder_positions": [[0, 1, 0, 1], [0, 1, 2, 0]],
    }


def test_padding_keeps_one_example_a_row_in_order():
    batch = lists(
        to_batch(pad_examples(documented_dataset(), lengths={"encoder": 4, "decoder": 3}))
    )
    assert batch["encoder_input_tokens"] == [[7, 8, 9, 0], [5, 6, 0, 0], [3, 4, 0, 0]]
    assert batch["encoder_segment_ids"] == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert batch["encoder_positions"] == [[0, 1, 2, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert batch["decoder_target_tokens"] == [[1, 2, 0], [3, 4, 5], [6, 7, 0]]


@pytest.mark.parametrize(
    ("names", "lengths", "window"),
    [
        (STRUCTBERT_FEATURES, {"encoder": 24}, 64),
        (PALM_FEATURES, {"encoder": 24, "decoder": 20}, 1),
        (PALM_FEATURES, {"encoder": 24, "decoder": 20}, 37),
        (PALM_FEATURES, {"encoder": 24, "decoder": 40}, 1000),
    ],
)
def test_unpacking_gives_back_every_example_once(names, lengths, window):
    sizes = np.random.default_rng(window).integers(1, 21, (500, 2))
    examples = draw_examples(names, sizes)
    batch = to_batch(pack_examples(to_dataset(examples), lengths=lengths, window=window))
    assert sorted(as_keys(unpack_examples(batch))) == sorted(as_keys(examples))


def test_segments_and_positions_describe_the_rows():
    sizes = np.random.default_rng(1).integers(1, 30, (300, 2))
    lengths = {"encoder": 64, "decoder": 48}
    batch = to_batch(
        pack_examples(to_dataset(draw_examples(PALM_FEATURES, sizes)), lengths=lengths, window=100)
    )
    for side, length in lengths.items():
        ids, positions = batch[f"{side}_segment_ids"], batch[f"{side}_positions"]
        assert ids.shape == positions.shape == (len(ids), length)
        assert ids.dtype == positions.dtype == np.int32
        for row_ids, row_positions in zip(ids, positions, strict=True):
            used = np.count_nonzero(row_ids)
            assert (row_ids[used:] == 0).all() and (row_positions[used:] == 0).all()
            counts = np.unique(row_ids[:used], return_counts=True)[1]
            np.testing.assert_array_equal(
                row_ids[:used], np.repeat(np.arange(1, len(counts) + 1), counts)
            )
            np.testing.assert_array_equal(
                row_positions[:used], np.concatenate([np.arange(count) for count in counts])
            )
    np.testing.assert_array_equal(
        batch["encoder_segment_ids"].max(axis=1), batch["decoder_segment_ids"].max(axis=1)
    )


def fill(batch, side):
    return (batch[f"{side}_segment_ids"] > 0).mean()


def test_stage_2_rows_are_full():
    sizes = np.random.default_rng(2).integers(32, 513, (4096, 2))
    examples = draw_examples(["encoder_input_tokens", "decoder_input_tokens"], sizes)
    lengths = {"encoder": 1024, "decoder": 1024}
    batch = to_batch(pack_examples(to_dataset(examples), lengths=lengths))
    assert fill(batch, "encoder") > 0.96
    assert fill(batch, "decoder") > 0.96


def test_stage_1_rows_are_full():
    """As many rows as the tokens need, plus at most 1%."""
    rng = np.random.default_rng(3)
    sizes = np.where(rng.random(4096) < 0.6, 512, rng.integers(40, 401, 4096))[:, None]
    for length in (512, 1024):
        rows = assign_rows(sizes[:1024], np.array([length]))
        assert sizes[:1024].sum() / length / (rows.max() + 1) > 0.98


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80),
    st.sampled_from([(60,), (60, 60), (130, 61), (100, 1000)]),
)
def test_assigned_rows_hold_their_examples(sizes, capacities):
    sizes = np.array(sizes)[:, : len(capacities)]
    rows = assign_rows(sizes, np.array(capacities))
    loads = np.zeros((rows.max() + 1, len(capacities)), int)
    np.add.at(loads, rows, sizes)
    assert rows.shape == (len(sizes),)
    assert (loads <= capacities).all()
    assert (loads > 0).all()
    # Rows are in the order of their earliest examples.
    assert (np.diff(np.unique(rows, return_index=True)[1]) > 0).all()


def test_rows_are_not_sorted_by_length():
    sizes = np.random.default_rng(4).integers(32, 513, (1024, 2))
    rows = assign_rows(sizes, np.array([1024, 1024]))
    examples_a_row = np.bincount(rows)
    mean_length = np.bincount(rows, weights=sizes.sum(axis=1)) / examples_a_row
    assert abs(np.corrcoef(np.arange(len(mean_length)), mean_length)[0, 1]) < 0.2


def test_windows_are_packed_on_their_own():
    sizes = np.random.default_rng(5).integers(1, 30, (60, 2))
    examples = draw_examples(PALM_FEATURES, sizes)
    lengths = {"encoder": 64, "decoder": 64}
    whole, second = (
        to_batch(pack_examples(to_dataset(part), lengths=lengths, window=30))
        for part in (examples, examples[30:])
    )
    for name, rows in second.items():
        np.testing.assert_array_equal(whole[name][-len(rows) :], rows)


def test_iterator_resumes_in_the_middle_of_a_window(tmp_path):
    sizes = np.random.default_rng(6).integers(1, 30, (200, 2))
    rows = pack_examples(
        to_dataset(draw_examples(PALM_FEATURES, sizes)),
        lengths={"encoder": 64, "decoder": 64},
        window=50,
    )
    iterator = iter(rows)
    for _ in range(10):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "position"))
    expected = [lists(to_batch_of_one(row)) for row in iterator]
    resumed = iter(rows)
    tf.train.Checkpoint(iterator=resumed).read(path).assert_existing_objects_matched()
    assert [lists(to_batch_of_one(row)) for row in resumed] == expected
    assert len(expected) > 20


def to_batch_of_one(row):
    return {name: values.numpy() for name, values in row.items()}


@pytest.mark.parametrize("transform", [pack_examples, pad_examples])
def test_too_long_example_is_an_error(transform):
    examples = draw_examples(PALM_FEATURES, [(5, 5), (6, 9)])
    rows = transform(to_dataset(examples), lengths={"encoder": 8, "decoder": 8})
    with pytest.raises(tf.errors.InvalidArgumentError, match="9 decoder tokens, but a row holds 8"):
        list(rows)


def test_empty_example_is_an_error():
    rows = pack_examples(
        to_dataset(draw_examples(PALM_FEATURES, [(5, 5), (0, 5)])),
        lengths={"encoder": 8, "decoder": 8},
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="no encoder tokens"):
        list(rows)


def test_a_third_example_may_fill_a_row_to_the_last_token():
    assert assign_rows(np.array([[3], [4], [3]]), np.array([10])).tolist() == [0, 0, 0]
    rows = assign_rows(np.array([[3, 2], [4, 3], [3, 5]]), np.array([10, 10]))
    assert rows.tolist() == [0, 0, 0]


def test_features_of_unequal_length_are_an_error():
    examples = draw_examples(STRUCTBERT_FEATURES, [(5,), (6,)])
    examples[1]["sentence_labels"] = examples[1]["sentence_labels"][:4]
    rows = pack_examples(to_dataset(examples), lengths={"encoder": 8})
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="6 values of encoder_.* but 4 of sentence_labels"
    ):
        list(rows)


def test_examples_of_static_length_pack_too():
    dataset = tf.data.Dataset.from_tensor_slices({"encoder_input_tokens": [[1, 2], [3, 4]]})
    batch = to_batch(pack_examples(dataset, lengths={"encoder": 5}))
    assert batch["encoder_input_tokens"].tolist() == [[1, 2, 3, 4, 0]]


def test_unpacking_skips_empty_rows():
    zeros = np.zeros((2, 4), np.int32)
    batch = {"encoder_input_tokens": zeros, "encoder_segment_ids": zeros.copy()}
    batch["encoder_segment_ids"][1, :2] = 1
    (example,) = unpack_examples(batch)
    assert example["encoder_input_tokens"].tolist() == [0, 0]


def test_feature_lengths_by_side():
    lengths = feature_lengths({"encoder": 7, "decoder": 5}, PALM_FEATURES)
    assert lengths["encoder_token_types"] == 7
    assert lengths["decoder_loss_weights"] == 5
    assert feature_lengths({"encoder": 7}, STRUCTBERT_FEATURES)["sentence_labels"] == 7


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"encoder": 8}, "decoder and encoder"),
        ({"encoder": 8, "targets": 8}, "targets"),
        ({"encoder": 8, "decoder": 0}, "decoder length of a row must be positive"),
    ],
)
def test_wrong_feature_lengths(lengths, message):
    with pytest.raises(PlugError, match=message):
        feature_lengths(lengths, PALM_FEATURES)
