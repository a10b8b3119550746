"""Masked language modelling: exact rates, special tokens untouched, seeded and resumable."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plug_jax.data.preprocessors.masking import is_special, mask_tokens, masked_language_model
from plug_jax.errors import PlugError

CLS, SEP, MASK = 2, 3, 4
CONFIDENCE = 0.9999


class FakeVocabulary:
    special_ids = (0, 1, CLS, SEP, MASK)
    mask_id = MASK
    vocab_size = 30
    regular_ids = np.arange(5, 30, dtype=np.int32)


class ScatteredVocabulary:
    """Special ids in the middle and at the end, as in BERT's vocab.txt."""

    special_ids = (0, 7, 8, 9, 19)
    mask_id = 9
    vocab_size = 20
    regular_ids = np.setdiff1d(np.arange(20), special_ids).astype(np.int32)


@pytest.fixture(autouse=True)
def global_seed():
    # TensorFlow's default global seed, whatever other tests did.
    tf.random.set_seed(87654321)


def examples(rows):
    """A dataset of token rows, each with an aligned feature and an unrelated one."""

    def generate():
        for number, row in enumerate(rows):
            types = np.arange(len(row)) % 2
            yield {
                "encoder_original_tokens": np.asarray(row, np.int32),
                "encoder_token_types": types.astype(np.int32),
                "document": np.int64(number),
            }

    return tf.data.Dataset.from_generator(
        generate,
        output_signature={
            "encoder_original_tokens": tf.TensorSpec([None], tf.int32),
            "encoder_token_types": tf.TensorSpec([None], tf.int32),
            "document": tf.TensorSpec([], tf.int64),
        },
    )


def masked(rows, seed=0, **kwargs):
    with seqio.map_seed_manager(seed):
        return masked_language_model(examples(rows), vocabulary=FakeVocabulary(), **kwargs)


def text_rows(count, length):
    """Rows [CLS] text [SEP] text [SEP]."""
    rows = np.random.default_rng(0).integers(5, 30, (count, length))
    rows[:, 0], rows[:, length // 2], rows[:, -1] = CLS, SEP, SEP
    return rows


def inputs_of(dataset):
    return [row["encoder_input_tokens"].tolist() for row in dataset.as_numpy_iterator()]


def assert_binomial(successes, trials, probability):
    low, high = stats.binom.interval(CONFIDENCE, trials, probability)
    assert low <= successes <= high, (successes / trials, probability)


def test_docstring_example():
    original = [2, 11, 12, 13, 14, 15, 16, 3]
    (row,) = masked([original], seed=50, mask_rate=0.5).as_numpy_iterator()
    assert row["encoder_original_tokens"].tolist() == original
    assert row["encoder_input_tokens"].tolist() == [2, 19, 12, 4, 14, 15, 16, 3]
    assert row["encoder_loss_weights"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0]


def test_features_stay_aligned_and_others_pass_through():
    rows = [[], [CLS], [CLS, SEP], [CLS, 9, SEP], list(range(5, 20))]
    for before, after in zip(examples(rows), masked(rows, mask_rate=0.5), strict=True):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
        for name in ("encoder_input_tokens", "encoder_loss_weights"):
            assert after[name].dtype == tf.int32
            assert after[name].shape == before["encoder_original_tokens"].shape


def test_short_rows_of_special_tokens_are_left_alone():
    rows = [[], [CLS], [CLS, SEP], [CLS, SEP, SEP]]
    dataset = masked(rows, mask_rate=1.0)
    assert inputs_of(dataset) == rows
    assert all(not row["encoder_loss_weights"].numpy().any() for row in dataset)


def test_same_seed_same_masks_and_other_seeds_other_masks():
    rows = text_rows(20, 40)
    first = inputs_of(masked(rows, seed=5))
    assert inputs_of(masked(rows, seed=5)) == first
    assert inputs_of(masked(rows, seed=7)) != first


def test_equal_rows_are_masked_differently():
    rows = inputs_of(masked([text_rows(1, 64)[0]] * 8))
    assert len({tuple(row) for row in rows}) == 8


@pytest.mark.parametrize("rate", [0.15, 0.6, 1.0])
def test_rate_and_fates(rate):
    tokens = np.random.default_rng(1).integers(5, 30, 400_000).astype(np.int32)
    inputs, weights = mask_tokens(tokens, [1, 2], FakeVocabulary(), rate=rate)
    inputs, selected = inputs.numpy(), weights.numpy() == 1
    assert_binomial(selected.sum(), tokens.size, rate)
    np.testing.assert_array_equal(inputs[~selected], tokens[~selected])
    chosen, original = inputs[selected], tokens[selected]
    assert_binomial((chosen == MASK).sum(), chosen.size, 0.8)
    # A random token equals the original with probability 1 / 25, and then looks like a kept one.
    assert_binomial((chosen == original).sum(), chosen.size, 0.1 + 0.1 / 25)
    assert_binomial(((chosen != MASK) & (chosen != original)).sum(), chosen.size, 0.1 * 24 / 25)


def test_every_position_is_selected_alike_and_independently():
    length, runs = 6, 20_000
    seeds = tf.data.Dataset.range(runs)
    tokens = tf.fill([length], 10)

    def select(seed):
        return mask_tokens(tokens, [seed, seed], FakeVocabulary(), rate=0.15)[1]

    batches = seeds.map(select, num_parallel_calls=2).batch(runs)
    selected = next(iter(batches)).numpy()
    for position in range(length):
        assert_binomial(selected[:, position].sum(), runs, 0.15)
        both = selected[:, position] * selected[:, position - 1]
        assert_binomial(both.sum(), runs, 0.15**2)


def test_random_tokens_are_uniform_over_the_regular_ids():
    vocabulary = ScatteredVocabulary()
    tokens = np.full(300_000, 5, np.int32)
    inputs, _ = mask_tokens(tokens, [3, 4], vocabulary, rate=1.0)
    drawn = inputs.numpy()[inputs.numpy() != vocabulary.mask_id]
    assert set(drawn) == set(vocabulary.regular_ids)
    others = vocabulary.regular_ids[vocabulary.regular_ids != 5]  # id 5 holds the kept tokens too
    counts = [(drawn == token).sum() for token in others]
    assert stats.chisquare(counts).pvalue > 1e-4


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.lists(st.integers(0, 19), max_size=40),
    seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
    rate=st.sampled_from([0.15, 0.5, 1.0]),
)
def test_special_tokens_are_never_masked_nor_drawn(tokens, seed, rate):
    vocabulary = ScatteredVocabulary()
    tokens = np.asarray(tokens, np.int32)
    inputs, weights = (t.numpy() for t in mask_tokens(tokens, seed, vocabulary, rate=rate))
    special = np.isin(tokens, vocabulary.special_ids)
    np.testing.assert_array_equal(inputs[special], tokens[special])
    assert not weights[special].any()
    assert set(inputs[~special]) <= {*vocabulary.regular_ids, vocabulary.mask_id}
    assert set(weights) <= {0, 1}
    np.testing.assert_array_equal(inputs[weights == 0], tokens[weights == 0])
    if rate == 1.0:
        assert weights[~special].all()


