"""Vocabularies: text to token ids and back, with BERT's five special pieces."""

from __future__ import annotations

import abc
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from plug_jax.data.wordpiece import WordPieces
from plug_jax.errors import PlugError

PAD, UNK, CLS, SEP, MASK = SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class PlugVocabulary(seqio.Vocabulary, abc.ABC):
    """A `seqio.Vocabulary` with [PAD], [UNK], [CLS], [SEP] and [MASK].

    The ids of the five are found by the text of their pieces; [PAD] has to be 0, which seqio pads
    with. `encode` and `encode_tf` never add a special token and never make one, apart from [UNK],
    out of text that spells it. Two vocabularies are equal when class and file content are.

    Models and tables are loaded eagerly, outside of any graph under construction, so an object can
    be used in the functions of a `tf.data` pipeline, by many threads at once.
    """

    FILE_NAME: ClassVar[str]  # the file's name in a directory written by `save_vocabulary`

    def __init__(
        self, path: str, content: bytes, pieces: Sequence[str], controls: Iterable[int]
    ) -> None:
        super().__init__()
        self._path = path
        self._content = content
        self._hash = hash((type(self).__name__, hashlib.sha256(content).digest()))
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
        """Ids of a text, the same as `encode_tf` gives; no special token is added."""
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
        return type(self) is type(other) and self._content == other._content

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

    `decode` is not lossless (case, accents and spacing are gone): it joins '##' pieces to what
    precedes them, puts a space between two words of letters or digits, and none next to Chinese
    characters and punctuation; [UNK] is kept as "[UNK]".

    Raises PlugError if the file is missing, empty, not UTF-8, has blank or duplicated lines, or
    lacks a special piece.
    """

    FILE_NAME = "vocab.txt"

    def __init__(self, vocab_file: str | os.PathLike[str]) -> None:
        path = os.fspath(vocab_file)
        content = _read(path)
        pieces = _vocab_lines(path, content)
        unused = [i for i, piece in enumerate(pieces) if re.fullmatch(r"\[unused\d+\]", piece)]
        super().__init__(path, content, pieces, unused)
        self._word_pieces = WordPieces(pieces, UNK)

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
        content = _read(path)
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
        super().__init__(path, content, pieces, controls)
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

    def _tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        return self._tokenizer.tokenize(strings)

    def _join(self, ids: list[int]) -> str:
        return self._model.DecodeIds(ids)


def load_vocabulary(path: str | os.PathLike[str]) -> PlugVocabulary:
    """Loads `*.model` as SentencePiece and `*.txt` as WordPiece.

    Args:
      path: such a file, or a directory that holds one, named sentencepiece.model or vocab.txt.

    Raises:
      PlugError: the path is neither, the directory holds none or both, or the file is bad.
    """
    path = os.fspath(path)
    classes = (SentencePieceVocabulary, WordPieceVocabulary)
    if tf.io.gfile.isdir(path):
        files = [os.path.join(path, cls.FILE_NAME) for cls in classes]
        found = [file for file in files if tf.io.gfile.exists(file)]
        if len(found) != 1:
            raise PlugError(
                f"The directory {path} holds {'both' if found else 'none of'} "
                f"{' and '.join(cls.FILE_NAME for cls in classes)}; name the file itself."
            )
        path = found[0]
    for cls in classes:
        if os.path.splitext(path)[1] == os.path.splitext(cls.FILE_NAME)[1]:
            return cls(path)
    raise PlugError(f"{path} is no vocabulary: expected a *.model or *.txt file, or a directory.")


@functools.cache
def default_vocabulary() -> WordPieceVocabulary:
    """The WordPiece vocabulary for those who name none, of 21,128 pieces as PLUG's and BERT's.

    `plug_jax.data.wordpiece_training.default_pieces` says what it holds; the ids are its own, not
    those of BERT's file.
    """
    return WordPieceVocabulary(os.path.join(os.path.dirname(__file__), "chinese_vocab.txt"))


def save_vocabulary(vocabulary: PlugVocabulary, directory: str | os.PathLike[str]) -> None:
    """Writes the vocabulary's file into `directory`, for `load_vocabulary` to find there."""
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    path = os.path.join(directory, vocabulary.FILE_NAME)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(vocabulary._content)


def _read(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
    except tf.errors.OpError as error:
        raise PlugError(f"Cannot read the vocabulary {path}: {error.message}") from error
    if not content:
        raise PlugError(f"The vocabulary {path} is empty.")
    return content


def _vocab_lines(path: str, content: bytes) -> list[str]:
    """The pieces of a vocab.txt, split at line feeds only: other separators can be pieces."""
    try:
        lines = content.decode("utf-8-sig").rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        raise PlugError(f"The vocabulary {path} is not UTF-8: {error}") from error
    pieces: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        piece = line.removesuffix("\r")
        if not piece:
            raise PlugError(f"The vocabulary {path} has no piece on line {number}.")
        if piece in pieces:
            raise PlugError(
                f"The vocabulary {path} has {piece!r} twice, on lines {pieces[piece]} and {number}."
            )
        pieces[piece] = number
    return list(pieces)


def _is_word(char: str) -> bool:
    """Whether BERT splits before and after `char` only at a space: no Chinese, no punctuation."""
    return char.isalnum() and not unicodedata.name(char, "").startswith("CJK ")
