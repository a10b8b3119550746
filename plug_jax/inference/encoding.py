"""Encoder outputs of texts: per token, and as one vector each; `plug-jax embed`.

Axis letters: L tokens of a text, M model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.checkpoints.saved_model import SavedModel
from plug_jax.downstream.token_texts import PlacedTokens, placed_tokens, token_ids
from plug_jax.errors import PlugError, shown
from plug_jax.field_types import check_fields
from plug_jax.inference.batches import batches, numbered
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.jobs import Answer, EncoderWork
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.request_options import EmbeddingOptions, Pooling
from plug_jax.inference.rows import Row

TEXT_FIELDS = ("text", "sentence")  # fields to look up for a row's text, in this order


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of a text: its piece, id, and character span [start, end).

    [CLS] and [SEP] have empty spans at the beginning and end. Spaces and removed characters
    (control characters) belong to no token.
    """

    piece: str
    id: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """The encoder's tokens and states of a text."""

    text: str
    tokens: tuple[Token, ...]  # including [CLS] and [SEP]
    states: np.ndarray  # float32 [L, M], of each token
    left_out: int  # characters cut at the end by `max_length`

    def vector(self, pooling: Pooling = "mean", *, normalize: bool = False) -> np.ndarray:
        """float32 [M], see `EmbeddingOptions`. PlugError for the mean of an empty text."""
        options = EmbeddingOptions(pooling=pooling, normalize=normalize)
        if options.pooling == "cls":
            found = self.states[0]
        elif len(self.tokens) > 2:
            found = self.states[1:-1].mean(axis=0)
        else:
            raise PlugError(_NO_MEAN)
        return _unit(found) if normalize else found


@dataclasses.dataclass(frozen=True)
class Reading:
    """The encoder's input for a text."""

    ids: list[int]  # with [CLS] and [SEP]
    left_out: int  # characters cut at the end


_NO_MEAN = "the text has no tokens, so its states have no mean; leave it out, or set pooling to cls"


def check_max_length(max_length: int | None, longest: int) -> None:
    """PlugError unless `max_length` is valid for a model that reads `longest` tokens."""
    if max_length is not None and not 3 <= max_length <= longest:
        raise PlugError(
            f"max_length is {shown(max_length)}; it must be between 3 and {longest}, the positions "
            "that this model has ([CLS] and [SEP] included)"
        )


def read(
    model: EncoderModel,
    text: str,
    *,
    max_length: int | None = None,
    ids: Sequence[int] | None = None,
) -> Reading:
    """[CLS] text [SEP], cut to `max_length` tokens; `ids` are the text's, if known.

    Raises:
        PlugError: the text is too long for the model, and there is no `max_length`.
    """
    v = model.vocabulary
    ids = v.encode(text) if ids is None else list(ids)
    room = (max_length or model.longest) - 2
    if len(ids) <= room:
        return Reading([v.cls_id, *ids, v.sep_id], 0)
    if max_length is None:
        raise PlugError(
            f"the text has {len(ids)} tokens; this model reads at most {room} ({model.longest} "
            "positions, less [CLS] and [SEP]). Shorten it, or leave out its end with "
            f"max_length={model.longest}"
        )
    end = int(placed_tokens([text], v)[text].ends[room - 1])
    return Reading([v.cls_id, *ids[:room], v.sep_id], len(text) - end)


def read_for_vector(
    model: EncoderModel, text: str, options: EmbeddingOptions, *, ids: Sequence[int] | None = None
) -> Reading:
    """Like `read`. PlugError also for an empty text with mean pooling."""
    reading = read(model, text, max_length=options.max_length, ids=ids)
    if options.pooling == "mean" and len(reading.ids) <= 2:
        raise PlugError(_NO_MEAN)
    return reading


