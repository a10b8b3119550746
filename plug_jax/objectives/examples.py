"""The text of an example for display: what the model sees, and the original."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

Example = Mapping[str, np.ndarray]

SPACE = "▁"  # shows a space, as in SentencePiece


class Fate(enum.IntEnum):
    """The fate of an encoder token."""

    PLAIN = 0
    MASKED = 1
    REPLACED = 2
    KEPT = 3
    SHUFFLED = 4
    STRAY = 5  # changed but not predicted; our tasks never do this

    @property
    def label(self) -> str:
        """The fate in a few words."""
        return "changed but not predicted (!)" if self is Fate.STRAY else self.name.lower()


@dataclasses.dataclass(frozen=True)
class TextSpan:
    """A span of an example's text with one fate.

    `text` is the decoded original and `seen` what the model sees, equal if unchanged. Each special
    piece and [UNK] is a separate span.
    """

    text: str
    seen: str
    fate: Fate = Fate.PLAIN
    special: bool = False
    unknown: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A segment of the encoder's text, or the decoder's: its name and its spans."""

    name: str
    spans: tuple[TextSpan, ...]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """The encoder's original text, int32 [e], and each token's `Fate`, int8 [e]."""

    original: np.ndarray
    fates: np.ndarray

    @classmethod
    def of(cls, example: Example, mask_id: int) -> Corruption:
        """The fate of each encoder token, from input, original and weights.

        A token replaced by itself counts as kept.

        Example, with [MASK] = 4:

            encoder_original_tokens  [ 2, 11, 12, 13, 14, 15]
            encoder_input_tokens     [ 2,  4, 22, 13, 15, 14]
            encoder_loss_weights     [ 0,  1,  1,  1,  1,  1]
            encoder_shuffled         [ 0,  0,  0,  0,  1,  1]
            fates                    PLAIN, MASKED, REPLACED, KEPT, SHUFFLED, SHUFFLED
        """
        seen, original = example["encoder_input_tokens"], example["encoder_original_tokens"]
        predicted = example["encoder_loss_weights"] > 0
        shuffled = example.get("encoder_shuffled", np.zeros_like(seen)) > 0
        conditions = {
            Fate.PLAIN: ~predicted & (seen == original),
            Fate.STRAY: ~predicted,
            Fate.SHUFFLED: shuffled,
            Fate.MASKED: seen == mask_id,
            Fate.KEPT: seen == original,
        }
        fates = np.select([*conditions.values()], [*conditions], Fate.REPLACED).astype(np.int8)
        return cls(original, fates)

    @classmethod
    def none(cls, example: Example) -> Corruption:
        """For an unchanged text."""
        tokens = example["encoder_input_tokens"]
        return cls(tokens, np.full(tokens.shape, Fate.PLAIN, np.int8))


def spans(
    ids: Sequence[int], vocabulary: PlugVocabulary, before: int | None = None
) -> Iterator[TextSpan]:
    """The text of ids after the token `before`, with special pieces spelled out."""
    special = {*vocabulary.special_ids}
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        if is_special:
            for i in run:
                piece = vocabulary.id_to_piece(i)
                yield TextSpan(piece, piece, special=True, unknown=i == vocabulary.unk_id)
        else:
            text = vocabulary.decode(run)
            if before is not None and before not in special:
                # Decoded alone, the run would lose its leading space.
                text = vocabulary.decode([before, *run])[len(vocabulary.decode([before])) :]
            yield TextSpan(text, text)
        before = run[-1]
