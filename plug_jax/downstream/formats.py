"""Task formats: how records become examples, and a model's outputs become answers."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from plug_jax.clue.records import BlankRecord, ChoiceRecord, TextRecord
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.records import AnyRecord
from plug_jax.errors import PlugError, shortened
from plug_jax.field_types import check_fields
from plug_jax.objectives.task_heads import TaskObjective
from plug_jax.strict_json import kind_of

R = TypeVar("R", bound=AnyRecord)
Outputs = Mapping[str, np.ndarray]  # by name, [n, ...] for n examples
Answer = dict[str, Any]  # "prediction", and its scores, in JSON types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format(abc.ABC, Generic[R]):
    """A task format, stored with a checkpoint as its `description`.

    Lengths are in tokens, including [CLS] and [SEP].
    """

    max_length: int  # of an encoder text; longer texts are cut
    pooler: bool | None = None  # whether the head has one; None: the objective's default

    kind: ClassVar[str]  # its name in descriptions
    objective: ClassVar[type[TaskObjective]]
    # Fields shared with the objective, by their names here.
    shared: ClassVar[Mapping[str, str]] = {}
    # Fields that change no example: they are the head's, or `answers` alone reads them.
    not_of_examples: ClassVar[tuple[str, ...]] = ("pooler",)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_length < self.shortest:
            raise PlugError(
                f"{type(self).__name__}.max_length must be {self.shortest} or more, got "
                f"{self.max_length}"
            )

    @property
    def shortest(self) -> int:
        """The minimum `max_length` that leaves room for each part."""
        return 8

    @property
    def row_length(self) -> int:
        """Tokens of the longest example."""
        return self.max_length

    def description(self) -> dict[str, Any]:
        """The format as JSON; `plug_jax.downstream.kinds.described_format` reads it."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        }
        return {"kind": self.kind, **fields}

    def settings_of_examples(self) -> dict[str, Any]:
        """The part of `description` that the examples depend on."""
        told = self.description().items()
        return {name: value for name, value in told if name not in self.not_of_examples}

    @abc.abstractmethod
    def add(
        self, builder: ExamplesBuilder, records: Sequence[R], vocabulary: PlugVocabulary
    ) -> None:
        """Add the examples of all records, in order."""

    def left_out(self, record: R, vocabulary: PlugVocabulary) -> int:
        """Characters of a record that are in none of its examples, for want of room."""
        return 0

    @abc.abstractmethod
    def answers(self, records: Sequence[R], examples: Examples, outputs: Outputs) -> list[Answer]:
        """The answer for each record from its examples' outputs; "prediction" is scored.

        Several examples of a record, or several records of a line, are decided together.
        """

    def groups(self, records: Sequence[R]) -> list[Hashable]:
        """A group value per record; records with equal values are decided or scored together."""
        return list(range(len(records)))

    @abc.abstractmethod
    def metrics(self, records: Sequence[R], answers: Sequence[Answer]) -> dict[str, float]:
        """Metrics in percent over records with a gold answer; {} if none has one."""

    @abc.abstractmethod
    def record(self, fields: Mapping[str, Any], number: int) -> R:
        """A user's row as a record without a gold answer. PlugError if it is invalid."""

    def fields(self, record: R) -> dict[str, Any]:
        """A row for `record`, in JSON types, with the gold answer if there is one."""
        fields = json.loads(json.dumps(dataclasses.asdict(record)))
        return {name: value for name, value in fields.items() if value is not None}

    def examples(self, records: Sequence[R], vocabulary: PlugVocabulary) -> Examples:
        """The examples of records."""
        builder = ExamplesBuilder()
        self.add(builder, records, vocabulary)
        return builder.build()

    def make_objective(self, **fields: Any) -> TaskObjective:
        """The objective that trains it, with these further fields."""
        told = {theirs: getattr(self, mine) for theirs, mine in self.shared.items()}
        if self.pooler is not None:
            told["pooler"] = self.pooler
        return self.objective(**told, **fields)

    def check_told_by(self, kept: Format, name: str) -> None:
        """PlugError if a model with the format `kept` cannot answer task `name`."""
        if kept.kind != self.kind:
            raise PlugError(
                f"the checkpoint was fine-tuned for a task of the kind {kept.kind!r}, and {name!r} "
                f"is one of the kind {self.kind!r}"
            )
        for mine in self.shared.values():
            asked, told = getattr(self, mine), getattr(kept, mine)
            if asked != told and not (isinstance(asked, tuple) and set(asked) <= set(told)):
                raise PlugError(
                    f"the {mine} of {name!r} are {asked}, and those of the checkpoint {told}"
                )

    def check_objective(self, objective: TaskObjective) -> None:
        """PlugError if an objective contradicts the task."""
        if not isinstance(objective, self.objective):
            raise PlugError(
                f"a task of the kind {self.kind!r} needs the objective {self.objective.__name__}, "
                f"not {type(objective).__name__}"
            )
        for theirs, mine in self.shared.items():
            there, here = getattr(objective, theirs), getattr(self, mine)
            if there != here:
                raise PlugError(
                    f"the task's {mine} are {here}, and {type(objective).__name__}.{theirs} {there}"
                )


def field(fields: Mapping[str, Any], name: str) -> str:
    """A text field of a row. PlugError if it is missing or not a text."""
    value = fields.get(name)
    if name in fields and not isinstance(value, str):
        raise PlugError(f"field {name!r} must hold text, not {kind_of(value)}")
    if not isinstance(value, str):
        raise PlugError(
            f"a row needs the text {name!r}; it has "
            f"{shortened(', '.join(map(repr, fields))) or 'nothing'}"
        )
    return value


def accuracy(
    records: Sequence[TextRecord | ChoiceRecord | BlankRecord], answers: Sequence[Answer]
) -> dict[str, float]:
    """`accuracy` in percent over records with a label; {} if none has one."""
    hits = [
        answer["prediction"] == record.label
        for record, answer in zip(records, answers, strict=True)
        if record.label is not None
    ]
    return {"accuracy": 100 * float(np.mean(hits))} if hits else {}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
