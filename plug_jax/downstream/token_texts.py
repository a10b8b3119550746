"""Tokens of texts, and where in the text each token stands."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from plug_jax.data.vocabularies import (
    PlugVocabulary,
    SentencePieceVocabulary,
    WordPieceVocabulary,
)
from plug_jax.data.wordpiece import is_ideograph
from plug_jax.errors import PlugError

_TEXTS_A_CALL = 4096
_WORD_BEGINNING = "▁"  # SentencePiece's mark of a space
_WORD_INSIDE = "##"  # WordPiece's of a piece that a word goes on with


@dataclasses.dataclass(frozen=True)
class PlacedTokens:
    """int32 [n] each: ids, and the characters [start, end) of the text that a token stands for."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def token_ids(texts: Iterable[str], vocabulary: PlugVocabulary) -> dict[str, np.ndarray]:
    """Ids, int32 [n], of each different text. PlugError for one that is no valid Unicode."""
    different = list(dict.fromkeys(texts))
    found: dict[str, np.ndarray] = {}
    for first in range(0, len(different), _TEXTS_A_CALL):
        part = different[first : first + _TEXTS_A_CALL]
        ragged = vocabulary.encode_tf(_utf8(part))
        values, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
        found |= zip(part, np.split(values, splits[1:-1]), strict=True)
    return found


def _utf8(texts: Sequence[str]) -> tf.Tensor:
    """tf.string [s]; JSON can spell half of a surrogate pair, which UTF-8 has not."""
    try:
        return tf.constant([text.encode() for text in texts])
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 10) : error.end + 10]
        raise PlugError(f"a text holds half of a surrogate pair: {around!r}") from error


def character_ids(text: str, vocabulary: PlugVocabulary, known: dict[str, int]) -> np.ndarray:
    """An id for each character, int32 [n]: [UNK] for one that is no piece, such as a space.

    `known` keeps what was looked up.
    """
    if new := [character for character in dict.fromkeys(text) if character not in known]:
        for character, ids in token_ids(new, vocabulary).items():
            pieces = [i for i in ids.tolist() if vocabulary.id_to_piece(i) != _WORD_BEGINNING]
            known[character] = pieces[0] if len(pieces) == 1 else vocabulary.unk_id
    return np.array([known[character] for character in text], np.int32)


def placed_tokens(texts: Iterable[str], vocabulary: PlugVocabulary) -> dict[str, PlacedTokens]:
    """The tokens of each different text with their places.

    A vocabulary changes texts (case, width, accents, spaces) before it cuts them: places are of the
    text as it was given. Where a character becomes several tokens, each of them has all of it.
    Spaces, and what the vocabulary removes, are at no end of a token; [UNK] has the whole word.
    """
    different = list(dict.fromkeys(texts))
    _utf8(different)  # all of them are
    if isinstance(vocabulary, SentencePieceVocabulary):
        return {
            text: _from_bytes(text, *vocabulary.encode_with_offsets(text)) for text in different
        }
    assert isinstance(vocabulary, WordPieceVocabulary)
    known = token_ids(different, vocabulary)
    # Words cost time, and are only of use where pieces alone do not tell what a text is made of.
    unsure = [text for text in different if vocabulary.unk_id in known[text]]
    words = {text: _words(text, chinese=vocabulary.rules.tokenize_chinese_chars) for text in unsure}
    known |= token_ids((text[a:b] for text in unsure for a, b in words[text]), vocabulary)
    return {
        text: _by_words(text, words.get(text), known, vocabulary)
        or _placed(text, known[text], vocabulary)
        for text in different
    }


