"""Vocabularies: text to token ids and back, with BERT's five special pieces."""

from __future__ import annotations

import abc
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from plug_jax.atomic_files import write_whole
from plug_jax.data.fetched_files import read_file
from plug_jax.data.tokenizer_files import (
    SETTINGS,
    TOKENIZER,
    VOCAB,
    other_than_default,
    read_tokenizer,
    tokenizer_config,
)
from plug_jax.data.wordpiece import WordPieces
from plug_jax.errors import PlugError

PAD, UNK, CLS, SEP, MASK = SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class PlugVocabulary(seqio.Vocabulary, abc.ABC):
    """A `seqio.Vocabulary` with [PAD], [UNK], [CLS], [SEP] and [MASK].

    The ids of the five are found by the text of their pieces; [PAD] has to be 0, which seqio pads
    with. `encode` and `encode_tf` never add a special token and never make one, apart from [UNK],
    out of text that spells it. Two vocabularies are equal when class and files' content are.

    Models and tables are loaded eagerly, outside of any graph under construction, so an object can
    be used in the functions of a `tf.data` pipeline, by many threads at once.
    """

    FILE_NAME: ClassVar[str]  # the file's name in a directory written by `save_vocabulary`

    def __init__(
        self,
        path: str,
        files: Mapping[str, bytes],
        pieces: Sequence[str],
        controls: Iterable[int],
        settings: Mapping[str, bool] | None = None,
    ) -> None:
        super().__init__()
        self._path = path
        self._files = dict(files)
        self._settings = dict(settings or {})
        self._hash = hash((type(self).__name__, *sorted(self._files.items())))
        self._pieces = tuple(pieces)
        missing = [piece for piece in SPECIAL_PIECES if piece not in self._pieces]
        if missing:
            raise PlugError(
                f"The vocabulary {path} lacks {', '.join(missing)}; it must hold "
                f"{', '.join(SPECIAL_PIECES)}."
            )
        self._special = {piece: self._pieces.index(piece) for piece in SPECIAL_PIECES}
        if self._special[PAD] != 0:
            raise PlugError(
                f"The vocabulary {path} has {PAD} at id {self._special[PAD]}; it must be the first "
                "piece, because sequences are padded with 0."
            )
        self._special_ids = tuple(sorted({*self._special.values(), *controls}))
        self._regular_ids = np.setdiff1d(np.arange(len(self._pieces)), self._special_ids)
        self._regular_ids = self._regular_ids.astype(np.int32)
        self._regular_ids.setflags(write=False)
        if not self._regular_ids.size:
            raise PlugError(f"The vocabulary {path} holds nothing but special pieces.")

    @abc.abstractmethod
    def _tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """Ids of each string: tf.string [s] to ragged int32 [s, None]."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str:
        """Text of ids that are all in the vocabulary and none of [PAD], [CLS], [SEP], [MASK]."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """All that it is made of: names in a directory of its own, and what these files hold."""
        return self._files

    @property
    def settings(self) -> Mapping[str, bool]:
        """What else than the pieces decides on the ids of a text, where it is not the default."""
        return self._settings

    @property
    def pad_id(self) -> int:
        """Id of [PAD]: 0."""
        return self._special[PAD]

    @property
    def unk_id(self) -> int:
        """Id of [UNK]."""
        return self._special[UNK]

    @property
    def cls_id(self) -> int:
        """Id of [CLS]."""
        return self._special[CLS]

    @property
    def sep_id(self) -> int:
        """Id of [SEP]."""
        return self._special[SEP]

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self._special[MASK]

    @property
    def bos_id(self) -> int:
        """What seqio calls the first token: [CLS]."""
        return self.cls_id

    @property
    def eos_id(self) -> int:
        """What seqio calls the last token: [SEP]."""
        return self.sep_id

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Sorted ids of the five special pieces and of every other piece that no text encodes to.

        Those others are BERT's [unusedN] and SentencePiece's control and unused pieces.
        """
        return self._special_ids

    @property
    def regular_ids(self) -> np.ndarray:
        """The ids that a random replacement may draw: int32, every id not in `special_ids`."""
        return self._regular_ids

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self._pieces)

    @property
    def _base_vocab_size(self) -> int:
        return self.vocab_size

    def id_to_piece(self, token_id: int) -> str:
        """The piece of one id, such as "[MASK]", "##ing" or "的"; PlugError if out of range."""
        if not 0 <= token_id < self.vocab_size:
            raise PlugError(
                f"{token_id} is no id of the vocabulary {self._path}, which has {self.vocab_size}."
            )
        return self._pieces[token_id]

    def encode(self, s: str) -> list[int]:
        """Ids of a text, the same as `encode_tf` gives; no special token is added.

        Raises PlugError for half of a surrogate pair, which Python makes of bytes that are no text.
        """
        try:
            s.encode()
        except UnicodeEncodeError as error:
            raise PlugError(f"{s!r} is no Unicode text: {error.reason}") from error
        with tf.init_scope():
            return self.encode_tf(tf.constant(s)).numpy().tolist()

    def encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """Ids of texts in valid UTF-8: tf.string [] to int32 [n], or [s] to ragged int32 [s, None].

        Graph op. No special token is added. Raises ValueError for other ranks.
        """
        s = tf.convert_to_tensor(s)
        if s.shape.rank == 0:
            return self._tokenize(s[tf.newaxis]).flat_values
        if s.shape.rank == 1:
            return self._tokenize(s)
        raise ValueError(f"encode_tf takes strings of shape [] or [s], not {s.shape}.")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without [PAD], [CLS], [SEP] and [MASK]; ids out of range read as [UNK].

        Unlike other seqio vocabularies it does not stop at the first [SEP]: an encoder input has
        several.
        """
        dropped = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        ids = ids.numpy() if isinstance(ids, tf.Tensor) else ids  # quicker to iterate over
        kept = [int(i) for i in ids if int(i) not in dropped]
        return self._join([i if 0 <= i < self.vocab_size else self.unk_id for i in kept])

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """`decode` as an op: int32 [..., n] to tf.string [...]; it runs in Python."""

        def decode_rows(array: np.ndarray) -> np.ndarray:
            texts = np.empty(array.shape[:-1], object)
            for index in np.ndindex(texts.shape):
                texts[index] = self.decode(array[index]).encode()
            return texts

        ids = tf.convert_to_tensor(ids)
        texts = tf.numpy_function(decode_rows, [ids], tf.string, stateful=False)
        return tf.ensure_shape(texts, ids.shape[:-1])

    # seqio's abstract hooks; its public methods that would call them are overridden above.
    def _encode(self, s: str) -> list[int]:
        return self.encode(s)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        return self.encode_tf(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.decode(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self.decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlugVocabulary):
            return NotImplemented
        return type(self) is type(other) and self._files == other._files

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # TensorFlow's tables cannot be copied or pickled (gin and Beam do both): load again.
        return type(self), (self._path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r}, vocab_size={self.vocab_size})"


class WordPieceVocabulary(PlugVocabulary):
    """BERT's WordPiece over a `vocab.txt`: one piece a line, its line number is its id.

    Text is cleaned, lower-cased, stripped of accents, split at spaces, punctuation and around
    each Chinese character, and each word is cut greedily into its longest known pieces, as in
    PLUG's released tokenizer (`plug_jax.data.wordpiece`). A word that cannot be cut, or is longer
    than 100 characters, is one [UNK]. No random replacement draws the [unusedN] pieces: they count
    as special.

    Settings in the files of `transformers` beside it, such as `do_lower_case` in
    tokenizer_config.json, are kept to (`plug_jax.data.tokenizer_files`). A tokenizer.json will do
    in place of the vocab.txt.

    `decode` is not lossless (case, accents and spacing are gone): it joins '##' pieces to what
    precedes them, puts a space between two words of letters or digits, and none next to Chinese
    characters and punctuation; [UNK] is kept as "[UNK]".

    Raises PlugError if the file is missing, empty, not UTF-8, has blank or duplicated lines, or
    lacks a special piece; and for settings beside it that are not honoured here.
    """

    FILE_NAME = VOCAB

    def __init__(self, vocab_file: str | os.PathLike[str]) -> None:
        path = os.fspath(vocab_file)
        read = read_tokenizer(path)
        unused = [i for i, piece in enumerate(read.pieces) if re.fullmatch(r"\[unused\d+\]", piece)]
        files = {VOCAB: read.content, SETTINGS: tokenizer_config(read.rules)}
        super().__init__(path, files, read.pieces, unused, other_than_default(read.rules))
        self.rules = read.rules
        self._word_pieces = WordPieces(read.pieces, UNK, read.rules)

    def _tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        return self._word_pieces(strings)

    def _join(self, ids: list[int]) -> str:
        text = ""
        for piece in (self._pieces[i] for i in ids):
            if piece.startswith("##") and len(piece) > 2:
                text += piece[2:]
            else:
                text += " " + piece if text and _is_word(text[-1]) and _is_word(piece[0]) else piece
        return text


class SentencePieceVocabulary(PlugVocabulary):
    """A SentencePiece model whose pieces include the five special ones as control symbols.

    `train_sentencepiece` makes such models: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4. A run of
    characters outside the vocabulary is one [UNK]. `decode` gives the model's own surface for
    [UNK]: "[UNK]" in models trained here, " ⁇ " by SentencePiece's default. It gives back the text
    as the model normalises it.

    Raises PlugError if the file is missing or no SentencePiece model, lacks a special piece, or
    encodes text that spells a special piece as that piece (user-defined symbols do).
    """

    FILE_NAME = "sentencepiece.model"

    def __init__(self, model_file: str | os.PathLike[str]) -> None:
        path = os.fspath(model_file)
        content = read_file(path)
        model = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(content)
        except (RuntimeError, ValueError) as error:
            raise PlugError(f"{path} is not a SentencePiece model: {error}") from error
        size = model.GetPieceSize()
        pieces = [model.IdToPiece(i) for i in range(size)]
        controls = [
            i for i in range(size) if model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i)
        ]
        super().__init__(path, {self.FILE_NAME: content}, pieces, controls)
        if model.unk_id() != self.unk_id:
            raise PlugError(f"The unknown piece of {path} is {pieces[model.unk_id()]}, not {UNK}.")
        for piece in (PAD, CLS, SEP, MASK):
            if self._special[piece] in model.EncodeAsIds(piece):
                raise PlugError(
                    f"{path} encodes the text {piece} as the special piece: a document could spell "
                    "it. Train the model with it as a control symbol."
                )
        self._model = model
        with tf.init_scope():
            self._tokenizer = tf_text.SentencepieceTokenizer(model=content)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of a text in valid Unicode, and the bytes [start, end) of its UTF-8 that each is of.

        Returns:
            int32 [n], int64 [n], int64 [n].
        """
        with tf.init_scope():
            found = self._tokenizer.tokenize_with_offsets(tf.constant(text))
        ids, starts, ends = (part.numpy() for part in found)
        return ids, starts, ends

    def _tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        return self._tokenizer.tokenize(strings)

    def _join(self, ids: list[int]) -> str:
        return self._model.DecodeIds(ids)


