"""Submissions to CLUE's leaderboards: writing and checking them."""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from plug_jax.atomic_files import write_whole
from plug_jax.clue.archives import Zip
from plug_jax.clue.json_files import JsonFile
from plug_jax.clue.predictions import Mistake, Mistakes, first_mistake, read_predictions
from plug_jax.clue.records import Record
from plug_jax.clue.tasks import CLUE, TEST, ClueTask, find_task
from plug_jax.errors import PlugError
from plug_jax.file_names import user_path

# File names before _predict.json. None is known for DRCD, and the smaller OCNLI have no
# leaderboard. The diagnostics are predicted by an OCNLI model; EPRSTMT belongs to FewCLUE.
_STEMS = {
    "afqmc": "afqmc",
    "tnews": "tnews11",
    "tnews10": "tnews10",
    "iflytek": "iflytek",
    "cmnli": "cmnli",
    "ocnli": "ocnli_50k",
    "cluewsc": "cluewsc11",
    "cluewsc10": "cluewsc10",
    "csl": "csl",
    "cmrc2018": "cmrc2018",
    "chid": "chid11",
    "chid10": "chid10",
    "c3": "c311",
    "c310": "c310",
    "cluener": "cluener",
    "eprstmt": "eprstmt",
    "diagnostics": "diagnostics",
}
FILE_NAMES: Mapping[str, str] = {task: f"{stem}_predict.json" for task, stem in _STEMS.items()}
TASK_OF: Mapping[str, str] = {name: task for task, name in FILE_NAMES.items()}

_BOTH = ("afqmc", "iflytek", "ocnli", "csl", "cmrc2018", "cluener", "diagnostics")
# The tasks in a submission by version: those of its leaderboards, CLUENER, diagnostics.
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "1.0": (*_BOTH, "cmnli", "tnews10", "cluewsc10", "chid10", "c310"),
    "1.1": (*_BOTH, "tnews", "cluewsc", "chid", "c3"),
}
_OTHER_TEST_SET = {
    **{name: f"{name}10" for name in ("tnews", "cluewsc", "chid", "c3")},
    **{f"{name}10": name for name in ("tnews", "cluewsc", "chid", "c3")},
}
_ZIP_NAME = re.compile(r"submit_.+_.+\.zip")


@dataclasses.dataclass(frozen=True)
class Validation:
    """The contents and mistakes of a submission."""

    predictions: Mapping[str, int]  # their number by file name
    mistakes: tuple[Mistake, ...]

    @property
    def is_valid(self) -> bool:
        """Whether there are no mistakes, apart from doubts."""
        return all(mistake.is_doubt for mistake in self.mistakes)

    def to_json(self) -> dict[str, Any]:
        """All of it by name."""
        mistakes = [dataclasses.asdict(mistake) for mistake in self.mistakes]
        return {"valid": self.is_valid, "predictions": self.predictions, "mistakes": mistakes}


