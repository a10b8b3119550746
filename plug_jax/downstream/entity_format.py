"""Named entities in a text (CLUENER)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.clue.entity_metrics import macro_f1, micro_f1
from plug_jax.clue.records import Entity, EntityRecord
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.formats import Answer, Format, Outputs, field
from plug_jax.downstream.token_texts import character_ids
from plug_jax.errors import PlugError
from plug_jax.objectives.tagging import Tagging
from plug_jax.objectives.task_heads import TaskObjective

_OUTSIDE = "O"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntityFormat(Format[EntityRecord]):
    """[CLS], one token per character, [SEP]; tags B- and I- of each type, S- for one character, O.

    A name is a B- followed by I- of the same type, or an S-; as in the baseline, a B- without a
    following I- is dropped. Characters beyond `max_length` have no names.
    """

    types: tuple[str, ...]

    kind: ClassVar[str] = "entity"
    objective: ClassVar[type[TaskObjective]] = Tagging
    shared: ClassVar[Mapping[str, str]] = {"labels": "tags"}

    @property
    def tags(self) -> tuple[str, ...]:
        """B-, I- and S- of each type, and O last."""
        return (*(f"{mark}-{one}" for mark in "BIS" for one in self.types), _OUTSIDE)

    def add(
        self, builder: ExamplesBuilder, records: Sequence[EntityRecord], vocabulary: PlugVocabulary
    ) -> None:
        """One example per text."""
        numbers = {tag: number for number, tag in enumerate(self.tags)}
        known: dict[str, int] = {}
        for number, record in enumerate(records):
            characters = record.text[: self.max_length - 2]
            ids = character_ids(characters, vocabulary, known)
            tokens = np.concatenate([[vocabulary.cls_id], ids, [vocabulary.sep_id]])
            labels = np.full(len(tokens), numbers[_OUTSIDE], np.int32)
            weights = np.zeros(len(tokens), np.int32)
            if record.entities is not None:
                weights[1:-1] = 1
            for entity in record.entities or ():
                if entity.type not in self.types:
                    raise PlugError(
                        f"the record {record.id!r} has an entity of the type {entity.type!r}, none "
                        f"of {', '.join(self.types)}"
                    )
                if entity.end <= len(characters):
                    first, *others = _tags_of(entity)
                    labels[entity.start + 1] = numbers[first]
                    labels[entity.start + 2 : entity.end + 1] = [numbers[tag] for tag in others]
            vectors = {
                "encoder_input_tokens": tokens,
                "encoder_token_types": np.zeros(len(tokens), np.int32),
                "tagging_labels": labels,
                "tagging_weights": weights,
            }
            builder.add(number, vectors)

    def left_out(self, record: EntityRecord, vocabulary: PlugVocabulary) -> int:
        """See `Format.left_out`."""
        return max(len(record.text) - (self.max_length - 2), 0)

    def answers(
        self, records: Sequence[EntityRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The entities by position."""
        answers: list[Answer] = []
        tags = self.tags
        for record, logits in zip(records, outputs["tagging_logits"], strict=True):
            size = min(len(record.text), self.max_length - 2)
            best = [tags[i] for i in logits[1 : size + 1].argmax(axis=-1)]
            found = [
                dataclasses.asdict(Entity(kind, record.text[start:end], start, end))
                for kind, start, end in entity_spans(best)
            ]
            answers.append({"prediction": found})
        return answers

    def metrics(
        self, records: Sequence[EntityRecord], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """`macro_f1` and `micro_f1`."""
        known = [
            (record.entities, [Entity(**one) for one in answer["prediction"]])
            for record, answer in zip(records, answers, strict=True)
            if record.entities is not None
        ]
        if not known:
            return {}
        return {"macro_f1": 100 * macro_f1(known, self.types), "micro_f1": 100 * micro_f1(known)}

    def record(self, fields: Mapping[str, Any], number: int) -> EntityRecord:
        """A row with `text`."""
        return EntityRecord(fields.get("id", number), field(fields, "text"), None)


def _tags_of(entity: Entity) -> list[str]:
    size = entity.end - entity.start
    if size == 1:
        return [f"S-{entity.type}"]
    return [f"B-{entity.type}"] + [f"I-{entity.type}"] * (size - 1)


def entity_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, start, end) of the entities in a tag sequence, in order.

    >>> entity_spans(["S-name", "O", "B-game", "I-game", "I-name", "B-game"])
    [('name', 0, 1), ('game', 2, 4)]
    """
    spans = []
    place = 0
    while place < len(tags):
        mark, _, kind = tags[place].partition("-")
        end = place + 1
        if mark == "B":
            while end < len(tags) and tags[end] == f"I-{kind}":
                end += 1
        if mark == "S" or (mark == "B" and end > place + 1):
            spans.append((kind, place, end))
        place = end
    return spans
