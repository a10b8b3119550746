"""Vocabularies: text to token ids and back, with BERT's five special pieces."""

from __future__ import annotations

import abc
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from plug_jax.atomic_files import write_whole
from plug_jax.data.fetched_files import read_file
from plug_jax.data.vocabularies.tokenizer_files import (
    SETTINGS,
    TOKENIZER,
    VOCAB,
    other_than_default,
    read_tokenizer,
    tokenizer_config,
)
from plug_jax.data.vocabularies.wordpiece import PlacedWords, WordPieces
from plug_jax.errors import PlugError, shown, shown_path

PAD, UNK, CLS, SEP, MASK = SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class PlugVocabulary(seqio.Vocabulary, abc.ABC):
    """A `seqio.Vocabulary` with [PAD], [UNK], [CLS], [SEP] and [MASK].

    The five ids are found by their pieces' text; [PAD] must be 0, seqio's padding. `encode` and
    `encode_tf` never add special tokens, and text that spells one is not encoded as one, except
    [UNK]. Two vocabularies are equal if class and files' content are.

    Models and tables are loaded eagerly, outside any graph under construction, so an object can be
    used in the functions of a `tf.data` pipeline, by many threads at once.
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
        """Text of ids in the vocabulary, without [PAD], [CLS], [SEP], [MASK]."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """All its files: names in its own directory, and their content."""
        return self._files

    @property
    def settings(self) -> Mapping[str, bool]:
        """Settings besides the pieces that affect a text's ids, if not the default."""
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
        """seqio's first token: [CLS]."""
        return self.cls_id

    @property
    def eos_id(self) -> int:
        """seqio's last token: [SEP]."""
        return self.sep_id

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Sorted ids of the five special pieces and all other pieces that no text encodes to.

        The latter are BERT's [unusedN] and SentencePiece's control and unused pieces.
        """
        return self._special_ids

    @property
    def regular_ids(self) -> np.ndarray:
        """The ids for random replacement: int32, all ids not in `special_ids`."""
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
                f"{token_id} is not an id of the vocabulary {self._path}, which has "
                f"{self.vocab_size}."
            )
        return self._pieces[token_id]

    def encode(self, s: str) -> list[int]:
        """Ids of a text, equal to `encode_tf`'s; no special token is added.

        Raises PlugError for a lone surrogate, which Python makes from undecodable bytes.
        """
        try:
            s.encode()
        except UnicodeEncodeError as error:
            raise PlugError(f"{shown(s)} is not valid Unicode: {error.reason}") from error
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
        """Text of ids, without [PAD], [CLS], [SEP] and [MASK]; ids out of range become [UNK].

        Unlike other seqio vocabularies it does not stop at the first [SEP]: an encoder input has
        several.
        """
        dropped = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        ids = ids.numpy() if isinstance(ids, tf.Tensor) else ids  # faster to iterate over
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

    # seqio's abstract hooks; the public methods that would call them are overridden above.
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
    """BERT's WordPiece with a `vocab.txt`: one piece per line, whose number is its id.

    Text is cleaned, lower-cased, stripped of accents, split at spaces, punctuation and around
    each Chinese character, and each word is cut greedily into its longest known pieces, as in
    PLUG's released tokenizer (`wordpiece`). A word that cannot be cut, or is longer than 100
    characters, is one [UNK]. The [unusedN] pieces count as special and are never drawn as random
    replacements.

    Settings in `transformers` files next to it, such as `do_lower_case` in tokenizer_config.json,
    are followed (`tokenizer_files`). A tokenizer.json may replace the vocab.txt.

    `decode` is not lossless (case, accents and spacing are lost): it joins '##' pieces to their
    predecessors, puts a space between two words of letters or digits, and none next to Chinese
    characters and punctuation; [UNK] is kept as "[UNK]".

    Raises PlugError if the file is missing, empty, not UTF-8, has blank or duplicated lines, or
    lacks a special piece; and for unsupported settings next to it.
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
        self._placed_words = PlacedWords(read.rules)

    def word_places(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """For each word of each text, the source positions of the cleaned word's characters."""
        return self._placed_words(texts)

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
    characters outside the vocabulary is one [UNK]. `decode` uses the model's own surface for [UNK]:
    "[UNK]" in models trained here, " ⁇ " by SentencePiece's default. It returns the text as
    normalised by the model.

    Raises PlugError if the file is missing or not a SentencePiece model, lacks a special piece, or
    encodes text that spells a special piece as that piece (as user-defined symbols do).
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

    def encode_with_sources(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of a text in valid Unicode, with their lengths and source positions.

        Returns:
            ids; the length of each in bytes of the normalised text; and for each of these bytes the
            position in `text` of its source character, or of the first of several. Bytes without a
            source (a space that the model prepends) have the position of the next one.
        """
        ids = self._model.EncodeAsIds(text)
        pieces = self._model.EncodeAsPieces(text)  # for [UNK], the unknown text
        normalised, places = self._model.Normalize(text, with_offsets=True)
        lengths = [
            1 if self._model.IsByte(i) else len(piece.encode())
            for i, piece in zip(ids, pieces, strict=True)
        ]
        sources = [
            place
            for character, place in zip(normalised, places, strict=False)  # and the end's
            for _ in character.encode()
        ]
        return ids, lengths, sources

    def normalise(self, text: str) -> str:
        """A text as the model reads it: "▁" instead of spaces."""
        return self._model.Normalize(text)

    def _tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        return self._tokenizer.tokenize(strings)

    def _join(self, ids: list[int]) -> str:
        return self._model.DecodeIds(ids)


def load_vocabulary(path: str | os.PathLike[str]) -> PlugVocabulary:
    """Loads `*.model` as SentencePiece, and `*.txt` or a tokenizer.json as WordPiece.

    Args:
      path: such a file, or a directory with sentencepiece.model, or with vocab.txt or
        tokenizer.json.

    Raises:
      PlugError: the path is neither, the directory has none or two, or the file is invalid.
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
    if not tf.io.gfile.exists(path):
        raise PlugError(f"There is no vocabulary {shown_path(path)}: no file and no directory.")
    raise PlugError(
        f"{path} is not a vocabulary: expected a *.model or *.txt file, {TOKENIZER}, or a "
        "directory."
    )


def find_vocabulary(directory: str | os.PathLike[str]) -> str | None:
    """The vocabulary's file in a directory; None without one, PlugError if there are two."""
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
    """The default WordPiece vocabulary, of 21,128 pieces like PLUG's and BERT's.

    `wordpiece_training.default_pieces` describes its content; ids differ from BERT's file.
    """
    return WordPieceVocabulary(os.path.join(os.path.dirname(__file__), "chinese_vocab.txt"))


def save_vocabulary(vocabulary: PlugVocabulary, directory: str | os.PathLike[str]) -> None:
    """Writes the vocabulary's files to `directory`, for `load_vocabulary`."""
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    for name, content in vocabulary.files.items():
        write_whole(os.path.join(directory, name), content)


def _is_word(char: str) -> bool:
    """Whether BERT does not split at `char`: neither Chinese nor punctuation."""
    return char.isalnum() and not unicodedata.name(char, "").startswith("CJK ")
