"""Windows have the promised lengths and hold the document's text, in order."""

import collections

import numpy as np
import pytest
import scipy.stats
import seqio
import tensorflow as tf

from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.preprocessors.documents import (
    batch_documents,
    tokenize_documents,
    unbatch_examples,
)
from plug_jax.data.preprocessors.lengths import WindowSampler, sample_lengths
from plug_jax.errors import PlugError

CLS, SEP = 2, 3
SPECIALS = np.array([2, 1])  # with these encoder and decoder lengths
ENCODER, INPUTS, TARGETS = (
    "encoder_original_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
)
FEATURES = (ENCODER, "encoder_token_types", INPUTS, TARGETS, "decoder_loss_weights")


class CharacterVocabulary:
    cls_id, sep_id, offset = CLS, SEP, 5

    def encode_tf(self, texts):
        return tf.strings.unicode_decode(texts, "UTF-8") + self.offset


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()
    yield
    reset_counts()


def windows_dataset(documents, seed=0, sequence_length=None, **kwargs):
    texts = tf.data.Dataset.from_tensor_slices({"text": documents})
    blocks = tokenize_documents(batch_documents(texts), vocabulary=CharacterVocabulary())
    with seqio.utils.map_seed_manager(seed):
        batches = sample_lengths(
            blocks, sequence_length, vocabulary=CharacterVocabulary(), **kwargs
        )
    ragged = tf.RaggedTensorSpec([None, None], tf.int32)
    assert batches.element_spec == dict.fromkeys(FEATURES, ragged)
    return unbatch_examples(batches, features=FEATURES)


def make_windows(documents, seed=0, sequence_length=None, **kwargs):
    return list(windows_dataset(documents, seed, sequence_length, **kwargs).as_numpy_iterator())


def ids(text):
    return [ord(char) + CharacterVocabulary.offset for char in text]


def document(length, number=0):
    """A text of 30,000 consecutive characters, starting at another one for each number."""
    return "".join(chr(0x20000 + (977 * number + i) % 30_000) for i in range(length))


def check_features(window):
    """Check invariants of every window; returns its text tokens, encoder's and decoder's."""
    encoder, inputs, targets = (window[name].tolist() for name in (ENCODER, INPUTS, TARGETS))
    assert encoder[0] == inputs[0] == CLS and encoder[-1] == SEP
    assert targets[:-1] == inputs[1:]
    np.testing.assert_array_equal(window["encoder_token_types"], np.zeros(len(encoder)))
    np.testing.assert_array_equal(window["decoder_loss_weights"], np.ones(len(targets)))
    assert all(values.dtype == np.int32 for values in window.values()) and len(window) == 5
    return encoder[1:-1], inputs[1:]


def lengths_of(windows):
    return np.array([(len(window[ENCODER]), len(window[INPUTS])) for window in windows])


def used_text(windows):
    return [token for window in windows for part in check_features(window) for token in part]


def sampler(minimum=32, maximum=512, **kwargs):
    return WindowSampler(minimum, maximum, maximum, **kwargs)


def drawing(sampler):
    """Of documents (int64 [d]) and their sentences' ends, (document, e, d) of each window.

    e and d count special tokens. Checks that the windows of a document follow each other.
    """
    draw = tf.function(
        sampler.draw,
        input_signature=[
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([2, 2], tf.int32),
        ],
    )

    def windows(documents, seed, sentence_ends=()):
        seeds = tf.constant([[seed, 0], [seed, 1]])
        starts, lengths = draw(
            tf.constant(documents, tf.int64), tf.constant(sentence_ends, tf.int64), seeds
        )
        starts, lengths = starts.numpy(), lengths.numpy()
        document = np.searchsorted(np.cumsum(documents), starts, side="right")
        begins = np.cumsum([0, *documents[:-1]])[document]
        followers = np.flatnonzero(np.diff(document) == 0) + 1
        before = np.zeros_like(starts)
        before[followers] = (starts + lengths.sum(1) - begins)[followers - 1]
        np.testing.assert_array_equal(starts - begins, before)
        assert np.all(np.diff(document) >= 0)
        return np.concatenate([document[:, np.newaxis], lengths + SPECIALS], axis=1)

    return windows


