"""Tokens of texts, and their character spans."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from plug_jax.data.vocabularies.vocabulary import (
    PlugVocabulary,
    SentencePieceVocabulary,
    WordPieceVocabulary,
)
from plug_jax.errors import PlugError

_TEXTS_A_CALL = 4096
_WORD_BEGINNING = "▁"  # SentencePiece's mark of a space
_WORD_INSIDE = "##"  # WordPiece's mark of a continuation piece


@dataclasses.dataclass(frozen=True)
class PlacedTokens:
    """int32 [n] each: ids, and the character spans [start, end) in the text."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def token_ids(texts: Iterable[str], vocabulary: PlugVocabulary) -> dict[str, np.ndarray]:
    """Ids, int32 [n], of each distinct text. PlugError for invalid Unicode."""
    different = list(dict.fromkeys(texts))
    found: dict[str, np.ndarray] = {}
    for first in range(0, len(different), _TEXTS_A_CALL):
        part = different[first : first + _TEXTS_A_CALL]
        ragged = vocabulary.encode_tf(_utf8(part))
        values, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
        found |= zip(part, np.split(values, splits[1:-1]), strict=True)
    return found


def _utf8(texts: Sequence[str]) -> tf.Tensor:
    """tf.string [s]; JSON can spell lone surrogates, which UTF-8 cannot encode."""
    try:
        return tf.constant([text.encode() for text in texts])
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 10) : error.end + 10]
        raise PlugError(f"a text holds half of a surrogate pair: {around!r}") from error


def character_ids(text: str, vocabulary: PlugVocabulary, known: dict[str, int]) -> np.ndarray:
    """An id per character, int32 [n]: [UNK] for one without a piece, such as a space.

    `known` caches look-ups.
    """
    if new := [character for character in dict.fromkeys(text) if character not in known]:
        for character, ids in token_ids(new, vocabulary).items():
            pieces = [i for i in ids.tolist() if vocabulary.id_to_piece(i) != _WORD_BEGINNING]
            known[character] = pieces[0] if len(pieces) == 1 else vocabulary.unk_id
    return np.array([known[character] for character in text], np.int32)


def placed_tokens(texts: Iterable[str], vocabulary: PlugVocabulary) -> dict[str, PlacedTokens]:
    """The tokens of each distinct text with their spans.

    A vocabulary normalises texts (case, width, accents, spaces) before splitting; spans refer to
    the text as given. If a character becomes several tokens, it is in the spans of all. Spans do
    not begin or end with spaces or removed characters; [UNK] spans the whole word.
    """
    different = list(dict.fromkeys(texts))
    _utf8(different)  # check all of them
    if isinstance(vocabulary, SentencePieceVocabulary):
        nothing: dict[str, bool] = {}
        return {text: _of_normalised(text, vocabulary, nothing) for text in different}
    assert isinstance(vocabulary, WordPieceVocabulary)
    known = token_ids(different, vocabulary)
    words = zip(different, vocabulary.word_places(different), strict=True)
    return {text: _of_words(places, known[text], vocabulary) for text, places in words}


def _of_normalised(
    text: str, vocabulary: SentencePieceVocabulary, nothing: dict[str, bool]
) -> PlacedTokens:
    """Spans from bytes of the normalised text; empty for pieces of only spaces.

    `nothing` caches which characters the vocabulary removes or treats as spaces.
    """
    ids, lengths, sources = vocabulary.encode_with_sources(text)
    after = _next_sources(sources, len(text))
    spans, at = [], 0
    for token_id, length in zip(ids, lengths, strict=True):
        start, end = sources[at], after[at + length - 1]
        if vocabulary.id_to_piece(token_id).strip(_WORD_BEGINNING) == "":
            end = start
        spans.append(_without_ends(text, start, end, vocabulary, nothing))
        at += length
    return _placed(ids, spans)


def _next_sources(sources: Sequence[int], end: int) -> list[int]:
    """For each the next greater one, and `end` for the greatest; the input is ascending."""
    after, following = [], end
    for place, source in reversed(list(enumerate(sources))):
        if place + 1 < len(sources) and sources[place + 1] > source:
            following = sources[place + 1]
        after.append(following)
    return after[::-1]


def _without_ends(
    text: str,
    start: int,
    end: int,
    vocabulary: SentencePieceVocabulary,
    nothing: dict[str, bool],
) -> tuple[int, int]:
    """The span without removed characters and spaces at its ends."""

    def is_nothing(character: str) -> bool:
        if character not in nothing:
            nothing[character] = vocabulary.normalise(character).strip(_WORD_BEGINNING) == ""
        return nothing[character]

    while start < end and is_nothing(text[start]):
        start += 1
    while start < end and is_nothing(text[end - 1]):
        end -= 1
    return start, end


def _of_words(
    words: Iterable[Sequence[int]], ids: np.ndarray, vocabulary: WordPieceVocabulary
) -> PlacedTokens:
    """Spans of a word's consecutive pieces, or of the whole word for [UNK].

    `words`: source positions of their characters.
    """
    spans: list[tuple[int, int]] = []
    for word in words:
        at = 0
        while at < len(word):
            token_id = int(ids[len(spans)])
            length = len(word) if token_id == vocabulary.unk_id else _length(token_id, vocabulary)
            places = word[at : at + length]
            spans.append((min(places), max(places) + 1))
            at += length
    return _placed(ids, spans)


def _length(token_id: int, vocabulary: WordPieceVocabulary) -> int:
    """Characters of a piece in its word."""
    piece = vocabulary.id_to_piece(token_id)
    return len(piece) - len(_WORD_INSIDE) * (piece.startswith(_WORD_INSIDE) and len(piece) > 2)


def _placed(ids: Sequence[int] | np.ndarray, spans: Sequence[tuple[int, int]]) -> PlacedTokens:
    places = np.array(spans, np.int32).reshape(-1, 2)
    return PlacedTokens(np.asarray(ids, np.int32), places[:, 0], places[:, 1])
