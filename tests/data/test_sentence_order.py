"""Sentence pairs are what their labels say, and the corpus ends up in them."""

import collections

import numpy as np
import pytest
import scipy.stats
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.sentence_order import (
    draw_labels,
    group_sentences,
    sentence_pairs,
    trim_pair,
)
from plug_jax.errors import PlugError

TOKENS = "encoder_original_tokens"


class CharacterVocabulary:
    cls_id, sep_id, offset = 2, 3, 5

    def encode_tf(self, texts):
        return tf.strings.unicode_decode(texts, "UTF-8") + self.offset

    def text(self, ids):
        special = {self.cls_id: "[", self.sep_id: "]"}
        return "".join(special.get(i) or chr(i - self.offset) for i in ids.tolist())


VOCABULARY = CharacterVocabulary()


class Corpus:
    """Documents in which every character but the stops occurs once: a token tells its place."""

    def __init__(self, sentence_lengths):
        """`sentence_lengths`: for each document, its sentences' lengths, stops included."""
        letters = (chr(code) for code in range(0x20000, 0x110000))
        self.documents = [
            "".join("".join(next(letters) for _ in range(n - 1)) + "。" for n in lengths)
            for lengths in sentence_lengths
        ]
        self.place = {
            char: (document, position)
            for document, text in enumerate(self.documents)
            for position, char in enumerate(text)
            if char != "。"
        }

    def locate(self, segment):
        """(document, begin, end) of a segment, which is checked to be of consecutive text."""
        document, begin = self.place[segment[0]]
        assert self.documents[document].startswith(segment, begin)
        return document, begin, begin + len(segment)


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()
    yield
    reset_counts()


def pairs_dataset(documents, seed=0, sequence_length=None, **kwargs):
    with seqio.utils.map_seed_manager(seed):
        return sentence_pairs(
            tf.data.Dataset.from_tensor_slices({"text": documents}),
            sequence_length,
            vocabulary=VOCABULARY,
            **kwargs,
        )


def make_pairs(documents, seed=0, sequence_length=None, **kwargs):
    return list(pairs_dataset(documents, seed, sequence_length, **kwargs).as_numpy_iterator())


def segments_of(example, max_length):
    """A, B and the label, after a check of all that goes without saying."""
    text, label = VOCABULARY.text(example[TOKENS]), int(example["sentence_labels"][0])
    assert len(text) <= max_length
    assert text[0] == "[" and text[-1] == "]" and text.count("[") == 1
    a, b = text[1:-1].split("]")
    assert a and b
    for name, expected in {
        "encoder_token_types": [0] * (len(a) + 2) + [1] * (len(b) + 1),
        "sentence_labels": [label] + [0] * (len(text) - 1),
        "sentence_weights": [1] + [0] * (len(text) - 1),
    }.items():
        np.testing.assert_array_equal(example[name], expected)
    assert all(values.dtype == np.int32 for values in example.values())
    return a, b, label


def check(corpus, examples, max_length):
    """Checks that each pair is what its label says; returns the labels."""
    labels = []
    for example in examples:
        a, b, label = segments_of(example, max_length)
        (a_document, a_begin, a_end), (b_document, b_begin, b_end) = map(corpus.locate, (a, b))
        assert (a_document == b_document) == (label != 0)
        assert label != 1 or a_end == b_begin
        assert label != 2 or b_end == a_begin
        labels.append(label)
    return labels


def count_letters(corpus, examples):
    counts = collections.Counter("".join(VOCABULARY.text(e[TOKENS]) for e in examples))
    return collections.Counter({char: counts[char] for char in corpus.place})


def random_corpus(num_documents, sentences, length, seed=0):
    rng = np.random.default_rng(seed)
    return Corpus(
        [rng.integers(*length, rng.integers(*sentences)).tolist() for _ in range(num_documents)]
    )


def test_docstring_example():
    # A window takes both documents, again and again; what comes out of one is one of these.
    outcomes = {
        ("[天亮。]我走。]", "[下雨。]天亮。]"): 0,
        ("[下雨。]我走。]",): 1,
        ("[我走。]下雨。]",): 2,
    }
    examples = make_pairs(["天亮。", "下雨。我走。"] * 40, window=2)
    seen = collections.Counter()
    while examples:
        (outcome,) = (
            texts
            for texts in outcomes
            if tuple(VOCABULARY.text(e[TOKENS]) for e in examples[: len(texts)]) == texts
        )
        for example in examples[: len(outcome)]:
            np.testing.assert_array_equal(
                example["encoder_token_types"], [0, 0, 0, 0, 0, 1, 1, 1, 1]
            )
            *_, label = segments_of(example, 512)
            assert label == outcomes[outcome]
        seen[label] += 1
        del examples[: len(outcome)]
    assert seen.total() == 40 and set(seen) == {0, 1, 2}
    assert drop_counts() == {"no_other_document": 40 - seen[0]}


