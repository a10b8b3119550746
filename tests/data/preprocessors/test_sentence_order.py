"""Sentence pairs match their labels, and the whole corpus ends up in them."""

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
from plug_jax.data.preprocessors.sentence_order import sentence_pairs
from plug_jax.errors import PlugError

TOKENS = "encoder_original_tokens"
FEATURES = (TOKENS, "encoder_token_types", "sentence_labels", "sentence_weights")


class CharacterVocabulary:
    cls_id, sep_id, offset = 2, 3, 5

    def encode_tf(self, texts):
        return tf.strings.unicode_decode(texts, "UTF-8") + self.offset

    def text(self, ids):
        special = {self.cls_id: "[", self.sep_id: "]"}
        return "".join(special.get(i) or chr(i - self.offset) for i in ids.tolist())


VOCABULARY = CharacterVocabulary()


class Corpus:
    """Documents in which every character except stops is unique: a token gives its position."""

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
        """(document, begin, end) of a segment, checked to be consecutive text."""
        stops = len(segment) - len(segment.lstrip("。"))  # a group may begin with a stop
        document, begin = self.place[segment[stops]]
        begin -= stops
        assert begin >= 0 and self.documents[document].startswith(segment, begin)
        return document, begin, begin + len(segment)


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()
    yield
    reset_counts()


def pairs_dataset(documents, seed=0, sequence_length=None, **kwargs):
    texts = tf.data.Dataset.from_tensor_slices({"text": documents})
    blocks = tokenize_documents(batch_documents(texts), vocabulary=VOCABULARY)
    with seqio.utils.map_seed_manager(seed):
        batches = sentence_pairs(blocks, sequence_length, vocabulary=VOCABULARY, **kwargs)
    assert batches.element_spec == dict.fromkeys(
        FEATURES, tf.RaggedTensorSpec([None, None], tf.int32)
    )
    return unbatch_examples(batches, features=FEATURES)


def make_pairs(documents, seed=0, sequence_length=None, **kwargs):
    return list(pairs_dataset(documents, seed, sequence_length, **kwargs).as_numpy_iterator())


def segments_of(example, max_length):
    """A, B and the label, after checking general invariants."""
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
    """Check that each pair matches its label; returns the labels."""
    labels = []
    for example in examples:
        a, b, label = segments_of(example, max_length)
        labels.append(label)
        if label == 1:
            corpus.locate(a + b)
        elif a.strip("。") and b.strip("。"):
            (a_document, a_begin, _), (b_document, _, b_end) = corpus.locate(a), corpus.locate(b)
            assert (a_document == b_document) == (label == 2)
            # B comes before A; the middle may be missing if it did not fit.
            full = len(a) + len(b) + 3 == max_length
            assert label == 0 or 0 <= a_begin - b_end <= full * max_length // 2
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
    # A window takes both documents repeatedly; each example from one document is one of these.
    outcomes = {
        ("[天亮。]我走。]", "[下雨。]天亮。]"): 0,
        ("[下雨。]我走。]",): 1,
        ("[我走。]下雨。]",): 2,
    }
    # Each of 40 windows has these two documents: blocks are joined by fours.
    texts = tf.data.Dataset.from_tensors({"text": ["天亮。", "下雨。我走。"]})
    for _ in range(3):
        texts = texts.concatenate(tf.data.Dataset.from_tensors({"text": tf.zeros([0], tf.string)}))
    texts = texts.repeat(40)
    blocks = tokenize_documents(texts, vocabulary=VOCABULARY)
    with seqio.utils.map_seed_manager(0):
        batches = sentence_pairs(blocks, vocabulary=VOCABULARY, window=1)
    examples = list(unbatch_examples(batches, features=FEATURES).as_numpy_iterator())
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
    [(512, 8, (2, 60)), (64, 1, (2, 90)), (9, 3, (2, 9))],
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
    assert drops["no_other_document"] <= (0 if window == 8 else 60)


def test_every_token_is_used_exactly_once_or_counted():
    corpus = Corpus([[15, 3, 14, 15], [3, 15, 15, 9], [12, 13, 14, 15]] * 40)
    examples = make_pairs(corpus.documents, max_length=60)  # a group is a document
    check(corpus, examples, 60)
    assert max(count_letters(corpus, examples).values()) == 1
    missing = sum(map(len, corpus.documents)) - sum(len(e[TOKENS]) - 3 for e in examples)
    assert missing > 0
    assert drop_counts() == {"truncated_tokens": missing}


@pytest.mark.parametrize(
    ("num_documents", "sentences"),
    [(2500, (2, 5)), (20, (600, 601))],
    ids=["news", "novels"],
)
def test_labels_are_equally_likely(num_documents, sentences):
    corpus = random_corpus(num_documents, sentences, (3, 9))
    examples = make_pairs(corpus.documents, max_length=33)
    labels = check(corpus, examples, 33)
    counts = np.bincount(labels, minlength=3)
    assert len(labels) >= 2000
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert set(drop_counts()) <= {"truncated_tokens"}


