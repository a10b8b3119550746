"""An example of stage 1 or 2 as text: what the model sees, and what was there before."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plug_jax.data.sentence_order import FOLLOWS, OTHER_DOCUMENT, PRECEDES

if TYPE_CHECKING:
    import seqio

    from plug_jax.data.vocabularies import PlugVocabulary

Example = Mapping[str, np.ndarray]

SENTENCE_LABELS = {
    OTHER_DOCUMENT: "0: B is from another document",
    FOLLOWS: "1: B follows A",
    PRECEDES: "2: B precedes A",
}
SPACE = "▁"  # how a mark shows a space, as SentencePiece does
_SEGMENTS = {0: "A", 1: "B"}


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


@dataclasses.dataclass(frozen=True)
class Section:
    """A segment of the encoder's text, or the decoder's: its name and its spans."""

    name: str
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class DecodedExample:
    """An example of any task, ready to be shown."""

    facts: tuple[tuple[str, str], ...]  # the sentence label, the lengths, the counts of fates
    sections: tuple[Section, ...]


def fates(example: Example, mask_id: int) -> np.ndarray:
    """What became of each encoder token, int8 [e] of `Fate`, by input, original and weights alone.

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
    return np.select([*conditions.values()], [*conditions], Fate.REPLACED).astype(np.int8)


def decode_example(example: Example, vocabulary: PlugVocabulary) -> DecodedExample:
    """An example of stage 1 or 2: its label, its lengths, and its text with what became of it."""
    states = fates(example, vocabulary.mask_id)
    parts = list(_segments(example))
    facts = []
    if "sentence_labels" in example:
        labels = [SENTENCE_LABELS.get(label, str(label)) for label in sentence_labels(example)]
        facts.append(("label", ", ".join(labels) or "none"))
    facts.append(("lengths", _describe_lengths(example, parts)))
    counts = np.bincount(states, minlength=len(Fate))
    present = [f"{counts[fate]} {fate.label}" for fate in Fate if counts[fate]]
    facts.append(("tokens", ", ".join(present)))
    sections = [
        Section(name, tuple(_marked(example, states, part, vocabulary))) for name, part in parts
    ]
    if "decoder_target_tokens" in example:
        inputs = example["decoder_input_tokens"].tolist()
        targets = example["decoder_target_tokens"].tolist()
        sections.append(Section("decoder", tuple(_plain(targets, None, vocabulary))))
        if inputs != [vocabulary.cls_id, *targets[:-1]]:
            sections.append(Section("its inputs", tuple(_plain(inputs, None, vocabulary))))
    return DecodedExample(tuple(facts), tuple(sections))


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


def sentence_labels(example: Example) -> list[int]:
    """The labels of an example that count: those with a weight."""
    return example["sentence_labels"][example["sentence_weights"] > 0].tolist()


def _describe_lengths(example: Example, segments: Sequence[tuple[str, slice]]) -> str:
    text = f"encoder {example['encoder_input_tokens'].size}"
    if len(segments) > 1:
        text += f" ({', '.join(f'{name} {part.stop - part.start}' for name, part in segments)})"
    if "decoder_target_tokens" in example:
        text += f", decoder {example['decoder_target_tokens'].size}"
        if not (example["decoder_loss_weights"] > 0).all():
            text += f" ({(example['decoder_loss_weights'] > 0).sum()} of them predicted)"
    return text


def _segments(example: Example) -> Iterator[tuple[str, slice]]:
    """The parts of the encoder's text: one, or A and B by the token types."""
    start = 0
    pairs = "sentence_labels" in example
    for token_type, group in itertools.groupby(example["encoder_token_types"].tolist()):
        stop = start + len(list(group))
        alone = not pairs and stop - start == example["encoder_token_types"].size
        name = "encoder" if alone else _SEGMENTS.get(token_type, f"type {token_type}")
        yield name, slice(start, stop)
        start = stop


def _marked(
    example: Example, states: np.ndarray, part: slice, vocabulary: PlugVocabulary
) -> Iterator[Span]:
    """The original tokens of a part of the encoder, a span for each that is predicted."""
    original = example["encoder_original_tokens"].tolist()
    seen = example["encoder_input_tokens"].tolist()
    for fate, run in _runs(states, part):
        before = original[run.start - 1] if run.start else None
        plain = list(_plain(original[run], before, vocabulary))
        if fate is Fate.PLAIN:
            yield from plain
            continue
        old = "".join(span.text for span in plain)
        new = "".join(span.text for span in _plain(seen[run], before, vocabulary))
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


def _plain(ids: Sequence[int], before: int | None, vocabulary: PlugVocabulary) -> Iterator[Span]:
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
