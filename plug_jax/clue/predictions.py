"""Prediction files in submission format, checked against their records."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from plug_jax.clue.json_files import BYTE_ORDER_MARK, JsonFile, parse, shown
from plug_jax.clue.readers import CANDIDATES, entities_of
from plug_jax.clue.records import BlankRecord, ChoiceRecord, EntityRecord, Record
from plug_jax.clue.tasks import ClueTask
from plug_jax.errors import PlugError

_LINES = 'lines of {"id": ..., "label": ...}'
_INDEX = re.compile("0|[1-9][0-9]{0,9}")  # `int` reads at most 4,300 digits

Row = tuple[str, str, Any]  # position, id, prediction


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A mistake in a prediction file: the first of its kind, and their number."""

    where: str  # file, and line if any
    message: str
    count: int = 1
    is_doubt: bool = False  # it may be intended

    def __str__(self) -> str:
        more = f" (and {self.count - 1:,} more like this)" if self.count > 1 else ""
        return f"{self.where}: {self.message}{more}"


class Mistakes:
    """Collects the first mistake of each kind, and their number."""

    def __init__(self) -> None:
        self._first: dict[str, Mistake] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, where: str, message: str, is_doubt: bool = False) -> None:
        """One more mistake of a kind."""
        self._first.setdefault(kind, Mistake(where, message, is_doubt=is_doubt))
        self._counts[kind] += 1

    def all(self) -> tuple[Mistake, ...]:
        """The first of each kind."""
        return tuple(
            dataclasses.replace(one, count=self._counts[kind]) for kind, one in self._first.items()
        )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A file's predictions by record id, and its mistakes."""

    values: dict[Any, Any]  # as `plug_jax.clue.metrics.score` takes them
    missing: tuple[int | str, ...]  # ids of records without a prediction
    mistakes: tuple[Mistake, ...]


def read_predictions(
    task: ClueTask,
    file: JsonFile,
    records: Sequence[Record],
    dropped_ids: Collection[int | str] = (),
    *,
    for_board: bool = False,
) -> Predictions:
    """Read predictions, and find all mistakes.

    Args:
        task: the predictions' task.
        file: JSON lines, or one object for CMRC, DRCD and CHID, as a submission has them.
        records: the records to predict.
        dropped_ids: ids of lines that the records leave out; their predictions are ignored.
        for_board: also require answers to all questions, and the order of the records: the
            leaderboard reads only the labels.
    """
    mistakes = Mistakes()
    if file.content.startswith(BYTE_ORDER_MARK):
        mistakes.add("mark", file.path, "it begins with a byte order mark")
    is_object = task.kind in ("question", "blank")
    known = {str(record.id): record for record in records}
    dropped = set(map(str, dropped_ids))
    seen: dict[str, str] = {}
    values: dict[Any, Any] = {}
    for where, key, value in (_object_rows if is_object else _line_rows)(file, mistakes):
        if key in seen:
            restarts = key == next(iter(seen))
            hint = "; ids must continue from one batch to the next" if restarts else ""
            mistakes.add("double", where, f"id {key} was in {seen[key]} already{hint}")
            continue
        seen[key] = where
        if key in known:
            try:
                values[known[key].id] = _checked_value(task, known[key], value)
            except PlugError as error:
                mistakes.add("value", where, str(error))
        elif key not in dropped:
            ids = f"{records[0].id} to {records[-1].id}"
            mistakes.add(
                "unknown", where, f"id {key} is not one of the {len(records):,} ids, {ids}"
            )
    missing = tuple(record.id for record in records if str(record.id) not in seen)
    is_read = seen or not mistakes.all()  # else the mistake is already reported
    if missing and is_read and (for_board or task.kind != "question"):
        count = f"{len(missing):,} of {len(records):,}"
        message = f"{count} have no prediction; the first is id {missing[0]}"
        mistakes.add("missing", file.path, message)
    if for_board and not is_object and seen.keys() == known.keys() and list(seen) != list(known):
        message = "the lines are not in the order of the test file; the board reads labels alone"
        mistakes.add("order", file.path, message)
    _find_repeats(values, known, file, mistakes)
    return Predictions(values, missing, mistakes.all())


def first_mistake(mistakes: Sequence[Mistake]) -> PlugError:
    """The first mistake as an error, saying if there are more."""
    more = f"; and {len(mistakes) - 1} mistakes of other kinds" if len(mistakes) > 1 else ""
    return PlugError(f"{mistakes[0]}{more}")