def test_is_special():
    found = is_special(tf.range(20), ScatteredVocabulary()).numpy()
    assert np.flatnonzero(found).tolist() == [0, 7, 8, 9, 19]


def test_a_token_outside_the_vocabulary_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError):
        mask_tokens([30], [0, 0], FakeVocabulary(), rate=0.15)


def ragged_batch(lengths, seed=0):
    """Text of these lengths, each between [CLS] and [SEP], as one batch [b, None]."""
    rng = np.random.default_rng(seed)
    return tf.ragged.stack([[CLS, *rng.integers(5, 30, n).tolist(), SEP] for n in lengths])


def test_a_batch_is_masked_as_examples_are():
    lengths = np.random.default_rng(1).integers(0, 60, 3000)
    batch = tf.cast(ragged_batch(lengths), tf.int32)
    numbers = tf.range(len(lengths))
    dataset = tf.data.Dataset.from_tensors({"encoder_original_tokens": batch, "document": numbers})
    with seqio.map_seed_manager(4):
        dataset = masked_language_model(dataset, vocabulary=FakeVocabulary())
    (after,) = dataset
    original = after["encoder_original_tokens"]
    assert original.to_list() == batch.to_list()
    np.testing.assert_array_equal(after["document"], numbers)
    for name in ("encoder_input_tokens", "encoder_loss_weights"):
        assert after[name].dtype == tf.int32
        np.testing.assert_array_equal(after[name].row_splits, batch.row_splits)
    before = batch.flat_values.numpy()
    inputs = after["encoder_input_tokens"].flat_values.numpy()
    selected = after["encoder_loss_weights"].flat_values.numpy() == 1
    special = before < 5
    assert not selected[special].any()
    np.testing.assert_array_equal(inputs[~selected], before[~selected])
    assert_binomial(selected.sum(), (~special).sum(), 0.15)
    assert_binomial((inputs[selected] == MASK).sum(), selected.sum(), 0.8)
    # Independent of a token's position in its example, and of the example's position in the batch.
    starts = batch.row_splits.numpy()[:-1][lengths > 0]
    for first in (starts + 1, starts[:1000] + 1, starts + lengths[lengths > 0]):
        assert_binomial(selected[first].sum(), first.size, 0.15)


def test_rate_zero_masks_nothing():
    rows = text_rows(20, 40)
    assert inputs_of(masked(rows, mask_rate=0.0)) == rows.tolist()


@pytest.mark.parametrize("rate", [-0.1, 1.1, 15, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(PlugError, match="mask_rate"):
        masked([[CLS]], mask_rate=rate)


def test_iterator_resumes_exactly_from_a_checkpoint(tmp_path):
    rows = text_rows(30, 40)
    with seqio.map_seed_manager(3):
        dataset = tf.data.Dataset.from_tensor_slices(
            {"encoder_original_tokens": rows.astype(np.int32)}
        )
        dataset = masked_language_model(dataset.shuffle(10), vocabulary=FakeVocabulary())
    iterator = iter(dataset)
    for _ in range(11):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    expected = [row["encoder_input_tokens"].numpy().tolist() for row in iterator]
    restored = iter(dataset)
    tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
    assert [row["encoder_input_tokens"].numpy().tolist() for row in restored] == expected
    assert len(expected) == 19
