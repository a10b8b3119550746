"""The generation tasks by name: their files, and layouts from records to pairs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from plug_jax.errors import PlugError
from plug_jax.generation_tasks.formats import Format, json_lines, kbqa, squad
from plug_jax.generation_tasks.records import Layout, Pair

_TEST = "test"  # the split that may lack targets


@dataclasses.dataclass(frozen=True)
class GenerationTask:
    """The official files of a task; sources in docs/generation_tasks.md."""

    read: Format
    files: Mapping[str, Sequence[str]]  # by split; the first that exists
    layouts: Mapping[str, Layout]  # by convention

    def layout(self, convention: str) -> Layout:
        """The layout with this name. PlugError with the known names."""
        if convention not in self.layouts:
            raise PlugError(
                f"the task has no layout {convention!r}; there are {', '.join(self.layouts)}"
            )
        return self.layouts[convention]


_QUESTION = {
    "plug": Layout(("{answer}", "{context}"), "question"),
    "paddlenlp": Layout(
        ("答案：{answer}", "上下文：{context}"), "question", target_prefix="问题："
    ),
}
_JSON_FILES = {
    "train": ("train.json",),
    "validation": ("dev.json", "val.json"),
    "test": ("test.json",),
}

GENERATION_TASKS: Mapping[str, GenerationTask] = {
    "lcsts": GenerationTask(json_lines, _JSON_FILES, {"plug": Layout(("{content}",), "summary")}),
    "dureader_qg": GenerationTask(json_lines, _JSON_FILES, _QUESTION),
    "dureader_robust": GenerationTask(squad, _JSON_FILES, _QUESTION),
    "kbqg": GenerationTask(
        kbqa,
        {
            "train": ("nlpcc2016-2018.kbqa.train", "nlpcc-iccpol-2016.kbqa.training-data"),
            "validation": ("nlpcc2016.kbqa.test", "nlpcc-iccpol-2016.kbqa.testing-data"),
            "test": ("nlpcc2018.kbqa.test",),
        },
        {"plug": Layout(("{answer}", "{subject} {relation} {object}"), "question")},
    ),
    "advertisegen": GenerationTask(
        json_lines, _JSON_FILES, {"plug": Layout(("{content}",), "summary")}
    ),
    "csl_title": GenerationTask(
        json_lines,
        {
            "train": ("csl_title_train.json",),
            "validation": ("csl_title_dev.json", "csl_title_val.json"),
            "test": ("csl_title_test.json",),
        },
        {"plug": Layout(("{abst}",), "title")},
    ),
}


def find_task(name: str) -> GenerationTask:
    """The task with this name. PlugError with the known names."""
    if name not in GENERATION_TASKS:
        raise PlugError(
            f"there is no generation task {name!r}; there are {', '.join(GENERATION_TASKS)}"
        )
    return GENERATION_TASKS[name]


def find_file(task: GenerationTask, data: str, split: str) -> str:
    """The path of a split: in the directory of the task's files, or `data` itself if it is a file.

    Raises:
        PlugError: no file with one of the split's names.
    """
    data = os.path.expanduser(data)
    names = task.files.get(split)
    if names is None:
        raise PlugError(f"the task has no split {split!r}; there are {', '.join(task.files)}")
    if not tf.io.gfile.isdir(data):
        if tf.io.gfile.exists(data):
            return data
        raise PlugError(f"{data} does not exist; it must be the directory of {' or '.join(names)}")
    paths = [os.path.join(data, name) for name in names]
    for path in paths:
        if tf.io.gfile.exists(path):
            return path
    raise PlugError(f"the {split} split is not there: {data} has no {' and no '.join(names)}")


def read_pairs(path: str, split: str, *, read: Format, layout: Layout) -> list[Pair]:
    """The pairs of a file. PlugError, with the line, for malformed content.

    Test records may lack the target.
    """
    needs_target = split != _TEST
    records = enumerate(read(path))
    pairs = [layout.pair(record, n, needs_target=needs_target) for n, record in records]
    if not pairs:
        raise PlugError(f"{path} has no record")
    return pairs
