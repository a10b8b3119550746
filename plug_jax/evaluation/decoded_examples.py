"""An example as text: what the model sees, and what was there before."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plug_jax.data.features import Feature

if TYPE_CHECKING:
    import seqio

    from plug_jax.data.vocabularies import PlugVocabulary

Example = Mapping[str, np.ndarray]

SPACE = "▁"  # how a mark shows a space, as SentencePiece does


class Fate(enum.IntEnum):
    """What became of an encoder token."""

    PLAIN = 0
    MASKED = 1
    REPLACED = 2
    KEPT = 3
    SHUFFLED = 4
    STRAY = 5  # changed, though the model is not asked for it; no task of ours makes one

    @property
    def label(self) -> str:
        """The fate in a word or a few."""
        return "changed but not predicted (!)" if self is Fate.STRAY else self.name.lower()


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of an example's text that shares its fate.

    Decoded, `text` is the original and `seen` what the model gets in its place; both are the same
    where nothing was changed. A special piece, and [UNK], is a span of its own.
    """

    text: str
    seen: str
    fate: Fate = Fate.PLAIN
    special: bool = False
    unknown: bool = False


def without_padding(example: Example) -> Example:
    """An example of several texts, which are padded to one length, with their tokens alone.

    Any other is as it was.
    """
    segments = example.get("encoder_segment_ids")
    if segments is None:
        return example
    real = segments > 0
    return {
        name: value[real] if np.shape(value) == real.shape else value
        for name, value in example.items()
    }


@dataclasses.dataclass(frozen=True)
class Section:
    """A segment of the encoder's text, or the decoder's: its name and its spans."""

    name: str
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class DecodedExample:
    """An example of any task, ready to be shown."""

    facts: tuple[tuple[str, str], ...]  # lengths, and what the objectives say: names and texts
    sections: tuple[Section, ...]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """The encoder's text before it was changed, int32 [e], and each token's `Fate`, int8 [e]."""

    original: np.ndarray
    fates: np.ndarray

    @classmethod
    def of(cls, example: Example, mask_id: int) -> Corruption:
        """What became of each encoder token, by input, original and weights alone.

        A token that was replaced by itself counts as kept.

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
        """That of a text that nothing changed."""
        tokens = example["encoder_input_tokens"]
        return cls(tokens, np.full(tokens.shape, Fate.PLAIN, np.int8))


class Shown(Protocol):
    """What showing an example asks of an objective; `plug_jax.objectives` has them."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of an example that it reads."""

    @property
    def segment_names(self) -> Mapping[int, str]:
        """What token types stand for."""

    def corruption(self, example: Example, vocabulary: PlugVocabulary) -> Corruption | None:
        """What it changed in the encoder's text."""

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """Names and texts."""

    def sections(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[Section]:
        """Texts after the encoder's."""


def decode_example(
    example: Example, objectives: Sequence[Shown], vocabulary: PlugVocabulary
) -> DecodedExample:
    """An example: its lengths, what the objectives say of it, and its text with their marks."""
    names: dict[int, str] = {}
    corruption = Corruption.none(example)
    for one in objectives:
        names |= one.segment_names
        corruption = one.corruption(example, vocabulary) or corruption
    parts = list(_segments(example, names))
    encoder = [
        Section(name, tuple(_marked(example, corruption, part, vocabulary))) for name, part in parts
    ]
    return DecodedExample(
        facts=(
            ("lengths", _describe_lengths(example, objectives, parts)),
            *(fact for one in objectives for fact in one.facts(example, vocabulary)),
        ),
        sections=(
            *encoder,
            *(part for one in objectives for part in one.sections(example, vocabulary)),
        ),
    )


def describe_example(example: Example, features: Mapping[str, seqio.Feature]) -> DecodedExample:
    """An example of any other task: every feature, decoded where it has a vocabulary."""
    facts = []
    for name in [*features, *sorted(example.keys() - features.keys())]:
        value = np.asarray(example[name])
        if value.dtype.kind in "OS":  # bytes
            text = ", ".join(_utf8(item) for item in value.ravel())
        elif name in features and value.ndim == 1 and value.dtype.kind in "iu":
            text = f"({value.size}) {features[name].vocabulary.decode(value.tolist())}"
        else:
            text = str(value.tolist())
        facts.append((name, text))
    return DecodedExample(tuple(facts), ())


def _describe_lengths(
    example: Example, objectives: Sequence[Shown], segments: Sequence[tuple[str, slice]]
) -> str:
    sides = {feature.side: feature.name for one in objectives for feature in one.features}
    texts = [f"{side} {example[name].size}" for side, name in sides.items()]
    if len(segments) > 1:
        texts[0] += f" ({', '.join(f'{name} {part.stop - part.start}' for name, part in segments)})"
    return ", ".join(texts)


def _segments(example: Example, names: Mapping[int, str]) -> Iterator[tuple[str, slice]]:
    """The parts of the encoder's text: one, or several by the token types."""
    start = 0
    types = example["encoder_token_types"].tolist()
    for token_type, group in itertools.groupby(types):
        stop = start + len(list(group))
        alone = not names and stop - start == len(types)
        yield (
            "encoder" if alone else names.get(token_type, f"type {token_type}"),
            slice(start, stop),
        )
        start = stop


def _marked(
    example: Example, corruption: Corruption, part: slice, vocabulary: PlugVocabulary
) -> Iterator[Span]:
    """The original tokens of a part of the encoder, a span for each that is predicted."""
    original = corruption.original.tolist()
    seen = example["encoder_input_tokens"].tolist()
    for fate, run in _runs(corruption.fates, part):
        before = original[run.start - 1] if run.start else None
        plain = list(spans(original[run], vocabulary, before))
        if fate is Fate.PLAIN:
            yield from plain
            continue
        old = "".join(span.text for span in plain)
        new = "".join(span.text for span in spans(seen[run], vocabulary, before))
        if old.strip() and (spaces := old[: len(old) - len(old.lstrip())]):
            yield Span(spaces, spaces)  # the space before a word stays outside of its mark
        yield Span(old.strip() or SPACE, new.strip() or SPACE, fate)


def _runs(states: np.ndarray, part: slice) -> Iterator[tuple[Fate, slice]]:
    """Stretches of plain or of shuffled tokens, and all others one by one."""
    start = part.start
    for state, group in itertools.groupby(states[part].tolist()):
        fate, stop = Fate(state), start + len(list(group))
        step = stop - start if fate in (Fate.PLAIN, Fate.SHUFFLED) else 1
        yield from ((fate, slice(i, i + step)) for i in range(start, stop, step))
        start = stop


def spans(
    ids: Sequence[int], vocabulary: PlugVocabulary, before: int | None = None
) -> Iterator[Span]:
    """The text of ids that follow the token `before`, with special pieces spelt out."""
    special = {*vocabulary.special_ids}
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        if is_special:
            for i in run:
                piece = vocabulary.id_to_piece(i)
                yield Span(piece, piece, special=True, unknown=i == vocabulary.unk_id)
        else:
            text = vocabulary.decode(run)
            if before is not None and before not in special:
                # Decoded alone, the run would lose the space before it.
                text = vocabulary.decode([before, *run])[len(vocabulary.decode([before])) :]
            yield Span(text, text)
        before = run[-1]


def _utf8(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