def validate_submission(
    path: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> Validation:
    """Find every mistake in a zip before it is uploaded.

    Args:
        path: the zip.
        data_dir: CLUE's directory, with the test files that the predictions are for.

    Raises:
        PlugError: there is no such zip.
    """
    path = user_path(path)
    if not path.is_file():
        raise PlugError(f"there is no file {path}")
    archive = Zip(path)
    mistakes = Mistakes()
    predictions: dict[str, int] = {}
    found: list[Mistake] = []
    if not _ZIP_NAME.fullmatch(path.name):
        message = "zips are called submit_<team>_<date>.zip"
        mistakes.add("zip", path.name, message, is_doubt=True)
    for name in archive.names:
        base = PurePosixPath(name).name
        if name != base:
            message = "it is in a folder; files must be at the root of the zip"
            mistakes.add("folder", name, message)
        if base in predictions:
            mistakes.add(f"twice {base}", name, "the zip has it more than once")
            continue
        task = TASK_OF.get(base)
        if task is None:
            hint, task = _meant(base)
            mistakes.add(f"name {base}", name, f"it is not a file of a submission; {hint}")
        if task is None:
            continue
        try:
            file = JsonFile(base, archive.content(name))
        except PlugError as error:
            mistakes.add(f"damage {base}", name, str(error))
            continue
        predictions[base], wrong = _check_file(CLUE[task], file, data_dir)
        found += wrong
    if not predictions:
        mistakes.add("nothing", path.name, "it has no file of predictions, <task>_predict.json")
    return Validation(predictions, (*mistakes.all(), *found))


def write_submission(
    predictions: Mapping[str, Mapping[Any, Any]],
    data_dir: str | os.PathLike[str],
    version: str,
    output: str | os.PathLike[str],
) -> None:
    """Write a zip for a leaderboard, and check it.

    Args:
        predictions: by task name and id of each test record: a label, the index of a choice or
            candidate, a text, or entities.
        data_dir: CLUE's directory, for the ids and their order.
        version: "1.0" or "1.1"; 1.0 has the test sets tnews10, cluewsc10, chid10 and c310.
        output: submit_<team>_<date>.zip.

    Raises:
        PlugError: a task that the version lacks, records without a prediction, predictions
            without a record, anything the leaderboard would reject, an existing file.
    """
    output = user_path(output)
    check_new(output)
    if not predictions:
        raise PlugError("there is nothing to submit: no task has predictions")
    if version not in VERSIONS:
        raise PlugError(f"CLUE has no version {version!r}; there are {', '.join(VERSIONS)}")
    contents = {}
    for name, values in predictions.items():
        task = find_task(name)
        if name not in VERSIONS[version]:
            raise _not_of_version(name, version)
        contents[FILE_NAMES[name]] = predictions_file(
            task, task.read(data_dir, TEST).records, values
        )
    for file_name, content in contents.items():
        file = JsonFile(file_name, content)
        _, wrong = _check_file(CLUE[TASK_OF[file_name]], file, data_dir)
        if serious := [mistake for mistake in wrong if not mistake.is_doubt]:
            raise first_mistake(serious)
    output.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as whole:
        for file_name, content in contents.items():
            whole.writestr(file_name, content)
    write_whole(output, packed.getvalue())


def check_new(output: str | os.PathLike[str]) -> None:
    """PlugError unless a submission can be called so, and no file is."""
    output = user_path(output)
    if output.suffix != ".zip":
        raise PlugError(f"a submission is a zip, submit_<team>_<date>.zip, not {output.name}")
    if output.exists():
        raise PlugError(f"{output} exists already; remove it, or name another file")


def task_of_version(name: str, version: str) -> str:
    """The task with a leaderboard version's test set: ("tnews", "1.0") -> "tnews10".

    Models for any of OCNLI's training set sizes count as OCNLI.

    Raises:
        PlugError: the version has none for this task.
    """
    base = "ocnli" if name.startswith("ocnli_") else name
    candidates = (base, _OTHER_TEST_SET.get(base))
    found = next((one for one in candidates if one in VERSIONS[version]), None)
    if found is None:
        raise _not_of_version(base, version)
    return found


def predictions_file(
    task: ClueTask, records: Sequence[Record], predictions: Mapping[Any, Any]
) -> bytes:
    """Predictions of all records in submission format, in the order of the records.

    CMRC, DRCD and CHID: one object, by id. The others: lines of {"id", "label"} with the archive's
    label string, for C3 the index of the choice as a string, for CLUENER its nested object with
    inclusive ends.

    Raises:
        PlugError: a record without a prediction, a prediction without a record.
    """
    ids = [record.id for record in records]
    known = set(ids)
    for what, wrong in (
        ("no prediction for", [id_ for id_ in ids if id_ not in predictions]),
        ("a prediction for the unknown", [id_ for id_ in predictions if id_ not in known]),
    ):
        if wrong:
            raise PlugError(f"{task.name} has {what} id {wrong[0]!r} ({len(wrong):,} in all)")
    if task.kind in ("question", "blank"):
        return _json({str(id_): predictions[id_] for id_ in ids})
    if task.kind == "choice":
        predictions = {id_: str(predictions[id_]) for id_ in ids}
    if task.kind == "entity":
        predictions = {id_: _nested_entities(predictions[id_]) for id_ in ids}
    return b"".join(_json({"id": id_, "label": predictions[id_]}) for id_ in ids)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _nested_entities(entities: Any) -> dict[str, dict[str, list[list[int]]]]:
    nested: dict[str, dict[str, list[list[int]]]] = {}
    for entity in sorted(entities, key=lambda one: (one.start, one.end, one.type)):
        places = nested.setdefault(entity.type, {}).setdefault(entity.text, [])
        places.append([entity.start, entity.end - 1])
    return nested


def _check_file(
    task: ClueTask, file: JsonFile, data_dir: str | os.PathLike[str]
) -> tuple[int, list[Mistake]]:
    """The number of predictions, and the mistakes."""
    try:
        records = task.read(data_dir, TEST).records
    except PlugError as error:
        return 0, [Mistake(file.path, f"it cannot be checked: {error}")]
    found = read_predictions(task, file, records, for_board=True)
    mistakes = list(found.mistakes)
    other = _OTHER_TEST_SET.get(task.name)
    if mistakes and other is not None and _fits(CLUE[other], file, data_dir):
        message = f"it has the ids of the other test set; its name is {FILE_NAMES[other]}"
        mistakes.append(Mistake(file.path, message))
    return len(found.values), mistakes


def _fits(task: ClueTask, file: JsonFile, data_dir: str | os.PathLike[str]) -> bool:
    try:
        records = task.read(data_dir, TEST).records
    except PlugError:
        return False  # there is no test set to compare with
    return not read_predictions(task, file, records, for_board=True).mistakes


def _meant(base: str) -> tuple[str, str | None]:
    """The message for a wrong name, and the task if it is unambiguous."""
    stem = re.sub(r"(_predict(ions?)?)?(\.jsonl?)?$", "", base.lower(), count=1)
    versions = [name for name in _OTHER_TEST_SET if name.removesuffix("10") == stem]
    if versions:
        return f"it is one of {' and '.join(FILE_NAMES[name] for name in versions)}", None
    tasks = {stem: task for task, stem in _STEMS.items()} | {"ocnli": "ocnli", "cmrc": "cmrc2018"}
    near = difflib.get_close_matches(stem, tasks, n=1, cutoff=0.8)
    task = tasks[near[0]] if near else None
    if task is None:
        return f"there are {', '.join(TASK_OF)}", None
    return f"it scores 0 unless it is called {FILE_NAMES[task]}", task


def _not_of_version(name: str, version: str) -> PlugError:
    other = _OTHER_TEST_SET.get(name)
    if other in VERSIONS[version]:
        return PlugError(f"version {version} has the test set {other}, not {name}")
    return PlugError(
        f"a submission to CLUE {version} has no {name}; it has {', '.join(VERSIONS[version])}"
    )
