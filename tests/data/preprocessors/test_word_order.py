"""The word structural objective: exact probabilities, disjoint windows, uniform orders."""

import collections
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.word_order import (
    draw_window_starts,
    shuffle_tokens,
    shuffle_windows,
)
from plug_jax.errors import PlugError

CLS, SEP, MASK = 2, 3, 4
CONFIDENCE = 0.9999


class FakeVocabulary:
    special_ids = (0, 1, CLS, SEP, MASK)
    mask_id = MASK
    vocab_size = 1000
    regular_ids = np.arange(5, 1000, dtype=np.int32)


@pytest.fixture(autouse=True)
def global_seed():
    # TensorFlow's default global seed, whatever other tests did.
    tf.random.set_seed(87654321)


def text_rows(count, length):
    """Rows [CLS] text [SEP] text [SEP] of distinct text tokens."""
    rows = np.tile(np.arange(5, 5 + length, dtype=np.int32), (count, 1))
    rows[:, 0], rows[:, length // 2], rows[:, -1] = CLS, SEP, SEP
    return rows


def pipeline(rows, *, seed=0, mask_rate=0.15, **kwargs):
    """Masking, then shuffling; `before_tokens` and `before_weights` are the result of masking."""
    with seqio.map_seed_manager(seed):
        dataset = tf.data.Dataset.from_tensor_slices({"encoder_original_tokens": rows})
        dataset = masked_language_model(
            dataset, vocabulary=FakeVocabulary(), mask_rate=mask_rate
        ).map(
            lambda row: {
                **row,
                "before_tokens": row["encoder_input_tokens"],
                "before_weights": row["encoder_loss_weights"],
            }
        )
        return shuffle_windows(dataset, vocabulary=FakeVocabulary(), **kwargs)


def stacked(dataset, rows):
    """All rows of a dataset stacked, as a dict of arrays [rows, length]."""
    return {name: value.numpy() for name, value in next(iter(dataset.batch(rows))).items()}


def over_seeds(function, runs):
    """`function(seed)` for many seeds, stacked; the seeds are fixed."""
    seeds = tf.data.Dataset.range(runs).map(lambda i: tf.stack([i, 7 - i]))
    return next(iter(seeds.map(function, num_parallel_calls=2).batch(runs)))


def among(fixed):
    return lambda places: tf.gather(tf.constant(fixed, tf.bool), places)


def windows_of(shuffled, window):
    """Start positions of the shuffled windows of one row: its runs of ones, cut into windows."""
    edges = np.flatnonzero(np.diff(np.pad(shuffled, 1)))
    starts = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        assert (end - begin) % window == 0
        starts += range(begin, end, window)
    return starts


def assert_binomial(successes, trials, probability):
    low, high = stats.binom.interval(CONFIDENCE, trials, probability)
    assert low <= successes <= high, (successes / trials, probability)


def test_docstring_example():
    row = {
        "encoder_original_tokens": [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 3],
        "encoder_input_tokens": [2, 11, 12, 13, 14, 15, 16, 4, 18, 19, 3],
        "encoder_loss_weights": [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    }
    dataset = tf.data.Dataset.from_tensors(row)
    with seqio.map_seed_manager(1):
        dataset = shuffle_windows(dataset, vocabulary=FakeVocabulary(), window=3, rate=0.3)
    (after,) = dataset.as_numpy_iterator()
    assert {name: value.tolist() for name, value in after.items()} == {
        "encoder_original_tokens": [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 3],
        "encoder_input_tokens": [2, 11, 12, 13, 15, 14, 16, 4, 18, 19, 3],
        "encoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0],
        "encoder_shuffled": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("window", "rate"), [(3, 0.05), (3, 0.25), (3, 1 / 3), (2, 0.3), (5, 0.15), (5, 0.2)]
)
def test_every_start_has_exactly_the_rate(window, rate):
    length, runs = 14, 15_000

    def starts_as_flags(seed):
        starts = draw_window_starts(length, seed, window=window, rate=rate)
        return tf.scatter_nd(starts[:, tf.newaxis], tf.ones_like(starts), [length])

    flags = over_seeds(starts_as_flags, runs).numpy()
    assert flags.max() == 1
    for position in range(length):
        expected = rate if position <= length - window else 0
        assert_binomial(flags[:, position].sum(), runs, expected)
    covered = sum(flags[:, i : length - window + 1 + i] for i in range(window))
    assert covered.max() == 1  # at most one start in any `window` positions


def test_gaps_between_windows_are_geometric():
    window, rate = 3, 0.25
    free_rate = rate / (1 - (window - 1) * rate)
    starts = draw_window_starts(400_000, [1, 2], window=window, rate=rate).numpy()
    gaps = np.diff(starts) - window
    assert gaps.min() == 0
    for gap in range(4):
        assert_binomial((gaps == gap).sum(), gaps.size, free_rate * (1 - free_rate) ** gap)


def test_every_eligible_window_is_shuffled_with_the_rate_whatever_is_fixed():
    window, rate, runs = 3, 0.2, 15_000
    tokens = tf.range(5, 20)
    fixed = np.zeros(15, bool)
    fixed[[0, 5, 9]] = True  # free: 1-4, 6-8, 10-14

    def shuffled(seed):
        return shuffle_tokens(tokens, among(fixed), (seed, seed + 99), window=window, rate=rate)[1]

    counts = over_seeds(shuffled, runs).numpy().sum(axis=0)
    eligible = [i for i in range(13) if not fixed[i : i + 3].any()]
    assert eligible == [1, 2, 6, 10, 11, 12]
    for position in range(15):
        # Windows that contain a given position are disjoint events, so their probabilities add up.
        covering = sum(start <= position < start + window for start in eligible)
        assert_binomial(counts[position], runs, covering * rate)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_rate_after_random_masking(rate):
    rows, length, window = 4_000, 64, 3
    batch = stacked(pipeline(text_rows(rows, length), rate=rate), rows)
    special = np.isin(batch["encoder_original_tokens"], FakeVocabulary.special_ids)
    free = ~special & (batch["before_weights"] == 0)
    eligible = sum(free[:, i : length - window + 1 + i] for i in range(window)) == window
    # Windows repel each other, so the count varies less than a binomial one: a safe interval.
    assert_binomial(batch["encoder_shuffled"].sum() // window, eligible.sum(), rate)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_all_orders_are_equally_frequent(window):
    tokens = tf.range(30_000)
    fixed = tf.zeros_like(tokens, tf.bool)
    mixed, shuffled = shuffle_tokens(
        tokens, among(fixed), ([1, 2], [3, 4]), window=window, rate=0.9 / window
    )
    mixed = mixed.numpy().tolist()
    counts = collections.Counter(
        tuple(token - start for token in mixed[start : start + window])
        for start in windows_of(shuffled.numpy(), window)
    )
    assert set(counts) == set(itertools.permutations(range(window)))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@settings(deadline=None, max_examples=60)
@given(data=st.data(), window=st.sampled_from([2, 3, 4]), seed=st.integers(0, 2**31 - 1))
def test_only_whole_free_windows_move_and_keep_their_tokens(data, window, seed):
    tokens = np.asarray(data.draw(st.lists(st.integers(5, 12), max_size=40)), np.int32)
    fixed = data.draw(
        st.lists(st.sampled_from([False, False, False, True]), min_size=tokens.size, max_size=40)
    )
    fixed = np.asarray(fixed[: tokens.size], bool)
    mixed, shuffled = shuffle_tokens(
        tokens, among(fixed), ([seed, 0], [seed, 1]), window=window, rate=0.8 / window
    )
    mixed, shuffled = mixed.numpy(), shuffled.numpy()
    assert mixed.shape == shuffled.shape == tokens.shape
    assert not shuffled[fixed].any()
    np.testing.assert_array_equal(mixed[shuffled == 0], tokens[shuffled == 0])
    for start in windows_of(shuffled, window):
        end = start + window
        assert sorted(mixed[start:end]) == sorted(tokens[start:end])


def test_special_and_selected_tokens_stay_through_the_pipeline():
    rows = 300
    batch = stacked(pipeline(text_rows(rows, 40), rate=0.3), rows)
    special = np.isin(batch["encoder_original_tokens"], FakeVocabulary.special_ids)
    selected = batch["before_weights"] == 1
    assert not batch["encoder_shuffled"][special | selected].any()
    assert batch["encoder_shuffled"].any()
    unshuffled = batch["encoder_shuffled"] == 0
    np.testing.assert_array_equal(
        batch["encoder_input_tokens"][unshuffled], batch["before_tokens"][unshuffled]
    )
    np.testing.assert_array_equal(
        batch["encoder_loss_weights"], selected | (batch["encoder_shuffled"] == 1)
    )
    np.testing.assert_array_equal(batch["encoder_original_tokens"], text_rows(rows, 40))


def test_labels_only_where_the_token_moved():
    rows = text_rows(300, 40)
    rows[:, 5:15] = 77  # equal neighbours: shuffled, but nothing changes
    whole = stacked(pipeline(rows, rate=0.3), 300)
    moved = stacked(pipeline(rows, rate=0.3, label_moved_only=True), 300)
    np.testing.assert_array_equal(whole["encoder_input_tokens"], moved["encoder_input_tokens"])
    changed = whole["encoder_input_tokens"] != whole["before_tokens"]
    assert 0 < changed.sum() < whole["encoder_shuffled"].sum()
    np.testing.assert_array_equal(moved["encoder_shuffled"], changed)
    np.testing.assert_array_equal(
        moved["encoder_loss_weights"], changed | (moved["before_weights"] == 1)
    )


def test_features_stay_aligned_and_others_pass_through():
    for length in [0, 1, 2, 3, 4, 20]:
        row = {
            "encoder_input_tokens": tf.range(5, 5 + length),
            "encoder_loss_weights": tf.zeros([length], tf.int32),
            "encoder_token_types": tf.range(length) % 2,
            "document": tf.constant("x"),
        }
        dataset = tf.data.Dataset.from_tensors(row).repeat(20)
        for after in shuffle_windows(dataset, vocabulary=FakeVocabulary(), rate=1 / 3):
            np.testing.assert_array_equal(after["encoder_token_types"], row["encoder_token_types"])
            assert after["document"] == b"x"
            for name in ("encoder_input_tokens", "encoder_loss_weights", "encoder_shuffled"):
                assert after[name].shape == [length]
                assert after[name].dtype == tf.int32
            if length < 3:
                assert not after["encoder_shuffled"].numpy().any()


def test_a_batch_is_shuffled_as_examples_are():
    window, rate = 3, 0.2
    lengths = np.random.default_rng(1).integers(0, 12, 6000)  # many ends of examples
    rows = [
        [CLS, *range(5 + 20 * (i % 40), 5 + 20 * (i % 40) + n), SEP] for i, n in enumerate(lengths)
    ]
    batch = tf.cast(tf.ragged.stack(rows), tf.int32)
    dataset = tf.data.Dataset.from_tensors({"encoder_original_tokens": batch})
    with seqio.map_seed_manager(4):
        dataset = masked_language_model(dataset, vocabulary=FakeVocabulary())
        dataset = shuffle_windows(dataset, vocabulary=FakeVocabulary(), window=window, rate=rate)
    (after,) = dataset
    assert after["encoder_original_tokens"].to_list() == rows
    for name in ("encoder_input_tokens", "encoder_loss_weights", "encoder_shuffled"):
        assert after[name].dtype == tf.int32
        np.testing.assert_array_equal(after[name].row_splits, batch.row_splits)
    inputs, weights, shuffled = (
        after[f"encoder_{name}"].to_list() for name in ("input_tokens", "loss_weights", "shuffled")
    )
    # Free windows and shuffled ones: all, the first of each example, and the last.
    free, found = np.zeros(3, int), np.zeros(3, int)
    for row, mixed, weight, marks in zip(rows, inputs, weights, shuffled, strict=True):
        starts = windows_of(marks, window)  # whole windows within the example
        for start in starts:
            here = slice(start, start + window)
            assert sorted(mixed[here]) == sorted(row[here])
        fixed = (np.array(weight) == 1) & (np.array(marks) == 0)  # selected by masking
        for start in range(1, len(row) - window):
            if not fixed[start : start + window].any():
                which = np.array([True, start == 1, start == len(row) - window - 1])
                free += which
                found += which & (start in starts)
    for count, total in zip(found, free, strict=True):
        assert_binomial(count, total, rate)


def test_rate_zero_shuffles_nothing():
    batch = stacked(pipeline(text_rows(50, 40), rate=0.0), 50)
    assert not batch["encoder_shuffled"].any()
    np.testing.assert_array_equal(batch["encoder_input_tokens"], batch["before_tokens"])


def test_same_seed_same_windows_and_other_seeds_other_windows():
    def inputs(seed):
        return stacked(pipeline(text_rows(20, 40), seed=seed), 20)["encoder_input_tokens"]

    np.testing.assert_array_equal(inputs(5), inputs(5))
    assert (inputs(5) != inputs(11)).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": 1}, "at least 2"),
        ({"rate": 0.34}, "0.3333"),
        ({"rate": -0.1}, "rate"),
        ({"window": 5, "rate": 0.25}, "1 / window"),
        ({"rate": float("nan")}, "rate"),
    ],
)
def test_impossible_windows_and_rates_are_refused(kwargs, message):
    with pytest.raises(PlugError, match=message):
        pipeline(text_rows(1, 10), **kwargs)


def test_iterator_resumes_exactly_from_a_checkpoint(tmp_path):
    dataset = pipeline(text_rows(30, 60), rate=0.2)
    iterator = iter(dataset)
    for _ in range(11):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    expected = [row["encoder_input_tokens"].numpy().tolist() for row in iterator]
    restored = iter(dataset)
    tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
    assert [row["encoder_input_tokens"].numpy().tolist() for row in restored] == expected
    assert len(expected) == 19