def test_cuts_do_not_depend_on_labels():
    corpus = Corpus([[5, 5, 5]] * 2000)
    pairs = [segments_of(e, 18) for e in make_pairs(corpus.documents, max_length=18)]
    for label in range(3):
        lengths = [len(a) for a, _, here in pairs if here == label]
        assert set(lengths) == {5, 10} and len(lengths) > 600
        assert scipy.stats.binomtest(lengths.count(5), len(lengths)).pvalue > 1e-4


def test_groups_are_full():
    corpus = random_corpus(20, (300, 301), (3, 40))
    examples = make_pairs(corpus.documents, max_length=256)
    lengths = np.array([len(example[TOKENS]) for example in examples])
    labels = np.array(check(corpus, examples, 256))
    # All but the last two groups of a document, whose text stays together for labels 1 and 2.
    assert np.count_nonzero(lengths[labels > 0] < 256) <= 2 * 20
    # About half a sentence, of 21 tokens, of each group.
    assert drop_counts()["truncated_tokens"] < 0.06 * lengths.sum()


@pytest.fixture(scope="module")
def mixed_pairs():
    """Many pairs of documents of all lengths, and the corpus, for groups of 125 tokens."""
    rng = np.random.default_rng(5)
    corpus = Corpus([rng.integers(3, 12, rng.integers(2, 60)).tolist() for _ in range(900)])
    return corpus, make_pairs(corpus.documents, seed=1, max_length=128)


def test_lengths_do_not_tell_the_label(mixed_pairs):
    corpus, examples = mixed_pairs
    labels = np.array(check(corpus, examples, 128))
    lengths = np.array([len(example[TOKENS]) for example in examples])
    short = [np.sort(lengths[(labels == label) & (lengths < 110)]) for label in range(3)]
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        assert scipy.stats.ks_2samp(short[one], short[two]).pvalue > 1e-3
    # Full examples differ by less than a sentence.
    full = [np.mean(lengths[labels == label] >= 128 - 11) for label in range(3)]
    assert np.ptp(full) < 0.05
    means = [lengths[labels == label].mean() for label in range(3)]
    assert np.ptp(means) < 3


def test_segments_are_whole_where_they_meet(mixed_pairs):
    """Text that is too long is cut at the ends of the example, whatever the label."""
    corpus, examples = mixed_pairs
    for example in examples:
        a, b, _ = segments_of(example, 128)
        assert a[-1] == "。"
        if b.strip("。"):
            document, begin, _ = corpus.locate(b)
            assert begin == 0 or corpus.documents[document][begin - 1] == "。"


def test_single_sentences_pair_up_across_documents():
    corpus = random_corpus(50, (1, 2), (5, 9))
    examples = make_pairs(corpus.documents)
    assert set(check(corpus, examples, 512)) == {0}
    pairs = [segments_of(example, 512)[:2] for example in examples]
    firsts, seconds = zip(*pairs, strict=True)
    assert sorted(firsts) == sorted(seconds) == sorted(corpus.documents)


def test_documents_of_other_blocks_are_others():
    texts = tf.data.Dataset.from_tensor_slices({"text": [["天。"], ["地。"], ["人。"], ["和。"]]})
    blocks = tokenize_documents(texts, vocabulary=VOCABULARY)
    (batch,) = sentence_pairs(blocks, vocabulary=VOCABULARY, window=4)
    assert batch[TOKENS].nrows() == 4 and drop_counts() == {}


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
    counts = list(count_letters(corpus, examples).values())
    assert set(drop_counts()) <= {"truncated_tokens"}
    assert counts.count(0) <= drop_counts().get("truncated_tokens", 0)
    assert counts.count(2) <= 2 * 254 and max(counts) <= 2  # last groups of one piece
    assert max(map(len, (e[TOKENS] for e in examples))) > 500


def test_documents_without_text_are_counted():
    corpus = random_corpus(4, (2, 3), (4, 6))
    first, *others = corpus.documents
    examples = make_pairs([first, "", *others, ""])
    assert len(check(corpus, examples, 512)) == 4
    assert drop_counts() == {"empty_document": 2}


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
        make_pairs(["一。"], window=0)


def test_the_seed_decides_everything():
    corpus = random_corpus(80, (1, 20), (2, 30))

    def texts(seed):
        examples = make_pairs(corpus.documents, seed, max_length=64, window=2)
        return [VOCABULARY.text(e[TOKENS]) + str(e["sentence_labels"][0]) for e in examples]

    first = texts(1)
    assert texts(1) == first
    assert sum(one == two for one, two in zip(first, texts(2), strict=False)) < len(first) / 4


def test_iterators_restore_exactly(tmp_path):
    corpus = random_corpus(60, (1, 60), (2, 30))
    dataset = pairs_dataset(corpus.documents, max_length=64, window=2)
    iterator = iter(dataset)
    for _ in range(101):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    rest = list(iterator)
    other = iter(pairs_dataset(corpus.documents, max_length=64, window=2))
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    restored = list(other)
    assert len(rest) == len(restored) > 300
    for one, two in zip(rest, restored, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