@pytest.mark.parametrize(
    ("max_length", "window", "length"),
    [(512, 128, (2, 60)), (64, 7, (2, 90)), (9, 3, (2, 9))],
)
def test_labels_hold_and_nothing_is_lost(max_length, window, length):
    corpus = random_corpus(60, (2, 40), length)
    examples = make_pairs(corpus.documents, max_length=max_length, window=window)
    assert set(check(corpus, examples, max_length)) == {0, 1, 2}
    counts = count_letters(corpus, examples)
    lost = sum(count == 0 for count in counts.values())
    drops = collections.Counter(drop_counts())
    assert lost <= drops["truncated_tokens"] + drops["no_other_document"] * max_length // 2
    # Only groups of one sentence are used twice, and they can only come last in a document.
    assert sum(count == 2 for count in counts.values()) <= 60 * max_length // 2
    assert max(counts.values()) <= 2
    assert drops["no_other_document"] <= (0 if window == 128 else 60)


def test_every_token_is_used_exactly_once_or_counted():
    corpus = Corpus([[15, 3, 14, 15], [3, 15, 15, 9], [12, 13, 14, 15]] * 40)
    examples = make_pairs(corpus.documents, max_length=60)  # a group is a document
    check(corpus, examples, 60)
    assert max(count_letters(corpus, examples).values()) == 1
    missing = sum(map(len, corpus.documents)) - sum(len(e[TOKENS]) - 3 for e in examples)
    assert missing > 0
    assert drop_counts() == {"truncated_tokens": missing}


@pytest.mark.parametrize(
    ("num_documents", "sentences"), [(2500, (2, 5)), (20, (600, 601))], ids=["news", "novels"]
)
def test_labels_are_equally_likely(num_documents, sentences):
    corpus = random_corpus(num_documents, sentences, (3, 9))
    examples = make_pairs(corpus.documents, max_length=33)
    labels = check(corpus, examples, 33)
    counts = np.bincount(labels, minlength=3)
    assert len(labels) >= 2000
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert set(drop_counts()) <= {"truncated_tokens"}


def test_single_sentences_pair_up_across_documents():
    corpus = random_corpus(50, (1, 2), (5, 9))
    examples = make_pairs(corpus.documents, window=16)
    assert set(check(corpus, examples, 512)) == {0}
    pairs = [segments_of(example, 512)[:2] for example in examples]
    firsts, seconds = zip(*pairs, strict=True)
    assert sorted(firsts) == sorted(seconds) == sorted(corpus.documents)


def test_a_lone_document_keeps_its_own_text():
    corpus = Corpus([[5] * 4001])  # the last group has one sentence
    examples = make_pairs(corpus.documents, max_length=13)
    labels = check(corpus, examples, 13)
    assert scipy.stats.binomtest(labels.count(1), len(labels)).pvalue > 1e-3
    assert set(labels) == {1, 2} and len(labels) == 2000
    assert drop_counts() == {"no_other_document": 1}


def test_long_lines_without_a_stop():
    lengths = [[200_000], [30, 700, 30], [100_000, 5]]
    corpus = Corpus(lengths)
    examples = make_pairs(corpus.documents)
    labels = check(corpus, examples, 512)
    assert np.bincount(labels).min() > 100
    counts = count_letters(corpus, examples).values()  # 2: a last group of one piece, used twice
    assert min(counts) == 1 and sum(counts) <= len(counts) + 2 * 254
    assert max(map(len, (e[TOKENS] for e in examples))) > 500


def test_documents_without_text_are_counted():
    corpus = random_corpus(4, (2, 3), (4, 6))
    first, *others = corpus.documents
    examples = make_pairs([first, "", *others, ""])
    assert len(check(corpus, examples, 512)) == 4
    assert drop_counts() == {"empty_document": 2}
    assert make_pairs(["", ""]) == []


@pytest.mark.parametrize("row_length", [40, 2000])
def test_the_row_length_bounds_examples(row_length):
    corpus = random_corpus(30, (20, 40), (2, 9))
    lengths = {"encoder_input_tokens": row_length}
    examples = make_pairs(corpus.documents, 0, lengths, max_length=100)
    check(corpus, examples, min(100, row_length))
    assert max(len(example[TOKENS]) for example in examples) == min(100, row_length)


def test_bad_options():
    for options in ({"max_length": 4}, {"sequence_length": {"encoder_input_tokens": 4}}):
        with pytest.raises(PlugError, match="no room"):
            make_pairs(["一。"], **options)
    with pytest.raises(PlugError, match="window"):
        make_pairs(["一。"], window=1)


