"""Scores of prediction files against labelled files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from plug_jax.clue.archives import Zip, is_zip
from plug_jax.clue.json_files import JsonFile
from plug_jax.clue.metrics import score
from plug_jax.clue.predictions import first_mistake, read_predictions
from plug_jax.clue.submission import FILE_NAMES, TASK_OF
from plug_jax.clue.tasks import DEV, ClueTask, Split, find_task
from plug_jax.errors import PlugError
from plug_jax.file_names import user_path


class Score(dict[str, float]):
    """Metrics by name, in percent, and the ids of unanswered questions, which count 0."""

    def __init__(self, metrics: Mapping[str, float], missing: Sequence[int | str]) -> None:
        super().__init__(metrics)
        self.missing = tuple(missing)

    def to_json(self) -> dict[str, Any]:
        """Metrics to three decimals, and the ids of unanswered questions under "missing"."""
        metrics = {name: round(value, 3) for name, value in self.items()}
        return {"metrics": metrics, **({"missing": list(self.missing)} if self.missing else {})}


def score_files(
    paths: Sequence[str], data: str | os.PathLike[str], task: str | None = None
) -> dict[str, Score]:
    """Scores by the names of the tasks.

    Args:
        paths: prediction files, or zips of them, in submission format.
        data: a file with labels, or CLUE's directory (or a zip), whose dev files are used.
        task: the task of a single file; by default from file names (tnews11_predict.json).

    Raises:
        PlugError: a file that is missing or malformed, one whose name gives no task,
            labels without a prediction, predictions without a label.
    """
    scores: dict[str, Score] = {}
    found = [one for path in paths for one in _files(user_path(path), task)]
    if task is not None and len(found) != 1:
        raise PlugError(f"there are {len(found)} files of predictions for the one task {task}")
    for name, file in found:
        if name in scores:
            raise PlugError(f"{file.path} is a second file of predictions for {name}")
        scores[name] = _score(find_task(name), file, data)
    return scores


def _score(task: ClueTask, file: JsonFile, data: str | os.PathLike[str]) -> Score:
    split = _labelled(task, user_path(data))
    found = read_predictions(task, file, split.records, split.dropped_ids)
    if serious := [mistake for mistake in found.mistakes if not mistake.is_doubt]:
        raise first_mistake(serious)
    return Score(score(task, split.records, found.values), found.missing)


def _labelled(task: ClueTask, data: Path) -> Split:
    return task.read(data, DEV) if data.is_dir() or is_zip(data) else task.read_file(data)


def _files(path: Path, task: str | None) -> Iterator[tuple[str, JsonFile]]:
    """(task, file) of each file of predictions at a path."""
    if not path.is_file():
        raise PlugError(f"there is no file of predictions {path}")
    if not is_zip(path):
        yield task or _task_of(path), JsonFile(str(path), path.read_bytes())
        return
    archive = Zip(path)
    for name in archive.names:
        member = PurePosixPath(name).name
        if task is None or FILE_NAMES.get(task) == member:
            place = f"{path}/{name}"
            yield task or _task_of(Path(place)), JsonFile(place, archive.content(name))
    if not archive.names:
        raise PlugError(f"{path} has no file of predictions")


def _task_of(path: Path) -> str:
    if path.name in TASK_OF:
        return TASK_OF[path.name]
    raise PlugError(
        f"the name of {path} does not tell its task; name the task, or rename the file as in a "
        f"submission: {', '.join(TASK_OF)}"
    )