def test_docstring_example():
    (window,) = make_windows(["天亮了下雨我走了"], min_length=4, max_length=4)
    expected = {
        ENCODER: [CLS, *ids("天亮"), SEP],
        "encoder_token_types": [0, 0, 0, 0],
        INPUTS: [CLS, *ids("了下雨")],
        TARGETS: [*ids("了下雨"), SEP],
        "decoder_loss_weights": [1, 1, 1, 1],
    }
    assert {name: values.tolist() for name, values in window.items()} == expected
    assert drop_counts() == {"tail_too_short": 1, "tail_tokens": 3}


# Random draws.


@pytest.fixture(scope="module")
def free_lengths():
    """The lengths drawn where the longest window would have fitted."""
    num_tokens = 8_000_000
    lengths = drawing(sampler())([num_tokens], 0)[:, 1:]
    ends = np.cumsum(lengths.sum(1) - 3)
    return lengths[np.concatenate([[0], ends[:-1]]) <= num_tokens - 510 - 511]


def test_long_documents_have_uniform_lengths(free_lengths):
    assert free_lengths.min() == 32 and free_lengths.max() == 512 and len(free_lengths) > 14_000
    for column in free_lengths.T:
        counts = np.bincount(column - 32, minlength=481)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_two_lengths_are_independent(free_lengths):
    bins = (free_lengths - 32) // 49  # ten bins
    table = np.zeros([10, 10])
    np.add.at(table, tuple(bins.T), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
    # The same holds for consecutive windows.
    table = np.zeros([10, 10])
    np.add.at(table, (bins[:-1, 1], bins[1:, 0]), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def feasible(remaining, minimum, max_encoder, max_decoder):
    return [
        (e - 2, d - 1)
        for e in range(minimum, max_encoder + 1)
        for d in range(minimum, max_decoder + 1)
        if e - 2 + d - 1 <= remaining
    ]


@pytest.mark.parametrize(
    ("minimum", "max_encoder", "max_decoder"), [(3, 6, 6), (4, 9, 5), (3, 3, 8)]
)
def test_every_pair_that_fits_is_equally_likely(minimum, max_encoder, max_decoder):
    remaining, points, expected = [], [], []  # of all documents of a block
    for left in range(2 * minimum - 3, max_encoder + max_decoder):
        pairs = feasible(left, minimum, max_encoder, max_decoder)
        for where in (0.0, 0.5, 1 - 1e-9):  # a share 1 / len(pairs) of all points for each pair
            remaining += [left] * len(pairs)
            points += [(number + where) / len(pairs) + 1e-12 for number in range(len(pairs))]
            expected += pairs
    pick = WindowSampler(minimum, max_encoder, max_decoder).pick
    picked = pick(tf.constant(remaining, tf.int64), tf.constant(points, tf.float64))
    assert np.stack(picked, axis=1).tolist() == [list(pair) for pair in expected]


def test_short_documents_draw_uniformly():
    pairs = feasible(9, 4, 8, 8)
    documents = [document(9, number) for number in range(3000)]
    counts = collections.Counter()
    for window in make_windows(documents, min_length=4, max_length=8):
        encoder, decoder = check_features(window)
        counts[len(encoder), len(decoder)] += 1
    assert set(counts) == set(pairs) and counts.total() == 3000
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_every_short_length_fits():
    documents = np.array([1, 59, 60, *range(61, 1022, 7), 1020, 1021])
    windows = drawing(sampler())(documents, 0)
    assert windows[:, 1:].min() >= 32 and windows[:, 1:].max() <= 512
    left = documents.copy()
    np.subtract.at(left, windows[:, 0], (windows[:, 1:] - SPECIALS).sum(1))
    assert np.all((left >= 0) & (left < 61))
    np.testing.assert_array_equal(np.bincount(windows[:, 0], minlength=3) == 0, documents < 61)


def test_documents_of_a_block_draw_on_their_own():
    """The first windows of two documents, and the first and second of one, are independent."""
    draw = drawing(sampler(32, 80))
    windows = [draw([1000, 1000], seed) for seed in range(400)]
    firsts = [[rows[rows[:, 0] == number][0, 1] for number in (0, 1)] for rows in windows]
    follow = [rows[rows[:, 0] == 0][:2, 1] for rows in windows]
    for pairs in (firsts, follow):
        table = np.zeros([2, 2])
        for one, two in pairs:
            table[int(one > 56), int(two > 56)] += 1
        assert table.min() > 50 and scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("documents", [[], [60], [3, 60, 1]])
def test_blocks_without_a_window(documents):
    assert drawing(sampler())(documents, 0).shape == (0, 3)


# Windows.


def test_windows_follow_each_other():
    texts = [document(length, number) for number, length in enumerate([5000, 61, 60, 1021, 0, 300])]
    windows = make_windows(texts)
    assert np.all((lengths_of(windows) >= 32) & (lengths_of(windows) <= 512))
    assert all(window[TARGETS][-1] == SEP for window in windows)
    used = used_text(windows)
    tail_tokens = 0
    for text in texts:  # in order; everything except a short tail
        tokens = ids(text)
        rest = next(n for n in range(len(tokens), -1, -1) if used[:n] == tokens[:n])
        assert rest >= 61 if len(text) >= 61 else rest == 0
        tail_tokens += len(text) - rest if rest else 0
        assert len(text) - rest < 61
        used = used[rest:]
    assert used == []
    assert drop_counts()["document_too_short"] == drop_counts()["empty_document"] == 1
    assert drop_counts()["tail_tokens"] == tail_tokens


def test_blocks_without_a_window_are_counted():
    texts = [document(60)] * 16 + [""] * 16 + [document(61)]
    assert len(make_windows(texts)) == 1
    assert drop_counts() == {"empty_document": 16, "document_too_short": 16}


def test_tokens_add_up():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 700, 300)
    windows = make_windows([document(length) for length in lengths])
    short = lengths[lengths < 61]
    drops = drop_counts()
    empty = np.count_nonzero(lengths == 0)
    assert drops.get("empty_document", 0) == empty
    assert drops["document_too_short"] == len(short) - empty > 0
    assert len(used_text(windows)) + drops["tail_tokens"] + short.sum() == lengths.sum()
    assert 0 < drops["tail_too_short"] <= 300 - len(short)
    assert drops["tail_tokens"] <= 60 * drops["tail_too_short"]


def test_a_document_of_megabytes():
    text = document(30_000) * 55
    windows = make_windows([text])
    used = used_text(windows)
    assert used == ids(text)[: len(used)] and len(text) - len(used) < 61
    assert abs(lengths_of(windows).mean() - 272) < 10


def test_row_lengths_bound_each_side():
    row_lengths = {"encoder_input_tokens": 40, "decoder_target_tokens": 50}
    lengths = lengths_of(make_windows([document(20_000)], 0, row_lengths))
    assert lengths.max(0).tolist() == [40, 50] and lengths.min(0).tolist() == [32, 32]


def test_closing_at_the_end_of_the_document_only():
    texts = [document(n % 90 + 5, n) for n in range(200)]
    options = {"min_length": 4, "max_length": 30, "close_at_document_end_only": True}
    windows = make_windows(texts, **options)
    closed = 0
    for text in texts:
        tokens = ids(text)
        position = 0
        while len(tokens) - position >= 5:
            window = windows.pop(0)
            encoder, decoder = check_features(window)
            position += len(encoder) + len(decoder)
            assert tokens[position - len(decoder) : position] == decoder
            assert window[TARGETS][-1] == (tokens[position] if position < len(tokens) else SEP)
            closed += position == len(tokens)
    assert windows == [] and 20 < closed < 200


def test_windows_end_with_sentences_where_they_can():
    text = (document(9) + "。") * 2000
    windows = make_windows([text], max_length=100, sentence_end_probability=1.0)
    assert ids(text)[: len(used_text(windows))] == used_text(windows)
    ended, begin = 0, 0
    for encoder, decoder in map(check_features, windows):
        for part, least in ((encoder, 30), (decoder, 31)):
            end = begin + len(part)
            assert end % 10 == 0 or end // 10 * 10 < begin + least
            ended += end % 10 == 0
            begin = end
    assert ended > len(windows) > 60


def test_a_sentence_end_cuts_back_what_was_drawn():
    # The second of two documents: no ends of the first are included.
    ends = 500 + np.cumsum(np.tile([3, 50, 9, 31, 200], 40))
    documents, all_ends = [500, ends[-1] - 500], [200, 500, *ends]
    free, always, half = (
        drawing(sampler(sentence_end_probability=share)) for share in (0.0, 1.0, 0.5)
    )
    movable, moved = 0, 0
    for seed in range(60):
        drawn_texts = [draw(documents, seed, all_ends) for draw in (free, always, half)]
        texts = [rows[rows[:, 0] == 1][0, 1:] - SPECIALS for rows in drawn_texts]
        expected, begin = [], 500
        for drawn, least in zip(texts[0], (30, 31), strict=True):
            fitting = [end - begin for end in ends if least <= end - begin <= drawn]
            expected.append(max(fitting, default=drawn))
            begin += expected[-1]
        assert texts[1].tolist() == expected
        encoders = [encoder for encoder, _ in texts]
        assert encoders[2] in encoders[:2]
        if encoders[0] != encoders[1]:
            movable += 1
            moved += encoders[2] == encoders[1]
    assert movable > 30
    assert scipy.stats.binomtest(moved, movable).pvalue > 1e-3


def test_sentence_ends_are_chosen_whatever_was_drawn():
    ends = np.arange(40, 5001, 40)
    kept, cut = (drawing(sampler(sentence_end_probability=share)) for share in (0.0, 0.5))
    table = np.zeros([2, 2])
    for seed in range(300):
        drawn = kept([5000], seed)[0, 1]
        moved = cut([5000], seed, ends)[0, 1] != drawn
        table[int(drawn > 272), int(moved)] += 1
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_bad_options():
    for options, message in [
        ({"min_length": 2}, "at least 3"),
        ({"min_length": 20, "max_length": 19}, "do not fit"),
        ({"sequence_length": {"encoder_input_tokens": 31}}, "31 for the encoder"),
        ({"sequence_length": {"decoder_target_tokens": 31}}, "31 for the decoder"),
        ({"sentence_end_probability": 1.5}, "probability"),
    ]:
        with pytest.raises(PlugError, match=message):
            make_windows(["一"], **options)


def test_the_seed_decides_everything():
    texts = [document(3000, number) for number in range(10)]
    first = make_windows(texts, seed=1)
    again, other = make_windows(texts, seed=1), make_windows(texts, seed=2)
    assert len(first) == len(again)
    for one, two in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert lengths_of(first[:9]).tolist() != lengths_of(other[:9]).tolist()
    # Documents and passes are drawn independently.
    assert lengths_of(make_windows(texts[:1] * 2)[:3]).tolist() != lengths_of(first[:3]).tolist()


def test_iterators_restore_exactly(tmp_path):
    texts = [document(2000, number) for number in range(30)]
    iterator = iter(windows_dataset(texts, sentence_end_probability=0.5))
    for _ in range(25):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    rest = list(iterator)
    other = iter(windows_dataset(texts, sentence_end_probability=0.5))
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    restored = list(other)
    assert len(rest) == len(restored) > 60
    for one, two in zip(rest, restored, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