def test_the_seed_decides_everything():
    corpus = random_corpus(80, (1, 20), (2, 30))

    def texts(seed):
        examples = make_pairs(corpus.documents, seed, max_length=64, window=32)
        return [VOCABULARY.text(e[TOKENS]) + str(e["sentence_labels"][0]) for e in examples]

    first = texts(1)
    assert texts(1) == first
    assert sum(one == two for one, two in zip(first, texts(2), strict=False)) < len(first) / 4


def test_iterators_restore_exactly(tmp_path):
    corpus = random_corpus(60, (1, 60), (2, 30))
    dataset = pairs_dataset(corpus.documents, max_length=64, window=16)
    iterator = iter(dataset)
    for _ in range(101):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    rest = list(iterator)
    other = iter(pairs_dataset(corpus.documents, max_length=64, window=16))
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    restored = list(other)
    assert len(rest) == len(restored) > 300
    for one, two in zip(rest, restored, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


# The parts.


def bert_trim(a, b, budget):
    while a + b > budget:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


def test_trimming_is_berts_rule():
    a, b, budget = (grid.ravel() for grid in np.mgrid[1:15, 1:15, 2:14])
    for limit in range(2, 14):
        here = budget == limit
        trimmed = trim_pair(tf.constant(a[here]), tf.constant(b[here]), limit)
        expected = [bert_trim(x, y, limit) for x, y in zip(a[here], b[here], strict=True)]
        np.testing.assert_array_equal(np.stack(trimmed, axis=1), expected)


def group_greedily(lengths, budget):
    """Groups of sentence lengths, one sentence after the other."""
    pieces = []
    for length in lengths:
        count = -(-length // (budget // 2))
        pieces += [length // count + (i < length % count) for i in range(count)]
    groups = []
    for piece in pieces:
        if groups and sum(groups[-1]) + piece <= budget:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    if len(groups) > 1 and len(groups[-1]) == 1 and len(groups[-2]) > 2:
        groups[-1].insert(0, groups[-2].pop())
    return groups


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(2, 60), st.integers(0, 1000))
def test_groups_are_filled_in_order(lengths, budget, seed):
    tokens = tf.range(sum(lengths))
    sentences = tf.RaggedTensor.from_row_lengths(tokens, tf.constant(lengths, tf.int64))
    groups, a_lengths = group_sentences(sentences, tf.constant([seed, 0]), budget=budget)
    expected = group_greedily(lengths, budget)
    np.testing.assert_array_equal(groups.row_lengths(), [sum(group) for group in expected])
    np.testing.assert_array_equal(groups.flat_values, tokens)
    for group, a_length in zip(expected, a_lengths.numpy(), strict=True):
        assert a_length in np.cumsum(group[:-1] if len(group) > 1 else group)


def test_all_sentence_borders_are_equally_likely():
    sentences = tf.RaggedTensor.from_row_lengths(tf.zeros([30_000]), [2] * 15_000)
    groups, a_lengths = group_sentences(sentences, tf.constant([1, 2]), budget=10)
    assert groups.nrows() == 3000
    counts = np.bincount(a_lengths, minlength=11)[[2, 4, 6, 8]]
    assert counts.sum() == 3000 and scipy.stats.chisquare(counts).pvalue > 1e-3


WINDOWS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40)


def label_window(documents, has_b, seed):
    seeds = [tf.constant([seed, i]) for i in range(3)]
    drawn = draw_labels(tf.constant(documents, tf.int64), tf.constant(has_b), seeds)
    return [tensor.numpy() for tensor in drawn]


@settings(deadline=None, max_examples=100)
@given(WINDOWS, st.integers(0, 1000))
def test_partners_are_exchanged_between_documents(window, seed):
    documents, has_b = (np.array(column) for column in zip(*window, strict=True))
    labels, partners = label_window(documents, has_b, seed)
    receivers = np.flatnonzero(labels == 0)
    assert sorted(partners[receivers]) == receivers.tolist()
    assert not np.any(documents[partners[receivers]] == documents[receivers])
    assert np.all(has_b[labels != 0] | (labels[labels != 0] == -1))
    assert not np.any(has_b[labels == -1])
    # Who is left over is of one document, and none of its groups with a B was preferred.
    left = np.unique(documents[labels == -1])
    assert left.size <= 1
    assert not np.any(has_b[(labels == 0) & np.isin(documents, left)])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 1000))
def test_as_many_partners_as_possible(documents, seed):
    labels, _ = label_window(documents, [False] * len(documents), seed)
    total, largest = len(documents), np.bincount(documents).max()
    assert np.count_nonzero(labels == 0) == min(total, 2 * (total - largest))
    assert set(labels) <= {0, -1}


def test_documents_meet_at_random():
    """No document always gets its partner from the same other document."""
    met = {label_window([0, 1, 2, 3], [False] * 4, seed)[1][0] for seed in range(40)}
    assert met == {1, 2, 3}