def _line_rows(file: JsonFile, mistakes: Mistakes) -> Iterator[Row]:
    """Rows of classification, C3 and CLUENER."""
    content = file.content.removeprefix(BYTE_ORDER_MARK)
    if content.lstrip().startswith(b"["):
        mistakes.add("list", file.path, f"it is one JSON list, which scores 0; expected {_LINES}")
        return
    if not content.strip():
        mistakes.add("empty", file.path, f"it is empty; expected {_LINES}")
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{file.path}, line {number}"
        if not line.strip():
            continue
        try:
            fields = parse(line, where, _LINES)
        except PlugError as error:
            mistakes.add("json", where, str(error).removeprefix(where).lstrip(", "))
            continue
        if not isinstance(fields, dict) or not {"id", "label"} <= fields.keys():
            mistakes.add("keys", where, f"it is {shown(fields)}; expected {_LINES}")
        elif type(fields["id"]) not in (int, str):
            mistakes.add("id", where, f"id {shown(fields['id'])} is neither a number nor a string")
        else:
            yield where, str(fields["id"]), fields["label"]


def _object_rows(file: JsonFile, mistakes: Mistakes) -> Iterator[Row]:
    """Rows of CMRC, DRCD and CHID."""
    expected = "one object for the whole file, of predictions by id"
    try:
        fields = parse(file.content.removeprefix(BYTE_ORDER_MARK), file.path, expected)
    except PlugError as error:
        mistakes.add("json", file.path, str(error).removeprefix(file.path).lstrip(", "))
        return
    if not isinstance(fields, dict):
        mistakes.add("keys", file.path, f"it is {shown(fields)}; expected {expected}")
        return
    for key, value in fields.items():
        yield file.path, key, value


def _checked_value(task: ClueTask, record: Record, value: Any) -> Any:
    """The prediction as the metrics take it; PlugError if it is invalid."""
    if isinstance(record, EntityRecord):
        if not isinstance(value, dict):
            raise PlugError(f"label {shown(value)} is not an object of entities by type")
        return entities_of(value, record.text, task.labels, "its label")
    if isinstance(record, ChoiceRecord):
        return _index(value, len(record.choices), "choices", "label")
    if isinstance(record, BlankRecord):
        if type(value) is not int:
            raise PlugError(f"{record.id} has {shown(value)}; expected a number, 0 to 9")
        return _index(value, CANDIDATES, "candidates", record.id)
    if task.kind == "question":
        if not isinstance(value, str):
            raise PlugError(f"the answer to {record.id} is {shown(value)}; expected a text")
        return value
    return _label(task, value)


def _label(task: ClueTask, value: Any) -> str:
    if isinstance(value, str) and value in task.labels:
        return value
    few = ", ".join(f'"{label}"' for label in task.labels[:4])
    labels = f"the strings {few}{', ...' if len(task.labels) > 4 else ''}"
    if not isinstance(value, str) and shown(value) in task.labels:
        raise PlugError(f'label {shown(value)} must be a string: "{shown(value)}"')
    if _INDEX.fullmatch(str(value)) and int(value) < len(task.labels):
        raise PlugError(
            f"label {shown(value)} looks like the index of a class; the labels of {task.name} are "
            f"{labels}, and anything else scores 0"
        )
    raise PlugError(f"label {shown(value)} is not one of the labels of {task.name}, {labels}")


def _index(value: Any, count: int, what: str, name: str) -> int:
    """Index of a choice, possibly given as a string."""
    text = str(value)
    if type(value) in (int, str) and _INDEX.fullmatch(text) and int(text) < count:
        return int(text)
    raise PlugError(f"{name} {shown(value)} is not an index of the {count} {what}, from 0")


def _find_repeats(
    values: Mapping[Any, Any], known: Mapping[str, Record], file: JsonFile, mistakes: Mistakes
) -> None:
    """Idioms that two blanks of a line share: the blanks were decoded independently."""
    seen: set[tuple[int, int]] = set()
    for key, value in values.items():
        record = known[str(key)]
        if isinstance(record, BlankRecord):
            if (record.line, value) in seen:
                message = (
                    f"{key} has the idiom of another blank of its line; the blanks of a line "
                    "must be decoded together"
                )
                mistakes.add("repeat", file.path, message, is_doubt=True)
            seen.add((record.line, value))
