"""Whatever the text files contain, pre-training runs, and each document is used or counted."""

import collections
import functools
import json
import unicodedata

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.preprocessors import cleaning
from plug_jax.data.preprocessors.groups import cut_groups
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.tasks.pretrain import palm_task, structbert_task
from tests.fuzzed_documents import fuzzed_documents

pytestmark = pytest.mark.slow

COUNT = 10_000
LONG_LINE_BYTES = 10_000_000
MIN_LENGTH, MAX_LENGTH = 8, 512

# Reasons for dropping a whole document; other reasons count parts of one.
OF_DOCUMENTS = {
    *("invalid_utf8", "invalid_json", "missing_text_key", "empty_document"),
    *("too_short_text", "too_little_chinese", "document_too_short"),
}
OF_PARTS = {"tail_too_short", "tail_tokens", "truncated_tokens", "no_other_document"}

CLEANING = {
    # Almost nothing is dropped or repaired: the tokeniser and the objectives must handle it.
    "lines": (cleaning.UnicodeNFKC(),),
    "paragraphs": (cleaning.HalfWidth(), cleaning.Simplified(), cleaning.ChineseRatio(0.01)),
    "jsonl": (
        cleaning.ControlCharacters(),
        cleaning.HalfWidth(),
        cleaning.Simplified(),
        cleaning.MinLength(8),
        cleaning.ChineseRatio(0.3),
    ),
}


def is_blank(line):
    """Whether readers take the line for blank."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return False
    return all(char in "\t\n\f\r " or unicodedata.category(char)[0] == "Z" for char in text)


def is_utf8(document):
    try:
        return bool(document.decode()) or True
    except UnicodeDecodeError:
        return False


def as_lines(documents):
    lines = [document.replace(b"\n", b"\r") for document in documents]
    kept = [line for line in lines if not is_blank(line)]
    return b"\n".join(lines), len(kept), sum(not is_utf8(line) for line in kept)


def as_paragraphs(documents):
    paragraphs = [
        b"\n".join(line for line in document.split(b"\n") if not is_blank(line))
        for document in documents
    ]
    kept = [paragraph for paragraph in paragraphs if paragraph]
    return b"\n\n \n".join(paragraphs), len(kept), sum(not is_utf8(text) for text in kept)


ESCAPES = [bytes([i]) for i in range(256)]
ESCAPES[:32] = [b"\\u%04x" % i for i in range(32)]
ESCAPES[ord('"')], ESCAPES[ord("\\")] = b'\\"', b"\\\\"


def as_jsonl(documents):
    """Every document as a record, among lines that are not records."""
    lines = [b'{"text": "%s"}' % b"".join(ESCAPES[byte] for byte in text) for text in documents]
    invalid = sum(not is_utf8(document) for document in documents)
    lines += [b'"text"', b"[" * 100_000, b"{", b"\0", b"null", b'{"text": "a}']
    lines += [b"{}", b'{"text": null}', b'{"text": ["a"]}', b'{"Text": "a"}']
    lines += [json.dumps({"text": text}).encode() for text in ("\ud83d", "天\udc00", " ", "")]
    return b"\n".join(lines), len(lines), invalid + 2


WRITERS = {"lines": as_lines, "paragraphs": as_paragraphs, "jsonl": as_jsonl}


@functools.cache
def documents_for(file_format):
    """A third of the documents, with a long one."""
    third = list(WRITERS).index(file_format)
    documents = fuzzed_documents(COUNT, seed=1, long_line_bytes=LONG_LINE_BYTES)
    return documents[third * COUNT // 3 : (third + 1) * COUNT // 3]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabularies")
    text = "天亮了。我们去学校！“猫在哪儿？”他问，没有人回答……abc 0123"
    pieces = [*SPECIAL_PIECES, *sorted(set(text) - {" "}), "##a", "##b", "##1", "ok"]
    (directory / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    word_pieces = WordPieceVocabulary(directory / "vocab.txt")
    sentence_pieces = train_sentencepiece(
        [text, "我们去学校。", "天亮了。"] * 20,
        directory=directory / "sentencepiece",
        vocab_size=40,
        model_type="unigram",
        character_coverage=1.0,
    )
    return {"lines": word_pieces, "paragraphs": sentence_pieces, "jsonl": word_pieces}


def run(task):
    """Sums of the lengths of the features over all examples and the number of examples; the
    tokens of each document that gets as far as the objectives, and their groups for stage 1."""
    reset_counts()
    tokens, groups = [], []

    def record(document_lengths, documents_of_groups):
        tokens.extend(document_lengths)
        groups.extend(documents_of_groups)
        return document_lengths

    def watch(block):
        cut = cut_groups(
            block["document_lengths"], block["sentence_lengths"], budget=MAX_LENGTH - 3
        )
        lengths = tf.numpy_function(
            record, [block["document_lengths"], cut["document"]], tf.int32, stateful=False
        )
        return {**block, "document_lengths": tf.ensure_shape(lengths, [None])}

    stages = list(task.preprocessors)
    cache = [type(stage) for stage in stages].index(seqio.CacheDatasetPlaceholder)
    stages.insert(cache + 1, lambda dataset: dataset.map(watch))
    task = seqio.Task(
        task.name, source=task.source, preprocessors=stages, output_features=task.output_features
    )
    totals = collections.Counter()
    dataset = task.get_dataset(None, "train", shuffle=False, seed=0)
    for batch in dataset.ragged_batch(256):
        for name, rows in batch.items():
            ids = rows.flat_values.numpy()
            size = task.output_features[name].vocabulary.vocab_size
            assert ids.min(initial=0) >= 0
            assert ids.max(initial=0) < size
            assert rows.bounding_shape()[1] <= MAX_LENGTH
            totals[name] += len(ids)
        totals["examples"] += int(rows.nrows())
    return totals, np.array(tokens), len(groups)


def of_documents(counts):
    assert counts.keys() <= OF_DOCUMENTS | OF_PARTS
    return {reason: count for reason, count in counts.items() if reason in OF_DOCUMENTS}


@pytest.mark.parametrize("file_format", WRITERS)
def test_every_document_is_used_or_counted(file_format, vocabularies, tmp_path):
    content, count, invalid = WRITERS[file_format](documents_for(file_format))
    path = tmp_path / "text"
    path.write_bytes(content)
    source = TextSource(train=path, file_format=file_format)
    options = {"cleaning": CLEANING[file_format], "max_length": MAX_LENGTH}
    vocabulary = vocabularies[file_format]

    totals, tokens, groups = run(structbert_task("stage_1", source, vocabulary, **options))
    counts = collections.Counter(drop_counts())
    dropped = of_documents(counts)
    assert dropped["invalid_utf8"] == invalid
    assert len(tokens) + sum(dropped.values()) == count
    assert tokens.min() > 0
    # Each group of sentences became an example, or found no partner.
    assert totals["examples"] + counts["no_other_document"] == groups

    palm = palm_task("stage_2", source, vocabulary, min_length=MIN_LENGTH, **options)
    totals, same_tokens, _ = run(palm)
    counts = collections.Counter(drop_counts())
    assert sorted(same_tokens) == sorted(tokens)  # blocks arrive in any order
    too_short = tokens < 2 * MIN_LENGTH - 3
    assert of_documents(counts) == dropped | {"document_too_short": too_short.sum()}
    text_tokens = totals["encoder_original_tokens"] + totals["decoder_input_tokens"]
    text_tokens -= 3 * totals["examples"]
    assert text_tokens + counts["tail_tokens"] == tokens[~too_short].sum()
