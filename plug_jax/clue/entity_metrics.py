"""The two F1 scores in use for CLUENER. They differ, so say which one you report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from plug_jax.clue.records import Entity

# Gold and predicted entities of a sentence.
Pair = tuple[Collection[Entity], Collection[Entity]]


def macro_f1(pairs: Sequence[Pair], types: Iterable[str]) -> float:
    """The published F1, 0 to 1: mean over types, on surface strings per sentence.

    A string counts once per sentence and type, whatever its position. A type without a true
    positive has F1 0, where the published script divides by zero; the mean is over all types.
    """
    scores = [
        _f1(
            ({e.text for e in gold if e.type == one}, {e.text for e in predicted if e.type == one})
            for gold, predicted in pairs
        )
        for one in types
    ]
    return sum(scores) / len(scores)


def micro_f1(pairs: Sequence[Pair]) -> float:
    """The usual F1, 0 to 1: over all entities, by type and position."""
    return _f1((_places(gold), _places(predicted)) for gold, predicted in pairs)


def _places(entities: Iterable[Entity]) -> set[tuple[str, int, int]]:
    return {(entity.type, entity.start, entity.end) for entity in entities}


def _f1(pairs: Iterable[tuple[set[Any], set[Any]]]) -> float:
    true = golds = predictions = 0
    for gold, predicted in pairs:
        true += len(gold & predicted)
        golds += len(gold)
        predictions += len(predicted)
    return 2 * true / (golds + predictions) if true else 0.0
