"""Zero-shot CLUE tasks: labels, choices and idioms as texts to score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plug_jax.clue.archives import find_archive
from plug_jax.clue.blanks import decode_blanks
from plug_jax.clue.json_files import field
from plug_jax.clue.metrics import score
from plug_jax.clue.readers import TAG
from plug_jax.clue.records import BlankRecord, ChoiceRecord, Record, TextRecord
from plug_jax.clue.tasks import ClueTask, Split, find_task
from plug_jax.errors import PlugError, shown
from plug_jax.field_types import check_fields, typed
from plug_jax.inference.classification import Classification
from plug_jax.inference.jobs import Job
from plug_jax.inference.rows import Row

CHOICES = "choices"  # the row field with the choices
_LABELS_FILE = "labels.json"
_BLANK = "____"
_AROUND_BLANK = 100  # characters of a passage (CHID) on each side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """A CLUE task, answered by scoring texts.

    Raises:
        PlugError: a task whose answers are not labels or choices, or words for other labels than
            the task's.
    """

    task: str
    data_dir: str  # see `ClueTask.read`
    split: str
    job: Job  # over `clue_rows` of the three above
    work: Classification

    def __post_init__(self) -> None:
        check_fields(self)
        task = find_task(self.task)
        own = self.work.labels
        if isinstance(own, str) != (task.kind in ("choice", "blank")):
            told = f"lists them under {CHOICES!r}" if isinstance(own, Mapping) else "has no list"
            raise PlugError(f"the labels of {self.task} cannot be {shown(own)}: a row of it {told}")
        if isinstance(own, Mapping) and own.keys() != set(task.labels):
            wrong = [f"it has no {shown(label)}" for label in own if label not in task.labels]
            wrong += [f"{label!r} has none" for label in task.labels if label not in own]
            raise PlugError(f"words for the labels of {self.task}: {'; '.join(wrong[:3])}")

    def read(self) -> Split:
        """The records."""
        return find_task(self.task).read(self.data_dir, self.split)

    def predictions(
        self, records: Sequence[Record], rows: Sequence[Mapping[str, Any]]
    ) -> dict[int | str, str | int]:
        """Predictions by record id, from answered rows: a label, or the index of a choice.

        Blanks of a line (CHID) are decided together, as the official decoding does.
        """
        kind = find_task(self.task).kind
        if kind == "blank":
            scores = np.array([list(row["scores"].values()) for row in rows])
            found: Sequence[Any] = decode_blanks([row["line"] for row in rows], scores)
        else:
            found = [row["prediction"] for row in rows]
        return {
            record.id: answer if kind == "text" else int(answer)
            for record, answer in zip(records, found, strict=True)
        }

    def metrics(
        self, records: Sequence[Record], predictions: Mapping[int | str, str | int]
    ) -> dict[str, float]:
        """Metrics in percent; {} for a split without answers."""
        task = find_task(self.task)
        known = all(getattr(record, "label", None) is not None for record in records)
        return score(task, records, predictions) if known else {}


@typed
def clue_rows(*, task: str, data_dir: str, split: str) -> tuple[Row, ...]:
    """A row per record of a split, in order, with the fields for templates.

    Texts: `id`, `text`, and `text_pair` for a pair. C3: `id`, `passage`, `question`, `choices`.
    CHID: `id`, `line`, `left` and `right` of the blank (other blanks as ____), `choices`. If known,
    also `label`: the archive's string, or an index.

    Raises:
        PlugError: as `ClueTask.read`, and a task whose answers are not labels or choices.
    """
    found = find_task(task)
    return tuple(Row(_fields(found, one)) for one in found.read(data_dir, split).records)


@typed
def published_words(*, task: str, data_dir: str, key: str) -> dict[str, str]:
    """The words of each label under `key` of the archive's labels.json.

    Raises:
        PlugError: the file is missing or malformed.
    """
    archive = find_archive(data_dir, find_task(task).folders, [_LABELS_FILE])
    return {
        str(field(fields, "label", (str, int), where)): field(fields, key, str, where)
        for where, fields in archive.read(_LABELS_FILE).lines()
    }


def _fields(task: ClueTask, record: Record) -> dict[str, Any]:
    fields: dict[str, Any]
    match record:
        case TextRecord():
            fields = {"id": record.id, **record.named_texts()}
        case ChoiceRecord():
            fields = {
                "id": record.id,
                "passage": record.passage,
                "question": record.question,
                CHOICES: list(record.choices),
            }
        case BlankRecord():
            fields = {
                "id": record.id,
                "line": record.line,
                "left": TAG.sub(_BLANK, record.left)[-_AROUND_BLANK:],
                "right": TAG.sub(_BLANK, record.right)[:_AROUND_BLANK],
                CHOICES: list(record.candidates),
            }
        case _:
            raise PlugError(f"{task.name} has no labels or choices: no texts to choose from")
    return fields if record.label is None else {**fields, "label": record.label}
