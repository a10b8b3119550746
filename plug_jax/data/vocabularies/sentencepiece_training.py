"""Training of SentencePiece vocabularies for Chinese text."""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from plug_jax.data.vocabularies.output_files import SENTENCEPIECE, output_path, write_files
from plug_jax.data.vocabularies.vocabulary import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_PIECES,
    UNK,
    SentencePieceVocabulary,
)
from plug_jax.errors import PlugError

ModelType = Literal["char", "unigram", "bpe"]

# Default sample for training: at most 6 GB of text.
MAX_SENTENCES = 2_000_000

# SentencePiece skips sentences above 4192 bytes, so longer texts are cut: 4 bytes a character.
_PIECE_CHARACTERS = 1000
# SentencePiece marks unknown characters with this one and skips sentences that contain it.
_RESERVED = "\u2585"


def train_sentencepiece(
    texts: Iterable[str],
    *,
    directory: str | os.PathLike[str],
    vocab_size: int,
    model_type: ModelType = "char",
    character_coverage: float | None = None,
    max_sentences: int = MAX_SENTENCES,
    overwrite: bool = False,
) -> SentencePieceVocabulary:
    """Trains a SentencePiece model and writes `sentencepiece.model` and `.vocab` to `directory`.

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then regular pieces. No space is prepended to
    texts. Text is normalised like NFKC, white space becomes a space and control characters are
    removed, but punctuation and symbols are kept: `，` does not become `,`. The same texts and
    arguments give the same model.

    Args:
      texts: documents, of any length; read once.
      directory: output directory, created if missing.
      vocab_size: number of pieces, including the five special ones.
      model_type: "char" takes the most frequent characters; "unigram" and "bpe" learn words.
      character_coverage: share of the characters read that get pieces, above 0 and at most 1.
        Default: 1 for "char", where `vocab_size` decides, and 0.9995 for the others.
      max_sentences: train on a random sample of this many pieces (of at most 1,000 characters) of
        the texts, at least 101; 0 for everything, which must fit in memory. The sample takes up to
        3 KB per piece, and at least as much again to learn words.
      overwrite: whether an existing model may be replaced.

    Raises:
      PlugError: the model or a vocab.txt exists, there is no text, or the text does not suit
        `vocab_size`; the message then gives the size that would.
    """
    path = output_path(directory, SENTENCEPIECE, overwrite=overwrite)
    if model_type not in get_args(ModelType):
        raise PlugError(f"Unknown model type {model_type!r}: use char, unigram or bpe.")
    if vocab_size <= len(SPECIAL_PIECES):
        raise PlugError(
            f"A vocabulary of {vocab_size} has no room beside the {len(SPECIAL_PIECES)} special "
            "pieces; ask for more."
        )
    if character_coverage is None:
        character_coverage = 1.0 if model_type == "char" else 0.9995
    if not 0 < character_coverage <= 1:
        raise PlugError(f"The character coverage is {character_coverage}; it must be in (0, 1].")
    if 0 < max_sentences <= 100 or max_sentences < 0:
        raise PlugError(
            f"A sample of {max_sentences} sentences is too small; ask for 101 or more, or for 0, "
            "which is all."
        )
    model = _train(
        _Sentences(texts),
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=character_coverage,
        max_sentences=max_sentences,
    )
    _write(model, path)
    return SentencePieceVocabulary(path)


class _Sentences:
    """The trainer's input: the texts in pieces that it does not skip; keeps their error."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                text = text.replace(_RESERVED, " ")
                for start in range(0, len(text), _PIECE_CHARACTERS):
                    piece = text[start : start + _PIECE_CHARACTERS]
                    if not piece.isspace():
                        self.count += 1
                        yield piece
        except (Exception, KeyboardInterrupt) as error:
            self.error = error  # the trainer turns it into its own RuntimeError
            raise


def _train(
    sentences: _Sentences,
    *,
    vocab_size: int,
    model_type: ModelType,
    character_coverage: float,
    max_sentences: int,
) -> bytes:
    """The model file's content."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as rules:
        rules.write(_normalization_rules())
        rules.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocab_size,
                hard_vocab_limit=False,  # a text too short for vocab_size shows the possible size
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                pad_piece=PAD,
                unk_piece=UNK,
                bos_piece=CLS,
                eos_piece=SEP,
                control_symbols=[MASK],
                unk_surface=UNK,
                normalization_rule_tsv=rules.name,
                add_dummy_prefix=False,
                num_threads=16,  # fixed: the rounding of unigram training depends on it
                minloglevel=2,
                model_type=model_type,
                character_coverage=character_coverage,
                input_sentence_size=max_sentences,  # 0: all
                shuffle_input_sentence=True,
            )
        except (RuntimeError, ValueError) as error:
            raise _explain(error, sentences, vocab_size) from error
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    size = len(proto.pieces)
    if size < vocab_size:
        raise PlugError(
            f"This text gives at most {size} pieces of type {model_type}, not {vocab_size}: "
            "ask for a smaller vocabulary or add text."
        )
    # Remove the temporary file's name, so that the same text gives the same bytes.
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _explain(error: Exception, sentences: _Sentences, vocab_size: int) -> BaseException:
    """The exception to raise instead of SentencePiece's own."""
    if sentences.error is not None:
        return sentences.error
    if not sentences.count:
        return PlugError("There is no text to train the vocabulary on.")
    required = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if required:
        return PlugError(
            f"A vocabulary of {vocab_size} is too small for the characters of this text: it takes "
            f"at least {required[1]}, or a lower character coverage."
        )
    return PlugError(f"SentencePiece cannot train on this text: {error}")


def _write(model: bytes, path: str) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = (
        f"{pieces.IdToPiece(i)}\t{pieces.GetScore(i):g}\n" for i in range(pieces.GetPieceSize())
    )
    beside = os.path.splitext(os.path.basename(path))[0] + ".vocab"
    write_files(path, model, beside, "".join(lines).encode())


@functools.cache
def _normalization_rules() -> str:
    """SentencePiece's rules file: code points, a tab, their replacement."""
    rules: dict[str, str] = {}
    # NUL cannot be a rule; it is in no vocabulary.
    for char in map(chr, range(1, sys.maxunicode + 1)):
        category = unicodedata.category(char)
        if category[0] == "Z" or char in "\t\n\v\f\r\x85":
            rules[char] = " "
        elif category in ("Cc", "Cf"):
            rules[char] = ""
        elif category[0] in "LMN":
            rules[char] = unicodedata.normalize("NFKC", char)
            # Letters spelt with combining accents. Hangul, of 11,172 syllables, is left as it is.
            if not "\uac00" <= char <= "\ud7a3":
                rules[unicodedata.normalize("NFD", char)] = rules[char]
    return "".join(
        f"{_code_points(source)}\t{_code_points(target)}\n"
        for source, target in rules.items()
        if source != target
    )


def _code_points(text: str) -> str:
    return " ".join(f"{ord(char):X}" for char in text)