def encode(
    model: EncoderModel,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
) -> list[EncodedText]:
    """Tokens and states of each text.

    Raises:
        PlugError: a text is too long for the model, and there is no `max_length`.
        NoNumbersError: the model's outputs are NaN or infinite.
    """
    check_max_length(max_length, model.longest)
    placed = placed_tokens(texts, model.vocabulary)
    readings = numbered(
        texts, lambda text: read(model, text, max_length=max_length, ids=placed[text].ids.tolist())
    )
    found: list[EncodedText | None] = [None] * len(texts)
    for places, batch in batches(model, readings, reading_size, batch_size):
        all_states = model.states([reading.ids for reading in batch])
        for place, reading, states in zip(places, batch, all_states, strict=False):
            if not np.isfinite(states).all():
                raise NoNumbersError
            text = texts[place]
            tokens = _tokens(model, text, reading, placed[text])
            found[place] = EncodedText(text, tokens, states, reading.left_out)
    return [one for one in found if one is not None]


def embed(
    model: EncoderModel, texts: Sequence[str], options: EmbeddingOptions, *, batch_size: int = 32
) -> np.ndarray:
    """A vector per text, float32 [texts, M].

    Raises:
        PlugError: as `read_for_vector`.
        NoNumbersError: the model's outputs are NaN or infinite.
    """
    check_max_length(options.max_length, model.longest)
    known = token_ids(texts, model.vocabulary)
    readings = numbered(
        texts, lambda text: read_for_vector(model, text, options, ids=known[text].tolist())
    )
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for places, batch in batches(model, readings, reading_size, batch_size):
        vectors[places] = vectors_of(model, batch, options)[: len(places)]
    if not np.isfinite(vectors).all():
        raise NoNumbersError
    return vectors


def vectors_of(
    model: EncoderModel, readings: Sequence[Reading], options: EmbeddingOptions
) -> np.ndarray:
    """A vector per reading, float32 [readings, M], computed together."""
    vectors = model.vectors([reading.ids for reading in readings], options.pooling)
    return _unit(vectors) if options.normalize else vectors


def reading_size(reading: Reading) -> tuple[int, int]:
    """One text, and its tokens."""
    return 1, len(reading.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(EncoderWork):
    """The `embedding` of a row's text, float32 [M], and the number of characters `left_out`."""

    ANSWERS: ClassVar[tuple[str, ...]] = ("embedding", "left_out")

    options: EmbeddingOptions
    text_field: str | None = None  # None: the first present of TEXT_FIELDS

    def __post_init__(self) -> None:
        check_fields(self)

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        options = dataclasses.asdict(self.options)
        return {"work": "embed", "text_field": self.text_field, **options}

    def check(self, saved: SavedModel) -> None:
        """PlugError for a checkpoint without vocabulary, or that reads less than `max_length`."""
        super().check(saved)
        check_max_length(self.options.max_length, saved.config.max_positions)

    def prepare(self, model: EncoderModel, row: Row, index: int) -> Reading:
        """The encoder's input for the row's text; PlugError if it is missing or too long."""
        return read_for_vector(model, row_text(row, self.text_field), self.options)

    def size(self, item: Reading) -> tuple[int, ...]:
        """One text, and its tokens."""
        return reading_size(item)

    def answer(
        self, model: EncoderModel, items: Sequence[Reading]
    ) -> list[Answer | NoNumbersError]:
        """The vector of each."""
        return [
            Answer(
                {
                    "embedding": json_floats(vector),
                    **({"left_out": item.left_out} if item.left_out else {}),
                },
                len(item.ids) - 2,
            )
            if np.isfinite(vector).all()
            else NoNumbersError()
            for item, vector in zip(items, vectors_of(model, items, self.options), strict=True)
        ]


def row_text(row: Row, field: str | None) -> str:
    """The text of a row's field; None: the first present of TEXT_FIELDS."""
    return row.text(TEXT_FIELDS if field is None else (field,))


def json_floats(vector: np.ndarray) -> list[float]:
    """float32 values with nine digits, which determine the same float32."""
    return [float(f"{value:.9g}") for value in vector.tolist()]


def _tokens(
    model: EncoderModel, text: str, reading: Reading, placed: PlacedTokens
) -> tuple[Token, ...]:
    v, kept = model.vocabulary, len(reading.ids) - 2
    starts = [0, *placed.starts[:kept].tolist(), len(text) - reading.left_out]
    ends = [0, *placed.ends[:kept].tolist(), len(text) - reading.left_out]
    return tuple(
        Token(v.id_to_piece(i), i, start, end)
        for i, start, end in zip(reading.ids, starts, ends, strict=True)
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """[..., M] scaled to length 1; 0 stays 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return unit
