"""Documents become blocks of tokens, and batches of examples become single examples again."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.drops import count_drops, drop_counts, reset_counts
from plug_jax.data.preprocessors.documents import (
    batch_documents,
    clean_documents,
    tokenize_documents,
    unbatch_examples,
)


class CharacterVocabulary:
    """One id per character; characters below "0" have none."""

    offset = 5

    def encode_tf(self, texts):
        ids = tf.strings.unicode_decode(texts, "UTF-8")
        return tf.ragged.boolean_mask(ids, ids >= ord("0")) + self.offset

    def text(self, ids):
        return "".join(chr(i - self.offset) for i in ids.tolist())


VOCABULARY = CharacterVocabulary()


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()
    yield
    reset_counts()


def texts_dataset(documents, **features):
    return tf.data.Dataset.from_tensor_slices(
        {"text": tf.constant(documents, tf.string)} | features
    )


def tokenize(documents):
    blocks = tokenize_documents(batch_documents(texts_dataset(documents)), vocabulary=VOCABULARY)
    for spec in blocks.element_spec.values():
        assert spec == tf.TensorSpec([None], tf.int32)
    return list(blocks.as_numpy_iterator())


def texts_of(block):
    return [text.decode() for text in block["text"]]


# Blocks.


def test_blocks_docstring_example():
    (block,) = batch_documents(texts_dataset(["甲", "乙"])).as_numpy_iterator()
    assert texts_of(block) == ["甲", "乙"]


def test_blocks_hold_all_documents_in_order():
    documents = [str(number) for number in range(37)]
    dataset = texts_dataset(documents, url=documents)
    blocks = list(batch_documents(dataset).as_numpy_iterator())
    assert all(set(block) == {"text"} for block in blocks)
    assert [len(block["text"]) for block in blocks] == [16, 16, 5]
    assert [text for block in blocks for text in texts_of(block)] == documents


# Cleaning.


def without_short_texts(texts):
    keep = tf.strings.length(texts, "UTF8_CHAR") > 1
    dropped = tf.math.count_nonzero(~keep)
    return count_drops(tf.boolean_mask(texts, keep), {"short_text": dropped})


def without_final_stop(texts):
    return tf.strings.regex_replace(texts, "。$", "")


def test_clean_docstring_example():
    blocks = batch_documents(texts_dataset(["天亮", "下"]))
    (block,) = clean_documents(blocks, steps=[without_short_texts]).as_numpy_iterator()
    assert texts_of(block) == ["天亮"]
    assert drop_counts() == {"short_text": 1}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], ["走。", "天亮。"]),
        ([without_short_texts, without_final_stop], ["走", "天亮"]),
        ([without_final_stop, without_short_texts], ["天亮"]),
    ],
)
def test_steps_come_one_after_the_other(steps, expected):
    blocks = batch_documents(texts_dataset(["走。", "天亮。"]))
    (block,) = clean_documents(blocks, steps=steps).as_numpy_iterator()
    assert texts_of(block) == expected


def test_cleaning_may_leave_nothing_of_a_block():
    blocks = batch_documents(texts_dataset(["下"] * 16 + ["天亮"]))
    cleaned = clean_documents(blocks, steps=[without_short_texts])
    first, second = tokenize_documents(cleaned, vocabulary=VOCABULARY).as_numpy_iterator()
    assert all(values.size == 0 for values in first.values())
    assert second["document_lengths"].tolist() == [2]


# Tokens.


def test_tokenize_docstring_example():
    (block,) = tokenize(["天亮。下雨。", "我走了"])
    assert VOCABULARY.text(block["tokens"]) == "天亮。下雨。我走了"
    assert block["sentence_lengths"].tolist() == [3, 3, 3]
    assert block["document_lengths"].tolist() == [6, 3]


SENTENCES = st.lists(st.text("天亮下雨我走", max_size=5).map(lambda text: text + "。"), max_size=6)


@settings(deadline=None, max_examples=12)
@given(st.lists(SENTENCES, max_size=40))
def test_tokens_sentences_and_documents_add_up(documents):
    blocks = tokenize(["".join(sentences) for sentences in documents])
    assert len(blocks) == -(-len(documents) // 16)
    for number, block in enumerate(blocks):
        here = documents[16 * number : 16 * number + 16]
        assert VOCABULARY.text(block["tokens"]) == "".join("".join(document) for document in here)
        # A run of stops ends one sentence, not several.
        lengths = []
        for document in here:
            for position, sentence in enumerate(document):
                if sentence == "。" and position:
                    lengths[-1] += 1
                else:
                    lengths.append(len(sentence))
        assert block["sentence_lengths"].tolist() == lengths
        totals = [len("".join(document)) for document in here]
        assert block["document_lengths"].tolist() == [total for total in totals if total]


def test_documents_and_sentences_without_a_token_are_left_out():
    (block,) = tokenize(["", "天亮。", "! !", "下雨。 !我走。", "  "])
    assert VOCABULARY.text(block["tokens"]) == "天亮。下雨。我走。"
    assert block["sentence_lengths"].tolist() == [3, 3, 3]
    assert block["document_lengths"].tolist() == [3, 6]
    assert drop_counts() == {"empty_document": 3}


def test_a_block_without_a_token():
    (block,) = tokenize(["", "!"])
    assert all(values.shape == (0,) for values in block.values())
    assert drop_counts() == {"empty_document": 2}


# Examples.


def batches_dataset(batches):
    """Batches, each a dict of lists of rows, as a dataset of ragged tensors."""
    rows = [
        {
            name: tf.ragged.constant(values, tf.int32, ragged_rank=1)
            for name, values in batch.items()
        }
        for batch in batches
    ]
    spec = {name: tf.RaggedTensorSpec([None, None], tf.int32) for name in batches[0]}
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=spec)


def test_unbatch_docstring_example():
    batches = batches_dataset([{"a": [[1], [2, 3]], "b": [[0], [0, 0]]}])
    examples = unbatch_examples(batches, features=("a",))
    assert [
        {name: values.tolist() for name, values in example.items()}
        for example in examples.as_numpy_iterator()
    ] == [{"a": [1]}, {"a": [2, 3]}]


def random_batches(sizes):
    """Batches of these numbers of examples, and the examples; the sides' lengths differ."""
    rng = np.random.default_rng(0)
    batches, examples = [], []
    for size in sizes:
        lengths = rng.integers(0, 9, [size, 2]).tolist()
        batch = {
            name: [rng.integers(1000, size=pair[side]).tolist() for pair in lengths]
            for name, side in {"encoder_a": 0, "sentence_b": 0, "decoder_c": 1, "extra": 0}.items()
        }
        batches.append(batch)
        examples += [{name: batch[name][row] for name in batch} for row in range(size)]
    return batches, examples


FEATURES = ("decoder_c", "encoder_a", "sentence_b")


def test_examples_are_the_rows_of_the_batches():
    batches, expected = random_batches([3, 0, 1, 7])
    dataset = unbatch_examples(batches_dataset(batches), features=FEATURES)
    assert dataset.element_spec == dict.fromkeys(FEATURES, tf.TensorSpec([None], tf.int32))
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == len(expected) == 11
    for example, rows in zip(examples, expected, strict=True):
        assert {name: values.tolist() for name, values in example.items()} == {
            name: rows[name] for name in FEATURES
        }


def test_iterators_restore_within_a_batch(tmp_path):
    values = tf.RaggedTensor.from_row_lengths(tf.range(3 * 40), [3] * 40)
    batches = tf.data.Dataset.from_tensor_slices({"a": values}).ragged_batch(16)
    dataset = unbatch_examples(batches, features=("a",))
    iterator = iter(dataset)
    for _ in range(21):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    other = iter(dataset)
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    restored = [example["a"].numpy().tolist() for example in other]
    assert restored == np.arange(63, 120).reshape(-1, 3).tolist()