def load_vocabulary(path: str | os.PathLike[str]) -> PlugVocabulary:
    """Loads `*.model` as SentencePiece, and `*.txt` or a tokenizer.json as WordPiece.

    Args:
      path: such a file, or a directory that holds sentencepiece.model, vocab.txt or, instead of the
        latter, tokenizer.json.

    Raises:
      PlugError: the path is neither, the directory holds none or two, or the file is bad.
    """
    path = os.path.expanduser(os.fspath(path))
    if tf.io.gfile.isdir(path):
        found = find_vocabulary(path)
        if found is None:
            raise PlugError(
                f"The directory {path} holds none of {SentencePieceVocabulary.FILE_NAME}, {VOCAB} "
                f"and {TOKENIZER}; name the file itself."
            )
        path = found
    if path.endswith(".model"):
        return SentencePieceVocabulary(path)
    if path.endswith(".txt") or os.path.basename(path) == TOKENIZER:
        return WordPieceVocabulary(path)
    raise PlugError(
        f"{path} is no vocabulary: expected a *.model or *.txt file, {TOKENIZER}, or a directory."
    )


def find_vocabulary(directory: str | os.PathLike[str]) -> str | None:
    """The vocabulary's file in a directory; None without one, PlugError when there are two."""
    directory = os.fspath(directory)
    names = (SentencePieceVocabulary.FILE_NAME, VOCAB, TOKENIZER)
    found = [name for name in names if tf.io.gfile.exists(os.path.join(directory, name))]
    if found[:2] == [SentencePieceVocabulary.FILE_NAME, VOCAB]:
        raise PlugError(
            f"The directory {directory} holds both {' and '.join(found[:2])}; name the file itself."
        )
    return os.path.join(directory, found[0]) if found else None


@functools.cache
def default_vocabulary() -> WordPieceVocabulary:
    """The WordPiece vocabulary for those who name none, of 21,128 pieces as PLUG's and BERT's.

    `plug_jax.data.wordpiece_training.default_pieces` says what it holds; the ids are its own, not
    those of BERT's file.
    """
    return WordPieceVocabulary(os.path.join(os.path.dirname(__file__), "chinese_vocab.txt"))


def save_vocabulary(vocabulary: PlugVocabulary, directory: str | os.PathLike[str]) -> None:
    """Writes the vocabulary's files into `directory`, for `load_vocabulary` to find there."""
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    for name, content in vocabulary.files.items():
        write_whole(os.path.join(directory, name), content)


def _is_word(char: str) -> bool:
    """Whether BERT splits before and after `char` only at a space: no Chinese, no punctuation."""
    return char.isalnum() and not unicodedata.name(char, "").startswith("CJK ")
