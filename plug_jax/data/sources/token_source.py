"""A seqio source of tokenised text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.preprocessors.documents import DOCUMENTS_A_BLOCK
from plug_jax.data.sources.file_source import FileSource, Paths, name_some
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

_RECORDS_A_LOOK = 64
_LENGTHS = ("sentence_lengths", "document_lengths")
_FEATURES = {
    name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for name in ("tokens", *_LENGTHS)
}


class TokenSource(FileSource):
    """Blocks of tokens, like `tokenize_documents`', from TFRecord files of tf.train.Example.

    A record has int64 features: `tokens`, the concatenated ids of one or more documents without
    special tokens; `document_lengths`, the tokens of each document, by default one document per
    record; `sentence_lengths`, the tokens of each sentence, by default one sentence per document.
    The files that `plug-jax cache` writes, `<task>/train.tfrecord-*`, have this format.

    Without sentences stage 1 still works, but less well: a document of up to half an example cannot
    be cut into A and B, so it only gets label 0, or is dropped as "no_other_document"; a longer one
    is cut into even pieces, so that A and B meet in the middle of a sentence. Stage 2 needs
    sentences only for `sentence_end_probability`.

    If the first record of a split has `document_lengths`, each record is a block, ideally of about
    16 documents; otherwise 16 records are joined.

    Dropped and counted: documents without a token (empty_document), and records whose lengths are
    negative, do not add up to their tokens, or have a sentence across the end of a document
    (invalid_lengths, by document).

    Example, records {"tokens": [7, 8, 9]} and {"tokens": [5, 6]} make a block:

        tokens             [7, 8, 9, 5, 6]
        sentence_lengths   [3, 2]
        document_lengths   [3, 2]

    Raises PlugError when a split is listed or read, before any training: for paths or globs that
    match no file, files that are not TFRecord files or have no record, and a first record
    that is not as above.
    """

    KIND = "TFRecord file"

    def __init__(self, *, train: Paths, validation: Paths | None = None) -> None:
        """Describes the files by split: paths, globs or lists of these; none is opened yet."""
        self._has_blocks: dict[str, bool] = {}
        super().__init__(tf.data.TFRecordDataset, train=train, validation=validation)

    def list_shards(self, split: str) -> list[str]:
        """Paths of the split's files, in the order given, each glob sorted, without repetition."""
        files = super().list_shards(split)
        if split not in self._has_blocks:
            self._has_blocks[split] = "document_lengths" in _first_features(split, files)
        return files

    def damage(self, path: str, *, to_end: bool) -> str | None:
        """See `damage_of_records`."""
        return damage_of_records(path, to_end=to_end)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Blocks of tokens, see `plug_jax.data.preprocessors.documents.tokenize_documents`."""
        records = super().get_dataset(split, shuffle, seed, shard_info)
        has_blocks = self._has_blocks[split]
        records = records.batch(1 if has_blocks else DOCUMENTS_A_BLOCK)
        return records.map(
            functools.partial(_join, has_blocks=has_blocks), num_parallel_calls=tf.data.AUTOTUNE
        )


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def check_tokens(dataset: tf.data.Dataset, *, vocabulary: PlugVocabulary) -> tf.data.Dataset:
    """Raises an error for tokens that no text encodes to; blocks pass unchanged.

    These are ids outside the vocabulary, and [PAD], [CLS], [SEP] and [MASK]. Tokens of another
    vocabulary pass if their ids are valid in this one.

    Example, with ids 0 to 9: {"tokens": [5, 10], ...} is an error.

    Raises:
      InvalidArgumentError: on iteration; it holds the text of a PlugError.
    """
    special = (vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id)

    def refuse(tokens: np.ndarray) -> np.ndarray:
        token = int(tokens[0])
        if token in special:
            raise PlugError(
                f"A record has {vocabulary.id_to_piece(token)} (id {token}) among its tokens: "
                "write text alone, without padding; the task adds special tokens."
            )
        raise PlugError(
            f"A record has the id {token}, but {vocabulary!r} ends at {vocabulary.vocab_size - 1}: "
            "name the vocabulary that the records were tokenised with."
        )

    def check(block: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens = block["tokens"]
        wrong = (tokens < 0) | (tokens >= vocabulary.vocab_size)
        for token in special:
            wrong |= tokens == token
        checked = tf.cond(
            tf.reduce_any(wrong),
            lambda: tf.numpy_function(
                refuse, [tf.boolean_mask(tokens, wrong)], tf.int32, stateful=False
            ),
            lambda: tokens,
        )
        return {**block, "tokens": tf.ensure_shape(checked, [None])}

    return seqio.map_over_dataset(check)(dataset)


def damage_of_records(path: str, *, to_end: bool) -> str | None:
    """What is wrong with a TFRecord file, by the checksums of all records or the first one."""
    try:
        for _ in tf.data.TFRecordDataset(path).batch(_RECORDS_A_LOOK).take(-1 if to_end else 1):
            pass
    except tf.errors.DataLossError:
        return "is cut short or damaged"
    except tf.errors.OpError as error:
        return f"cannot be read ({error.message.splitlines()[0]})"
    return None


def _first_features(split: str, files: list[str]) -> set[str]:
    """Feature names of the split's first record. Raises PlugError if it is unusable."""
    for path in files:
        try:
            record = next(iter(tf.data.TFRecordDataset(path).take(1)), None)
            features = None if record is None else _features(record.numpy())
        except (tf.errors.OpError, ValueError) as error:
            raise PlugError(
                f"{path} is not, or not readable as, a TFRecord file of tf.train.Example."
            ) from error
        if features is None:
            continue
        if "tokens" not in features:
            raise PlugError(
                f"The records of {path} have no feature 'tokens', only {', '.join(features)}."
            )
        for name in _FEATURES:
            if name in features and features[name] != "int64_list":
                raise PlugError(f"The feature {name!r} of {path} must be a list of int64.")
        return {*features}
    raise PlugError(f"No record in the files of the {split} split: {name_some(files)}.")


