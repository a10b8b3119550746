"""Candidates for [MASK]: the work of `plug-jax fill-mask`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.checkpoints.saved_model import SavedModel
from plug_jax.data.vocabularies.vocabulary import MASK, PlugVocabulary, SentencePieceVocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.inference.batches import batches, numbered
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.encoding import row_text
from plug_jax.inference.jobs import Answer, EncoderWork
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.placement import power_of_two
from plug_jax.inference.request_options import MaskOptions
from plug_jax.inference.rows import Row


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate piece; "##" marks a continuation of the preceding word."""

    piece: str
    id: int
    probability: float  # over the whole vocabulary


@dataclasses.dataclass(frozen=True)
class FilledMask:
    """One [MASK] of a text: its character span [start, end), and candidates, best first."""

    start: int
    end: int
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class MaskedReading:
    """The encoder's input for a text, and the positions of its masks."""

    ids: list[int]  # with [CLS], [SEP] and [MASK]
    places: list[int]  # positions of the masks in the ids
    starts: list[int]  # positions of the masks in the text


def check_fills_masks(saved: SavedModel) -> None:
    """PlugError for a checkpoint whose masked LM head was not trained with its encoder."""
    if saved.task is not None:
        raise PlugError(
            f"this checkpoint was fine-tuned for {saved.task['name']!r}, and its masked LM head "
            "was not trained with it: use the checkpoint that fine-tuning started from "
            "(INITIAL_CHECKPOINT)"
        )
    if "mlm_head" in (saved.converted_from or {}).get("fresh", ()):
        raise PlugError(
            "the masked LM head of this checkpoint was newly initialised when it was converted "
            "(--fresh mlm_head), and is untrained: convert weights that have one, or train it"
        )


def read_masked(model: EncoderModel, text: str) -> MaskedReading:
    """[CLS] text [SEP], with each "[MASK]" in the text encoded as the mask piece.

    Raises:
        PlugError: the text has no [MASK], or is too long for the model.
    """
    v = model.vocabulary
    parts = text.split(MASK)
    if len(parts) == 1:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise PlugError(
            f"there is no {MASK} in {shown!r}: write it where a piece is to be predicted"
        )
    ids, places, starts, at = [v.cls_id], [], [], 0
    for number, part in enumerate(parts):
        if number:
            places.append(len(ids))
            starts.append(at - len(MASK))
            ids.append(v.mask_id)
        ids += _between(v, part, after_mask=number > 0, before_mask=number < len(parts) - 1)
        at += len(part) + len(MASK)
    ids.append(v.sep_id)
    if len(ids) > model.longest:
        raise PlugError(
            f"the text has {len(ids) - 2} tokens; this model reads at most {model.longest - 2} "
            f"({model.longest} positions, less [CLS] and [SEP]). Shorten it"
        )
    return MaskedReading(ids, places, starts)


def _between(
    vocabulary: PlugVocabulary, part: str, *, after_mask: bool, before_mask: bool
) -> list[int]:
    """Ids of the text between masks, or at an end of the text.

    SentencePiece strips a text, but a space next to a mask is inside it. So a one-character piece
    replaces the mask while encoding, if there is one that is never merged.
    """
    left, right = after_mask and part[:1].isspace(), before_mask and part[-1:].isspace()
    if (left or right) and isinstance(vocabulary, SentencePieceVocabulary):
        for piece in map(vocabulary.id_to_piece, range(vocabulary.vocab_size)):
            if len(piece) > 1 or not piece.isalpha():
                continue
            alone = vocabulary.encode(piece)
            ids = vocabulary.encode(piece * left + part + piece * right)
            if len(alone) == 1 and ids[:left] == alone * left and ids[-1:] * right == alone * right:
                return ids[left : len(ids) - right]
    return vocabulary.encode(part) if part else []


def fill(
    model: EncoderModel, texts: Sequence[str], options: MaskOptions, *, batch_size: int = 32
) -> list[list[FilledMask]]:
    """The masks of each text, in order.

    Masks are filled independently of each other.

    Raises:
        PlugError: a text without [MASK], or one that is too long for the model.
        NoNumbersError: the model's outputs are NaN or infinite.
    """
    readings = numbered(texts, lambda text: read_masked(model, text))
    found: list[list[FilledMask]] = [[] for _ in texts]
    for places, batch in batches(model, readings, masked_size, batch_size):
        for place, masks in zip(places, fill_batch(model, batch, options), strict=False):
            if masks is None:
                raise NoNumbersError
            found[place] = masks
    return found


def fill_batch(
    model: EncoderModel, readings: Sequence[MaskedReading], options: MaskOptions
) -> list[list[FilledMask] | None]:
    """The masks of each, computed together; None if the outputs are not finite."""
    pieces = model.vocabulary.vocab_size
    made = model.fill(
        [reading.ids for reading in readings],
        [reading.places for reading in readings],
        min(options.top_k or pieces, pieces),
    )
    return [
        _masks(model, reading, log_probs, ids) if np.isfinite(log_probs[:, 0]).all() else None
        for reading, (log_probs, ids) in zip(readings, made, strict=True)
    ]


def masked_size(reading: MaskedReading) -> tuple[int, int]:
    """Number of masks, which have logits at the same time, and of tokens."""
    return power_of_two(len(reading.places)), len(reading.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFilling(EncoderWork):
    """Adds `masks` for a row's text: `start`, `end` and `candidates` of each."""

    ANSWERS: ClassVar[tuple[str, ...]] = ("masks",)

    options: MaskOptions
    text_field: str | None = None  # None: the first present of `encoding.TEXT_FIELDS`

    def __post_init__(self) -> None:
        check_fields(self)

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        options = dataclasses.asdict(self.options)
        return {"work": "fill-mask", "text_field": self.text_field, **options}

    def check(self, saved: SavedModel) -> None:
        """PlugError for an unsuitable checkpoint."""
        super().check(saved)
        check_fills_masks(saved)

    def prepare(self, model: EncoderModel, row: Row, index: int) -> MaskedReading:
        """The encoder's input for the row's text; PlugError without a text or [MASK]."""
        return read_masked(model, row_text(row, self.text_field))

    def size(self, item: MaskedReading) -> tuple[int, ...]:
        """Masks and tokens."""
        return masked_size(item)

    def answer(
        self, model: EncoderModel, items: Sequence[MaskedReading]
    ) -> list[Answer | NoNumbersError]:
        """The masks of each."""
        return [
            NoNumbersError()
            if masks is None
            else Answer({"masks": [dataclasses.asdict(mask) for mask in masks]}, len(item.ids))
            for item, masks in zip(items, fill_batch(model, items, self.options), strict=True)
        ]


def _masks(
    model: EncoderModel, reading: MaskedReading, log_probs: np.ndarray, ids: np.ndarray
) -> list[FilledMask]:
    probabilities = np.exp(log_probs.astype(np.float64))
    return [
        FilledMask(
            start,
            start + len(MASK),
            tuple(
                Candidate(model.vocabulary.id_to_piece(i), i, probability)
                for i, probability in zip(of_ids.tolist(), of_mask.tolist(), strict=True)
            ),
        )
        for start, of_mask, of_ids in zip(reading.starts, probabilities, ids, strict=True)
    ]
