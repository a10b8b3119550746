"""Decodes examples to text: what the model sees, and the original."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import seqio

from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.objectives.composition import Objectives, features_of
from plug_jax.objectives.examples import SPACE, Corruption, Example, Fate, Section, TextSpan, spans


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
    segments = _segments(example, names)
    sides = {feature.side: feature.name for feature in features_of(objectives)}
    lengths = [f"{side} {example[name].size}" for side, name in sides.items()]
    if len(segments) > 1:
        of_each = [f"{name} {part.stop - part.start}" for name, part in segments]
        lengths[0] += f" ({', '.join(of_each)})"
    facts = [("lengths", ", ".join(lengths))]
    sections = [
        Section(name, tuple(_marked(example, corruption, part, vocabulary)))
        for name, part in segments
    ]
    for one in objectives:
        facts += one.facts(example, vocabulary)
        sections += one.sections(example, vocabulary)
    return DecodedExample(tuple(facts), tuple(sections))


def describe_example(example: Example, features: Mapping[str, seqio.Feature]) -> DecodedExample:
    """An example of any other task: every feature, decoded if it has a vocabulary."""
    facts = []
    for name in [*features, *sorted(example.keys() - features.keys())]:
        value = np.asarray(example[name])
        if value.dtype.kind in "OS":  # bytes
            text = ", ".join(item.decode(errors="replace") for item in value.ravel())
        elif name in features and value.ndim == 1 and value.dtype.kind in "iu":
            text = f"({value.size}) {features[name].vocabulary.decode(value.tolist())}"
        else:
            text = str(value.tolist())
        facts.append((name, text))
    return DecodedExample(tuple(facts), ())


def _segments(example: Example, names: Mapping[int, str]) -> list[tuple[str, slice]]:
    """The parts of the encoder's text: one, or several by token type."""
    parts = list(_runs(example["encoder_token_types"].tolist()))
    if len(parts) == 1 and not names:
        return [("encoder", parts[0][1])]
    return [(names.get(token_type, f"type {token_type}"), part) for token_type, part in parts]


def _marked(
    example: Example, corruption: Corruption, part: slice, vocabulary: PlugVocabulary
) -> Iterator[TextSpan]:
    """The original tokens of an encoder part, with a span for each predicted one."""
    original = corruption.original.tolist()
    seen = example["encoder_input_tokens"].tolist()
    for fate, run in _fates(corruption, part):
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


def _fates(corruption: Corruption, part: slice) -> Iterator[tuple[Fate, slice]]:
    """Runs of plain or of shuffled tokens, and all others one by one."""
    for state, run in _runs(corruption.fates[part].tolist(), part.start):
        fate = Fate(state)
        step = run.stop - run.start if fate in (Fate.PLAIN, Fate.SHUFFLED) else 1
        yield from ((fate, slice(i, i + step)) for i in range(run.start, run.stop, step))


def _runs(values: Iterable[int], start: int = 0) -> Iterator[tuple[int, slice]]:
    """Each run of equal values, with its place among them, counted from `start`."""
    for value, run in itertools.groupby(values):
        stop = start + len(list(run))
        yield value, slice(start, stop)
        start = stop
