"""What a kind of task is: how its records become examples, and a model's outputs answers."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.records import AnyRecord
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.objectives.task_heads import TaskObjective

R = TypeVar("R", bound=AnyRecord)
Outputs = Mapping[str, np.ndarray]  # by name, [n, ...]: of each example
Answer = dict[str, Any]  # "prediction", and what it rests on, in JSON's types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format(abc.ABC, Generic[R]):
    """A value: the same on every machine, kept with a checkpoint as `description` says it.

    Lengths are in tokens, [CLS] and [SEP] included.
    """

    max_length: int  # of a text that the encoder reads; what is longer is cut
    pooler: bool | None = None  # whether the head has one; None: as its objective is by default

    kind: ClassVar[str]  # what a description calls it
    objective: ClassVar[type[TaskObjective]]
    # Fields of the objective that this says too, by the name that it has here.
    shared: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_length < self.shortest:
            raise PlugError(
                f"{type(self).__name__}.max_length must be {self.shortest} or more, got "
                f"{self.max_length}"
            )

    @property
    def shortest(self) -> int:
        """The least `max_length` that leaves room for each part."""
        return 8

    @property
    def row_length(self) -> int:
        """Tokens of the longest example."""
        return self.max_length

    def description(self) -> dict[str, Any]:
        """Itself in JSON; `plug_jax.downstream.kinds.described_format` reads it."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        }
        return {"kind": self.kind, **fields}

    @abc.abstractmethod
    def add(
        self, builder: ExamplesBuilder, records: Sequence[R], vocabulary: PlugVocabulary
    ) -> None:
        """Add the examples of all records, in their order."""

    @abc.abstractmethod
    def answers(self, records: Sequence[R], examples: Examples, outputs: Outputs) -> list[Answer]:
        """What the outputs of the examples say of each record; "prediction" is what is scored.

        Where a record has several examples, or a line several records, they are decided together.
        """

    def groups(self, records: Sequence[R]) -> list[Hashable]:
        """Of each record, which others it is decided or scored with: those of an equal value."""
        return list(range(len(records)))

    @abc.abstractmethod
    def metrics(self, records: Sequence[R], answers: Sequence[Answer]) -> dict[str, float]:
        """In percent, over records that have a gold answer; {} where none has."""

    @abc.abstractmethod
    def record(self, fields: Mapping[str, Any], number: int) -> R:
        """A row that a user gives, as a record without a gold answer. PlugError if it is none."""

    def fields(self, record: R) -> dict[str, Any]:
        """A row that `record` reads, in JSON's types, with the gold answer if there is one."""
        fields = json.loads(json.dumps(dataclasses.asdict(record)))
        return {name: value for name, value in fields.items() if value is not None}

    def examples(self, records: Sequence[R], vocabulary: PlugVocabulary) -> Examples:
        """The examples of records."""
        builder = ExamplesBuilder()
        self.add(builder, records, vocabulary)
        return builder.build()

    def make_objective(self, **fields: Any) -> TaskObjective:
        """The objective that trains it, with further fields of its own."""
        told = {theirs: getattr(self, mine) for theirs, mine in self.shared.items()}
        if self.pooler is not None:
            told["pooler"] = self.pooler
        return self.objective(**told, **fields)

    def check_told_by(self, kept: Format, name: str) -> None:
        """PlugError where a model with the format `kept` cannot tell what task `name` asks for."""
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
        """PlugError where an objective says something else than the task."""
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
    """A text of a row. PlugError where it is not there or no text."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise PlugError(
            f"a row needs the text {name!r}; it has {', '.join(map(repr, fields)) or 'nothing'}"
        )
    return value


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
