"""CLUE's tasks, for fine-tuning and evaluation.

`task` registers one over its official files; gin names it (gin_configs/clue/). With the environment
variable CLUE_DIR, importing this module registers `clue_NAME` for every task with files there, for
`plug-jax inspect` and seqio's own tools; the vocabulary is PLUG_JAX_VOCABULARY, or
`default_vocabulary()`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from plug_jax.clue.blanks import Assignment
from plug_jax.clue.tasks import ClueTask, find_task, tasks_in
from plug_jax.data.vocabularies.vocabulary import (
    PlugVocabulary,
    default_vocabulary,
    load_vocabulary,
)
from plug_jax.downstream.choice_formats import BlankFormat, ChoiceFormat
from plug_jax.downstream.entity_format import EntityFormat
from plug_jax.downstream.formats import Format
from plug_jax.downstream.question_format import QuestionFormat
from plug_jax.downstream.record_task import RecordTask, SplitRecords, register
from plug_jax.downstream.text_format import TextFormat
from plug_jax.errors import PlugError
from plug_jax.field_types import typed


@typed
def task(
    *,
    name: str,
    data_dir: str | None,
    vocabulary: str | None,
    max_length: int | None = None,
    max_question: int = 64,
    stride: int = 128,
    max_answer: int = 50,
    assignment: Assignment = "greedy",
) -> str:
    """Register `clue_NAME` over the official files and return its name.

    Args:
      name: of a CLUE task: "tnews", "cmrc2018".
      data_dir: see `ClueTask.read`.
      vocabulary: its path.
      max_length: tokens per text; None: the baselines' length.
      max_question: tokens per question (CMRC 2018 and DRCD, like the following two).
      stride: tokens between the windows over a context.
      max_answer: maximum tokens per answer.
      assignment: how the blanks of a line share its idioms (CHID): "greedy", as in the official
        script, or "optimal".

    Raises:
      PlugError: no such task, or a macro that is not set.
    """
    of_clue = find_task(name)
    if data_dir is None or vocabulary is None:
        macro = "CLUE_DIR" if data_dir is None else "VOCABULARY"
        raise PlugError(f"{macro} is not set: pass --gin.{macro}=...")
    reading = {"max_question": max_question, "stride": stride, "max_answer": max_answer}
    format_ = clue_format(of_clue, max_length or of_clue.max_length, **reading)
    if isinstance(format_, BlankFormat):
        format_ = dataclasses.replace(format_, assignment=assignment)
    return register(clue_task(of_clue, data_dir, load_vocabulary(vocabulary), format_))


def clue_format(task: ClueTask, max_length: int, **reading: Any) -> Format:
    """The format of the task's records; `reading`: fields of `QuestionFormat`."""
    match task.kind:
        case "text":
            return TextFormat(max_length=max_length, labels=task.labels)
        case "choice":
            return ChoiceFormat(max_length=max_length)
        case "blank":
            return BlankFormat(max_length=max_length)
        case "question":
            return QuestionFormat(max_length=max_length, **reading)
        case "entity":
            return EntityFormat(max_length=max_length, types=task.labels)


def clue_task(
    task: ClueTask, data_dir: str, vocabulary: PlugVocabulary, format: Format
) -> RecordTask:
    """The seqio task, not registered."""
    read = functools.partial(task.read, data_dir)
    return RecordTask(f"clue_{task.name}", SplitRecords(format, vocabulary, read, task.splits))


@typed
def labels(name: str) -> tuple[str, ...]:
    """The classes of a CLUE task's head: its labels, or the tags of entities."""
    format_ = clue_format(find_task(name), find_task(name).max_length)
    return format_.tags if isinstance(format_, EntityFormat) else find_task(name).labels


@typed
def row_lengths(name: str, max_length: int | None = None, max_question: int = 64) -> dict[str, int]:
    """Row lengths in tokens for a CLUE task with texts of up to `max_length`.

    A text needs room for `max_question` tokens and some of the context (CMRC 2018 and DRCD).
    """
    of_clue = find_task(name)
    length = max_length or of_clue.max_length
    return {"encoder": clue_format(of_clue, length, max_question=max_question).row_length}


def register_all(data_dir: str) -> None:
    """Register `clue_NAME` for each task with files in a directory; see `task`."""
    path = os.environ.get("PLUG_JAX_VOCABULARY")
    vocabulary = load_vocabulary(path) if path else default_vocabulary()
    for of_clue in tasks_in(data_dir):
        format_ = clue_format(of_clue, of_clue.max_length)
        register(clue_task(of_clue, data_dir, vocabulary, format_))


if "CLUE_DIR" in os.environ:
    register_all(os.environ["CLUE_DIR"])
