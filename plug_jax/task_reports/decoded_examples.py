"""Decodes examples to text: what the model sees, and the original."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.examples import SPACE, Corruption, Example, Fate, Section, TextSpan, spans

if TYPE_CHECKING:
    import seqio

    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary


def without_padding(example: Example) -> Example:
    """An example of several padded texts, without their padding.

    Other examples are unchanged.
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
class DecodedExample:
    """An example of any task, ready to be shown."""

    facts: tuple[tuple[str, str], ...]  # names and values: lengths, and the objectives' facts
    sections: tuple[Section, ...]


def decode_example(
    example: Example, objectives: Objectives, vocabulary: PlugVocabulary
) -> DecodedExample:
    """An example: its lengths, the objectives' facts, and its text with their marks."""
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
    """An example of any other task: every feature, decoded if it has a vocabulary."""
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
    example: Example, objectives: Objectives, segments: Sequence[tuple[str, slice]]
) -> str:
    sides = {feature.side: feature.name for one in objectives for feature in one.features}
    texts = [f"{side} {example[name].size}" for side, name in sides.items()]
    if len(segments) > 1:
        texts[0] += f" ({', '.join(f'{name} {part.stop - part.start}' for name, part in segments)})"
    return ", ".join(texts)


def _segments(example: Example, names: Mapping[int, str]) -> Iterator[tuple[str, slice]]:
    """The parts of the encoder's text: one, or several by token type."""
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
) -> Iterator[TextSpan]:
    """The original tokens of an encoder part, with a span for each predicted one."""
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
            yield TextSpan(spaces, spaces)  # the space before a word is outside its mark
        yield TextSpan(old.strip() or SPACE, new.strip() or SPACE, fate)


def _runs(states: np.ndarray, part: slice) -> Iterator[tuple[Fate, slice]]:
    """Runs of plain or of shuffled tokens, and all others one by one."""
    start = part.start
    for state, group in itertools.groupby(states[part].tolist()):
        fate, stop = Fate(state), start + len(list(group))
        step = stop - start if fate in (Fate.PLAIN, Fate.SHUFFLED) else 1
        yield from ((fate, slice(i, i + step)) for i in range(start, stop, step))
        start = stop


def _utf8(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
