"""The metrics of each task, and the leaderboards' means."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from plug_jax.clue.entity_metrics import macro_f1, micro_f1
from plug_jax.clue.reading_metrics import exact_match, overlap_f1
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    EntityRecord,
    QuestionRecord,
    Record,
    TextRecord,
)
from plug_jax.clue.tasks import CLUE, ClueTask, Kind
from plug_jax.errors import PlugError

# The metric by which a leaderboard ranks a task.
MAIN_METRIC: Mapping[Kind, str] = {
    "text": "accuracy",
    "choice": "accuracy",
    "blank": "accuracy",
    "question": "em",
    "entity": "macro_f1",
}


def score(
    task: ClueTask, records: Sequence[Record], predictions: Mapping[Any, Any]
) -> dict[str, float]:
    """The metrics of predictions by the records' ids, in percent.

    A prediction is the label (a text), the index of a choice or candidate (C3, CHID), the text of
    an answer (CMRC, DRCD), or the entities of a sentence (CLUENER). A question without a prediction
    counts 0, as in the official scorer; any other missing prediction is an error.

    Raises:
        PlugError: no records, records without answers, a missing prediction, one for no record.
    """
    if not records:
        raise PlugError(f"there is nothing to score for {task.name}")
    ids = {record.id for record in records}
    if unknown := [key for key in predictions if key not in ids]:
        raise PlugError(f"a prediction is for {unknown[0]!r}, which is not a record of {task.name}")
    missing = [record.id for record in records if record.id not in predictions]
    if missing and task.kind != "question":
        raise PlugError(
            f"{len(missing)} of {len(records)} records of {task.name} have no prediction; the "
            f"first is {missing[0]!r}"
        )
    if task.kind == "question":
        return _question_scores(task, records, predictions)
    if task.kind == "entity":
        return _entity_scores(task, records, predictions)
    right = sum(predictions[record.id] == _label(task, record) for record in records)
    return {"accuracy": 100 * right / len(records)}


def _label(task: ClueTask, record: Record) -> str | int:
    assert isinstance(record, TextRecord | ChoiceRecord | BlankRecord)
    if record.label is None:
        raise _no_answer(task, record)
    return record.label


def _question_scores(
    task: ClueTask, records: Sequence[Record], predictions: Mapping[Any, str]
) -> dict[str, float]:
    em = f1 = 0.0
    for record in records:
        assert isinstance(record, QuestionRecord)
        if not record.answers:
            raise _no_answer(task, record)
        if record.id in predictions:
            answers = [answer.text for answer in record.answers]
            em += exact_match(answers, predictions[record.id])
            f1 += overlap_f1(answers, predictions[record.id])
    return {"em": 100 * em / len(records), "f1": 100 * f1 / len(records)}


def _entity_scores(
    task: ClueTask, records: Sequence[Record], predictions: Mapping[Any, Collection[Any]]
) -> dict[str, float]:
    pairs = []
    for record in records:
        assert isinstance(record, EntityRecord)
        if record.entities is None:
            raise _no_answer(task, record)
        pairs.append((record.entities, predictions[record.id]))
    return {"macro_f1": 100 * macro_f1(pairs, task.labels), "micro_f1": 100 * micro_f1(pairs)}


def _no_answer(task: ClueTask, record: Record) -> PlugError:
    return PlugError(f"record {record.id!r} of {task.name} has no answer to compare with")


@dataclasses.dataclass(frozen=True)
class Board:
    """The tasks of a leaderboard's mean, each under the names of both its test sets."""

    name: str
    tasks: tuple[str, ...]
    test_set: str = ""  # suffix of a task that has two test sets
    note: str = ""


_CLASSIFICATION = ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc", "csl")
_READING = ("cmrc2018", "chid", "c3")
_VERSIONED = ("tnews", "cluewsc", "chid", "c3")
BOARDS = {
    "1.0": Board("CLUE 1.0, classification", _CLASSIFICATION, "10"),
    "1.0-reading": Board("CLUE 1.0, reading comprehension", _READING, "10"),
    "1.1": Board(
        "CLUE 1.1",
        tuple(task for task in (*_CLASSIFICATION, *_READING) if task != "cmnli"),
        note="how the board averages its nine tasks is not published; this is the plain mean",
    ),
}


@dataclasses.dataclass(frozen=True)
class BoardMean:
    """The mean over a leaderboard's tasks that have a score; None if none has."""

    board: Board
    mean: float | None
    missing: tuple[str, ...]  # tasks without a score

    def to_json(self) -> dict[str, Any]:
        """The mean, to three decimals, and the missing tasks."""
        mean = None if self.mean is None else round(self.mean, 3)
        return {"mean": mean, "missing": list(self.missing)}


def board_mean(version: str, scores: Mapping[str, Mapping[str, float]]) -> BoardMean:
    """A leaderboard's mean ("1.0", "1.0-reading", "1.1") from metrics by task, in percent.

    A task counts with its ranking metric: accuracy, or EM for CMRC 2018. A task with two test sets
    is looked up under the leaderboard's name (tnews10 in 1.0), else under the plain one: both share
    the validation split.
    """
    board = BOARDS[version]
    found: list[float] = []
    missing: list[str] = []
    for task in board.tasks:
        names = [f"{task}{board.test_set}" if task in _VERSIONED else task, task]
        metrics = next((scores[name] for name in names if name in scores), None)
        if metrics is None:
            missing.append(names[0])
        else:
            found.append(metrics[MAIN_METRIC[CLUE[task].kind]])
    mean = sum(found) / len(found) if found else None
    return BoardMean(board, mean, tuple(missing))