def _features(record: bytes) -> dict[str, str]:
    """The list type of each feature of a record, by name. Raises ValueError."""
    try:
        example = tf.train.Example.FromString(record)
    except Exception as error:  # DecodeError, whose module depends on protobuf's version
        raise ValueError("no tf.train.Example") from error
    features = sorted(example.features.feature.items())
    # A list without values may lack its type.
    return {name: value.WhichOneof("kind") or "int64_list" for name, value in features}


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def _join(records: tf.Tensor, *, has_blocks: bool) -> dict[str, tf.Tensor]:
    """Records, tf.string [n], to one block of tokens."""
    parsed = tf.io.parse_example(records, _FEATURES)
    sizes = parsed["tokens"].row_lengths()
    # A cache has records without a document, in which no document is missing.
    one = tf.where(sizes > 0, 1, 0 if has_blocks else 1)
    whole = tf.RaggedTensor.from_row_lengths(
        tf.boolean_mask(sizes, one > 0), tf.cast(one, tf.int64)
    )
    documents = _or_else(parsed["document_lengths"], whole)
    sentences = _or_else(parsed["sentence_lengths"], documents)
    parts = (parsed["tokens"], documents, sentences)

    valid = _adds_up(documents, sizes) & _adds_up(sentences, sizes)
    parts, invalid = _keep(parts, valid)
    parts, across = _keep(parts, _ends_meet(parts[1], parts[2]))
    tokens, documents, sentences = (part.values for part in parts)
    empty = documents == 0
    documents = count_drops(
        tf.boolean_mask(documents, ~empty),
        {"invalid_lengths": invalid + across, "empty_document": tf.math.count_nonzero(empty)},
    )
    return {
        "tokens": tf.saturate_cast(tokens, tf.int32),  # an id that is too large must not wrap round
        "sentence_lengths": tf.cast(tf.boolean_mask(sentences, sentences > 0), tf.int32),
        "document_lengths": tf.cast(documents, tf.int32),
    }


def _or_else(rows: tf.RaggedTensor, default: tf.RaggedTensor) -> tf.RaggedTensor:
    """Replaces empty rows by those of `default`."""
    empty = rows.row_lengths() == 0
    sizes = default.row_lengths()
    values = tf.boolean_mask(default.values, tf.repeat(empty, sizes))
    needed = tf.RaggedTensor.from_row_lengths(values, tf.where(empty, sizes, 0))
    return tf.concat([rows, needed], axis=1)


def _adds_up(lengths: tf.RaggedTensor, sizes: tf.Tensor) -> tf.Tensor:
    """Whether the lengths of each row are in range and add up to its size: bool [n]."""
    most = tf.repeat(sizes, lengths.row_lengths())
    in_range = lengths.with_values((lengths.values >= 0) & (lengths.values <= most))
    return tf.reduce_all(in_range, axis=1) & (tf.reduce_sum(lengths, axis=1) == sizes)


def _ends_meet(documents: tf.RaggedTensor, sentences: tf.RaggedTensor) -> tf.Tensor:
    """Whether a sentence ends where each document of a row ends: bool [n]."""
    ends, sentence_ends = tf.cumsum(documents.values), tf.cumsum(sentences.values)
    padded = tf.concat([[0], sentence_ends], axis=0)
    last = tf.gather(padded, tf.searchsorted(sentence_ends, ends, side="right"))
    return tf.reduce_all(documents.with_values(last == ends), axis=1)


def _keep(
    parts: tuple[tf.RaggedTensor, ...], rows: tf.Tensor
) -> tuple[tuple[tf.RaggedTensor, ...], tf.Tensor]:
    """The rows that are kept of tokens, documents and sentences; documents of the others."""
    lost = tf.reduce_sum(tf.where(rows, tf.zeros([], tf.int64), parts[1].row_lengths()))
    return tuple(tf.ragged.boolean_mask(part, rows) for part in parts), lost
