"""Tokens of texts, and where in the text each token stands."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from plug_jax.data.vocabularies import PlugVocabulary
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
        raise PlugError(f"a text holds half of a surrogate pair: {error.object!r}") from error


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

    A vocabulary changes texts (case, width, accents, spaces) before it cuts them, and [UNK] may be
    a word of any length: pieces are looked for in the text, in order, both without these
    differences, and what lies between two that are found is the [UNK]'s between them.
    """
    return {
        text: _placed(text, ids, vocabulary) for text, ids in token_ids(texts, vocabulary).items()
    }


def _placed(text: str, ids: np.ndarray, vocabulary: PlugVocabulary) -> PlacedTokens:
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
