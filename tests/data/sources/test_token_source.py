import pickle

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.sources.token_source import TokenSource, check_tokens
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.errors import PlugError

NAMES = ("tokens", "sentence_lengths", "document_lengths")


@pytest.fixture(autouse=True)
def fresh_counts():
    reset_counts()


@pytest.fixture
def write(tmp_path):
    """Write records, dicts of lists, to a file."""

    def write_file(records, name="a.tfrecord"):
        path = str(tmp_path / name)
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                features = {
                    key: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
                    for key, values in record.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
        return path

    return write_file


def blocks(path, **options):
    dataset = TokenSource(train=path).get_dataset("train", shuffle=False, **options)
    assert dataset.element_spec == dict.fromkeys(NAMES, tf.TensorSpec([None], tf.int32))
    return [tuple(block[name].tolist() for name in NAMES) for block in dataset.as_numpy_iterator()]


def test_a_document_a_record_as_in_the_docstring(write):
    path = write([{"tokens": [7, 8, 9]}, {"tokens": [5, 6]}])
    assert blocks(path) == [([7, 8, 9, 5, 6], [3, 2], [3, 2])]
    assert drop_counts() == {}


def test_sixteen_records_make_a_block(write):
    path = write([{"tokens": [number] * 2, "sentence_lengths": [1, 1]} for number in range(5, 23)])
    first, second = blocks(path)
    assert first == ([n for n in range(5, 21) for _ in range(2)], [1] * 32, [2] * 16)
    assert second == ([21, 21, 22, 22], [1] * 4, [2] * 2)


def test_records_of_several_documents_stay_blocks(write):
    records = [
        {"tokens": [5, 6, 7], "document_lengths": [1, 2]},
        {"tokens": [8, 9, 5, 6], "document_lengths": [4], "sentence_lengths": [3, 1]},
        {"tokens": [7]},
        {"tokens": [], "document_lengths": [], "sentence_lengths": []},  # a cache may hold these
    ]
    assert blocks(write(records)) == [
        ([5, 6, 7], [1, 2], [1, 2]),
        ([8, 9, 5, 6], [3, 1], [4]),
        ([7], [1], [1]),
        ([], [], []),
    ]
    assert drop_counts() == {}


INVALID = {
    "documents too long": {"tokens": [5, 6], "document_lengths": [1, 2]},
    "documents too short": {"tokens": [5, 6], "document_lengths": [1]},
    "sentences too long": {"tokens": [5, 6], "sentence_lengths": [3]},
    "negative document": {"tokens": [5, 6], "document_lengths": [3, -1]},
    "negative sentence": {"tokens": [5, 6], "sentence_lengths": [-1, 3]},
    "sentence across documents": {
        "tokens": [5, 6, 7],
        "document_lengths": [1, 2],
        "sentence_lengths": [2, 1],
    },
}


@pytest.mark.parametrize("kind", INVALID)
@pytest.mark.parametrize("first", [{"tokens": [7]}, {"tokens": [7], "document_lengths": [1]}])
def test_lengths_that_cannot_be_drop_the_record(write, kind, first):
    bad = INVALID[kind]
    found = blocks(write([first, bad, {"tokens": [8, 9], "document_lengths": [1, 1]}]))
    joined = [[n for part in parts for n in part] for parts in zip(*found, strict=True)]
    assert joined == [[7, 8, 9], [1, 1, 1], [1, 1, 1]]
    assert drop_counts() == {"invalid_lengths": len(bad.get("document_lengths", [0]))}


def test_empty_documents_are_counted_and_empty_sentences_left_out(write):
    records = [
        {"tokens": []},
        {"tokens": [5, 6], "document_lengths": [0, 2, 0], "sentence_lengths": [0, 1, 0, 1]},
    ]
    assert blocks(write(records)) == [([5, 6], [1, 1], [2])]
    assert drop_counts() == {"empty_document": 3}


def test_globs_splits_and_shards(write, tmp_path):
    for number in (5, 6):
        write([{"tokens": [number]}], f"{number}.tfrecord")
    write([{"tokens": [9]}], "validation")
    source = TokenSource(train=f"{tmp_path}/*.tfrecord", validation=tmp_path / "validation")
    source = pickle.loads(pickle.dumps(source))
    assert tuple(source.splits) == ("train", "validation")
    assert len(source.list_shards("train")) == 2
    assert blocks(f"{tmp_path}/*.tfrecord", shard_info=seqio.ShardInfo(1, 2)) == [([6], [1], [1])]
    validation = next(source.get_dataset("validation").as_numpy_iterator())
    np.testing.assert_array_equal(validation["tokens"], [9])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"inputs": [1], "targets": [2]}], "no feature 'tokens', only inputs, targets"),
        ([], "No record in the files of the train split: .*a.tfrecord"),
    ],
)
def test_records_of_no_use(write, records, message):
    with pytest.raises(PlugError, match=message):
        TokenSource(train=write(records)).list_shards("train")


def test_features_of_another_kind(tmp_path):
    path = tmp_path / "a.tfrecord"
    text = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"5 6"]))
    example = tf.train.Example(features=tf.train.Features(feature={"tokens": text}))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
    with pytest.raises(PlugError, match="'tokens' of .* must be a list of int64"):
        TokenSource(train=path).list_shards("train")


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("天地人\n" * 10)
    with pytest.raises(PlugError, match=r"a\.txt is not, or not readable as, a TFRecord file"):
        TokenSource(train=path).list_shards("train")
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xffno example")
    with pytest.raises(PlugError, match=r"a TFRecord file of tf\.train\.Example"):
        TokenSource(train=path).list_shards("train")
    with pytest.raises(PlugError, match=r"No TFRecord file matches"):
        TokenSource(train=tmp_path / "b").list_shards("train")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_PIECES, *"天地人你我"]) + "\n", encoding="utf-8")
    return WordPieceVocabulary(path)  # 10 pieces; [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4


def test_tokens_of_the_vocabulary_pass(write, vocabulary):
    path = write([{"tokens": [5, 9, 1]}])  # text may encode to [UNK]
    dataset = check_tokens(TokenSource(train=path).get_dataset("train"), vocabulary=vocabulary)
    assert next(dataset.as_numpy_iterator())["tokens"].tolist() == [5, 9, 1]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (10, r"has the id 10, but .*vocab_size=10\) ends at 9"),
        (-1, "has the id -1"),
        ((1 << 32) + 5, "has the id 2147483647"),
        (0, r"has \[PAD\] \(id 0\) among its tokens"),
        (2, r"has \[CLS\] \(id 2\)"),
        (4, r"has \[MASK\] \(id 4\)"),
    ],
)
def test_other_tokens_are_errors(write, vocabulary, token, message):
    path = write([{"tokens": [5, 6]}, {"tokens": [5, token, 7]}])
    dataset = check_tokens(TokenSource(train=path).get_dataset("train"), vocabulary=vocabulary)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"PlugError: A record {message}"):
        next(iter(dataset))
