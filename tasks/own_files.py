"""Tasks over your own files for fine-tuning the encoder: texts or pairs to labels or numbers.

Files are JSON lines, TSV or CSV, by file ending; TSV and CSV have a header line. gin names the
tasks: gin_configs/finetuning/.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import tensorflow as tf

from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.clue.records import TextRecord
from plug_jax.clue.tasks import TEST, TRAIN, VALIDATION, Split
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.downstream.formats import Format
from plug_jax.downstream.number_format import NumberFormat
from plug_jax.downstream.record_task import RecordTask, SplitRecords, register
from plug_jax.downstream.records import AnyRecord, NumberRecord
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.generation_tasks.formats import by_name
from plug_jax.generation_tasks.records import Record as Row

__all__ = ["classification", "labels", "regression"]

_SHOWN = 12  # labels per message
_WHOLE = re.compile(r"-?\d{1,1000}")  # `int` reads at most 4,300 digits


class FileOptions(TypedDict, total=False):
    """The files, and the columns of a record."""

    train_file: str
    validation_file: str | None
    test_file: str | None
    text: str | tuple[str, ...]
    label: str


@typed
def classification(
    *,
    vocabulary: str,
    labels: tuple[str, ...],
    max_length: int = 128,
    name: str = "classification",
    **files: Unpack[FileOptions],
) -> str:
    """Register a classification task on texts or pairs, and return its name.

    Args:
      vocabulary: its path.
      labels: all labels, from the function `labels`.
      max_length: tokens per text or pair, including [CLS] and [SEP]; longer ones are cut.
      name: of the registered task.
      files: `train_file`, `validation_file` and `test_file` (which may lack labels); `text`, the
        text column, or both columns of a pair; `label`, the label column.
    """

    def record(key: int | str, texts: tuple[str, ...], label: str | None, where: str) -> AnyRecord:
        if label is not None and label not in labels:
            shown = ", ".join(map(repr, labels[:_SHOWN])) + ", ..." * (len(labels) > _SHOWN)
            raise PlugError(f"{where}: the label {label!r} is not one of {shown}")
        return TextRecord(key, texts, label)

    return _register(
        name, TextFormat(max_length=max_length, labels=labels), record, vocabulary, files
    )


@typed
def labels(
    *,
    train_file: str,
    label: str = "label",
    labels: tuple[str, ...] | None = None,
    name: str = "classification",
    checkpoint: str | None = None,
) -> tuple[str, ...]:
    """The labels of a classification task: as given, or from a checkpoint or the train file.

    Args:
      train_file: source of the labels if nothing else has them, sorted numerically if all are whole
        numbers, else alphabetically.
      label: the label column.
      labels: the given labels.
      name: of the task.
      checkpoint: of a model; its labels are used if it was fine-tuned for a task of this name.
    """
    if labels is not None:
        return labels
    if (told := _told_by(checkpoint, name, TextFormat.kind)) is not None:
        return tuple(told["labels"])
    found = {_label_of(row, label) for row in _rows(train_file)}
    if len(found) < 2:
        raise PlugError(
            f"{train_file}: {label!r} has the one value {found.pop()!r}; expected two labels or "
            "more"
        )
    whole = all(_WHOLE.fullmatch(one) for one in found)
    return tuple(sorted(found, key=(lambda one: (int(one), one)) if whole else None))


@typed
def regression(
    *,
    vocabulary: str,
    max_length: int = 128,
    name: str = "regression",
    checkpoint: str | None = None,
    **files: Unpack[FileOptions],
) -> str:
    """Register a regression task on texts or pairs, and return its name.

    Numbers are standardised by the train file's mean and standard deviation, or those of a
    checkpoint fine-tuned for a task of this name. Arguments as for `classification`.
    """
    told = _told_by(checkpoint, name, NumberFormat.kind)
    if told is None:
        column = files.get("label", "label")
        numbers = [_number(_label_of(row, column), row.where) for row in _rows(files["train_file"])]
        told = {"mean": float(np.mean(numbers)), "deviation": float(np.std(numbers))}
        if not told["deviation"]:
            raise PlugError(
                f"{files['train_file']}: {column!r} has the one value {numbers[0]:g}; expected "
                "numbers that differ"
            )

    def record(key: int | str, texts: tuple[str, ...], label: str | None, where: str) -> AnyRecord:
        return NumberRecord(key, texts, None if label is None else _number(label, where))

    format_ = NumberFormat(max_length=max_length, mean=told["mean"], deviation=told["deviation"])
    return _register(name, format_, record, vocabulary, files)


def _register(
    name: str,
    format_: Format,
    record: Callable[[int | str, tuple[str, ...], str | None, str], AnyRecord],
    vocabulary: str,
    files: FileOptions,
) -> str:
    """Register the task, replacing one of the same name; returns the name."""
    paths = {
        TRAIN: files.get("train_file"),
        VALIDATION: files.get("validation_file"),
        TEST: files.get("test_file"),
    }
    given = {split: path for split, path in paths.items() if path is not None}
    columns = files.get("text", "text")
    reading: dict[str, Any] = {
        "text": (columns,) if isinstance(columns, str) else columns,
        "label": files.get("label", "label"),
    }
    read = functools.partial(_read, files=given, record=record, **reading)
    splits = SplitRecords(format_, load_vocabulary(vocabulary), read, tuple(given), reading)
    return register(RecordTask(name, splits))


def _read(
    split: str,
    *,
    files: Mapping[str, str],
    text: Sequence[str],
    label: str,
    record: Callable[[int | str, tuple[str, ...], str | None, str], AnyRecord],
) -> Split:
    if split not in files:
        raise PlugError(f"there is no {split!r} split, only {', '.join(files)}")
    records: list[Any] = []
    for number, row in enumerate(_rows(files[split])):
        texts = tuple(_text(row, column) for column in text)
        answered = split != TEST or bool(row.fields.get(label))
        of_row = _label_of(row, label) if answered else None
        records.append(record(row.fields.get("id", number), texts, of_row, row.where))
    size = tf.io.gfile.stat(os.path.expanduser(files[split])).length  # a bucket's, too
    return Split(records, {}, files[split], sizes={files[split]: size})


def _rows(path: str) -> Iterator[Row]:
    found = False
    for row in by_name(os.path.expanduser(path)):
        found = True
        yield row
    if not found:
        raise PlugError(f"{path} has no record")


def _text(row: Row, column: str) -> str:
    if column not in row.fields:
        raise PlugError(
            f"{row.where}: there is no {column!r}; it has "
            f"{', '.join(map(repr, row.fields)) or 'nothing'}"
        )
    value = row.fields[column]
    if not isinstance(value, str):
        raise PlugError(f"{row.where}: {column!r} is {value!r}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell it
        raise PlugError(f"{row.where}: {column!r} holds half of a surrogate pair") from error
    return value


def _label_of(row: Row, column: str) -> str:
    label = _text(row, column)
    if not label:
        raise PlugError(f"{row.where}: {column!r} is empty; expected a label or number")
    return label


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise PlugError(f"{where}: {text!r} is not a number") from error
    if not math.isfinite(number):
        raise PlugError(f"{where}: {text!r} is not finite")
    return number


def _told_by(checkpoint: str | None, name: str, kind: str) -> Mapping[str, Any] | None:
    """A checkpoint's task description, if it was fine-tuned for a task of this name and kind."""
    task = open_checkpoint(checkpoint).task if checkpoint is not None else None
    return task if task is not None and (task["name"], task["kind"]) == (name, kind) else None