def _from_bytes(text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> PlacedTokens:
    """Of places in the UTF-8 of the text, without the spaces around them."""
    lengths = [len(character.encode()) for character in text]
    of_byte = np.repeat(np.arange(len(text)), lengths)  # the character of each byte
    of_byte = np.append(of_byte, len(text)).astype(np.int32)
    spans = []
    for start, end in zip(of_byte[starts].tolist(), of_byte[ends].tolist(), strict=True):
        end = max(end, min(start + 1, len(text)))  # a part of a character
        while start < end and not _plain(text[start]):
            start += 1
        while start < end and not _plain(text[end - 1]):
            end -= 1
        spans.append((start, end))
    places = np.array(spans, np.int32).reshape(-1, 2)
    return PlacedTokens(ids.astype(np.int32), places[:, 0], places[:, 1])


def _words(text: str, *, chinese: bool) -> list[tuple[int, int]]:
    """Where the words of BERT's basic tokenizer stand; Chinese characters may be some of their own.

    >>> _words("ab，3天 c", chinese=True)
    [(0, 2), (2, 3), (3, 4), (4, 5), (6, 7)]
    """
    spans: list[tuple[int, int]] = []
    joins = False
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == "letter" or (kind == "chinese" and not chinese):
            if joins:
                spans[-1] = (spans[-1][0], place + 1)
            else:
                spans.append((place, place + 1))
            joins = True
        else:
            joins = False
            if kind != "space":
                spans.append((place, place + 1))
    return spans


@functools.lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Literal["space", "chinese", "alone", "letter"]:
    """What a character is to BERT; what it removes counts as a letter."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category[0] == "Z":
        return "space"
    if is_ideograph(character):
        return "chinese"
    if category[0] == "P" or (character.isascii() and category[0] == "S"):
        return "alone"
    return "letter"


def _by_words(
    text: str,
    words: Sequence[tuple[int, int]] | None,
    known: Mapping[str, np.ndarray],
    vocabulary: PlugVocabulary,
) -> PlacedTokens | None:
    """Each word's tokens within the word; None without words, or if they are not the vocabulary's.

    The latter is so for a few rare characters, and is seen by the ids.
    """
    if words is None:
        return None
    spans: list[tuple[int, int]] = []
    for first, last in words:
        ids = known[text[first:last]].tolist()
        found = _in_word(text, first, last, [_plain_piece(i, vocabulary) for i in ids])
        if found is None:
            return None
        spans += found
    of_words = [known[text[first:last]] for first, last in words]
    together = np.concatenate(of_words) if of_words else np.zeros(0, np.int32)
    if not np.array_equal(together, known[text]):
        return None
    places = np.array(spans, np.int32).reshape(-1, 2)
    return PlacedTokens(known[text].astype(np.int32), places[:, 0], places[:, 1])


def _in_word(
    text: str, first: int, last: int, pieces: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Places of the pieces of one word; [UNK], a piece "", is all of it. None if they differ."""
    places = [place for place in range(first, last) for _ in _plain(text[place])]
    if list(pieces) == [""]:
        return [(places[0], places[-1] + 1) if places else (first, last)]
    if not all(pieces) or "".join(pieces) != "".join(map(_plain, text[first:last])):
        return None
    ends = list(itertools.accumulate(map(len, pieces)))
    return [
        (places[end - len(piece)], places[end - 1] + 1)
        for piece, end in zip(pieces, ends, strict=True)
    ]


def _placed(text: str, ids: np.ndarray, vocabulary: PlugVocabulary) -> PlacedTokens:
    """Pieces looked for in the text, in order, both without differences of case and the like.

    What lies between two that are found is that of the [UNK]s between them.
    """
    letters = [(_plain(character), place) for place, character in enumerate(text)]
    plain = "".join(characters for characters, _ in letters)
    # Where each plain character comes from, and the end of the text.
    places = [place for characters, place in letters for _ in characters] + [len(text)]
    pieces = [_plain_piece(int(i), vocabulary) for i in ids]
    starts, ends = np.zeros(len(pieces), np.int32), np.zeros(len(pieces), np.int32)
    at, unknown = 0, []  # the next plain character; pieces that wait for one that is found
    for number, piece in enumerate(pieces):
        found = plain.find(piece, at) if piece else -1
        if found < 0:
            unknown.append(number)
            continue
        if unknown:
            _share(unknown, places, plain, at, found, starts, ends)
            unknown = []
        at = found + len(piece)
        starts[number], ends[number] = places[found], places[at - 1] + 1
    if unknown:
        _share(unknown, places, plain, at, len(plain), starts, ends)
    return PlacedTokens(ids.astype(np.int32), starts, ends)


def _share(
    unknown: Sequence[int],
    places: Sequence[int],
    plain: str,
    first: int,
    last: int,
    starts: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Divide the plain characters from `first` to `last` among unknown pieces, equally."""
    cuts = np.linspace(first, last, len(unknown) + 1).astype(int)
    for number, begin, end in zip(unknown, cuts[:-1], cuts[1:], strict=True):
        starts[number] = places[begin]
        ends[number] = places[end - 1] + 1 if end > begin else places[begin]


@functools.lru_cache(maxsize=1 << 16)  # of characters and pieces, most come again and again
def _plain(text: str) -> str:
    """Without case, width, accents, spaces and control characters."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(
        character
        for character in decomposed
        if unicodedata.category(character) not in ("Mn", "Cc", "Cf", "Zs")
    )


def _plain_piece(token_id: int, vocabulary: PlugVocabulary) -> str:
    """A piece as `_plain` has it; "" for [UNK]."""
    if token_id == vocabulary.unk_id:
        return ""
    piece = vocabulary.id_to_piece(token_id)
    if piece.startswith(_WORD_INSIDE) and len(piece) > len(_WORD_INSIDE):
        piece = piece.removeprefix(_WORD_INSIDE)
    return _plain(piece.replace(_WORD_BEGINNING, ""))
