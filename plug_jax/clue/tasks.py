"""The tasks of CLUE: files, labels in the order of the published baselines, lengths."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from plug_jax.clue.archives import (
    Archive,
    archive_name,
    find_archive,
    named_archive,
    not_there,
)
from plug_jax.clue.json_files import JsonFile
from plug_jax.clue.readers import (
    Reader,
    keywords_and_abstract,
    marked_text,
    one_text,
    pair_of,
    read_blanks,
    read_choices,
    read_entities,
    read_questions,
    read_texts,
)
from plug_jax.clue.records import Record
from plug_jax.errors import PlugError
from plug_jax.file_names import user_path

Kind = Literal["text", "choice", "blank", "question", "entity"]
Files = Mapping[str, tuple[str, ...]]  # file names by split

TRAIN, VALIDATION, TEST = "train", "validation", "test"
DEV = "dev"  # name of the validation split in files and on the command line


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split in file order, and counts of those dropped."""

    records: list[Record]
    dropped: dict[str, int]  # by reason
    path: str  # where the first file of the split is
    dropped_ids: tuple[int | str, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # bytes by file


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClueTask:
    """A task: its files, their reader, and its labels."""

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()  # the archive's, in the baselines' order
    max_length: int  # tokens of an input in the baselines
    folders: tuple[str, ...]  # names of its folder or zip, in lower case, without _public
    files: Files
    reader: Reader
    unanswered: tuple[str, ...] = (TEST,)  # splits without answers

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that the task may have; files of some may be missing."""
        return tuple(self.files)

    def read(self, data_dir: str | os.PathLike[str], split: str) -> Split:
        """The records of a split ("dev" is "validation").

        `data_dir` is the CLUE directory, with a folder `<task>` or `<task>_public` or a zip
        `<task>_public.zip` (read in place), in upper or lower case; or such a folder or zip itself.

        Raises:
            PlugError: an unknown split, or a file that is missing, truncated or malformed.
        """
        name = split.replace(DEV, VALIDATION) if split.startswith(DEV) else split
        if name not in self.files:
            raise PlugError(f"{self.name} has no split {split!r}, only {', '.join(self.splits)}")
        archive = self._archive(data_dir, self.files[name])
        return self._read([archive.read(file) for file in self.files[name]], name)

    def splits_in(self, data_dir: str | os.PathLike[str]) -> tuple[str, ...]:
        """The splits with a file in `data_dir`.

        Raises:
            PlugError: the task is not there.
        """
        every = tuple(dict.fromkeys(itertools.chain(*self.files.values())))
        archive = self._archive(data_dir, every)
        found = tuple(split for split, names in self.files.items() if any(map(archive.find, names)))
        if not found:
            raise PlugError(
                f"{archive.path} has none of the files of {self.name}: {', '.join(every)}"
            )
        return found

    def _archive(self, data_dir: str | os.PathLike[str], files: Sequence[str]) -> Archive:
        if (named := named_archive(data_dir, self.folders)) is not None:
            return named
        other = _FOLDERS.get(archive_name(user_path(data_dir)))
        if other is not None and named_archive(data_dir, (other,)) is not None:
            raise PlugError(f"{data_dir} holds the files of {other}, not of {self.name}")
        return find_archive(data_dir, self.folders, files)

    def read_file(self, path: str | os.PathLike[str]) -> Split:
        """The records of a file with answers; CHID's answers are next to it (dev_answer.json).

        Raises:
            PlugError: it is missing, malformed or has no answers.
        """
        paths = [user_path(path)]
        if self.kind == "blank":
            paths.append(paths[0].with_name(f"{paths[0].stem}_answer.json"))
        for one in paths:
            if not one.is_file():
                raise PlugError(f"there is no file {one}")
        return self._read([JsonFile(str(one), one.read_bytes()) for one in paths], VALIDATION)

    def _read(self, files: Sequence[JsonFile], split: str) -> Split:
        records, dropped = self.reader(files, split not in self.unanswered, self.labels)
        if not records:
            raise PlugError(f"{files[0].path} gives no record for {self.name}")
        counts = {reason: len(ids) for reason, ids in dropped.items()}
        ids = tuple(itertools.chain(*dropped.values()))
        sizes = {file.path: len(file.content) for file in files}
        return Split(records, counts, files[0].path, ids, sizes)


def find_task(name: str) -> ClueTask:
    """The task with this name. PlugError if there is none."""
    if name in CLUE:
        return CLUE[name]
    nearest = difflib.get_close_matches(name.lower(), CLUE, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(CLUE)}"
    raise PlugError(f"CLUE has no task {name!r}; {hint}")


def tasks_in(data_dir: str | os.PathLike[str]) -> list[ClueTask]:
    """The tasks with folders or zips in `data_dir`, or the one whose folder it is.

    Raises:
        PlugError: there is none.
    """
    if not user_path(data_dir).exists():
        raise not_there(data_dir)
    found = [task for task in _TASKS if named_archive(data_dir, task.folders) is not None]
    if not found:
        names = ", ".join(dict.fromkeys(_FOLDERS.values()))
        raise PlugError(
            f"{data_dir} holds no task of CLUE; looked for folders and zips in it called <task>, "
            f"<task>_public or <task>_public.zip, and for its own name, of the tasks {names}; name "
            "the task if the files are in a folder of another name"
        )
    return found


def _files(test: str = "test.json", train: str = "train.json") -> dict[str, tuple[str, ...]]:
    return {TRAIN: (train,), VALIDATION: ("dev.json",), TEST: (test,)}


def _eprstmt_files() -> dict[str, tuple[str, ...]]:
    """FewCLUE's five samples; train and validation are the first ones."""
    files = {**_files("test.json", "train_0.json"), VALIDATION: ("dev_0.json",)}
    files |= {"test_public": ("test_public.json",), "unlabeled": ("unlabeled.json",)}
    for sample in ("1", "2", "3", "4", "few_all"):
        files[f"train_{sample}"] = (f"train_{sample}.json",)
        files[f"validation_{sample}"] = (f"dev_{sample}.json",)
    return files


_BOOLEAN = ("0", "1")
_INFERENCE = ("contradiction", "entailment", "neutral")
_TNEWS = tuple(str(label) for label in range(100, 117) if label not in (105, 111))
_IFLYTEK = tuple(str(label) for label in range(119))
_ENTITIES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)
_PAIR = read_texts(pair_of("sentence1", "sentence2"))


def _text_task(
    name: str,
    labels: tuple[str, ...],
    folders: tuple[str, ...],
    files: Files,
    reader: Reader = _PAIR,
    max_length: int = 128,
    unanswered: tuple[str, ...] = (TEST,),
) -> ClueTask:
    return ClueTask(
        name=name,
        kind="text",
        labels=labels,
        max_length=max_length,
        folders=folders,
        files=files,
        reader=reader,
        unanswered=unanswered,
    )


def _ocnli(name: str, size: str) -> ClueTask:
    return _text_task(name, _INFERENCE, ("ocnli",), _files(train=f"train.{size}.json"))


def _tnews(name: str, test: str) -> ClueTask:
    return _text_task(name, _TNEWS, ("tnews",), _files(test), read_texts(one_text))


def _cluewsc(name: str, test: str) -> ClueTask:
    reader = read_texts(marked_text)
    folders = ("cluewsc2020", "cluewsc", "wsc")
    return _text_task(name, ("true", "false"), folders, _files(test), reader)


def _questions(name: str, folders: tuple[str, ...], files: Files, **settings: object) -> ClueTask:
    return ClueTask(
        name=name,
        kind="question",
        max_length=512,
        folders=folders,
        files=files,
        reader=read_questions,
        **settings,  # type: ignore[arg-type]
    )


def _chid(name: str, test: str) -> ClueTask:
    files = {
        TRAIN: ("train.json", "train_answer.json"),
        VALIDATION: ("dev.json", "dev_answer.json"),
        TEST: (test,),
    }
    return ClueTask(
        name=name, kind="blank", max_length=64, folders=("chid",), files=files, reader=read_blanks
    )


def _c3(name: str, test: str) -> ClueTask:
    files = {
        TRAIN: ("d-train.json", "m-train.json"),
        VALIDATION: ("d-dev.json", "m-dev.json"),
        TEST: (test,),
    }
    return ClueTask(
        name=name, kind="choice", max_length=512, folders=("c3",), files=files, reader=read_choices
    )


_TASKS = (
    _text_task("afqmc", _BOOLEAN, ("afqmc",), _files()),
    _tnews("tnews", "test.json"),
    _tnews("tnews10", "test1.0.json"),
    _text_task("iflytek", _IFLYTEK, ("iflytek",), _files(), read_texts(one_text)),
    _text_task("cmnli", _INFERENCE, ("cmnli",), _files()),
    _ocnli("ocnli", "50k"),
    _ocnli("ocnli_30k", "30k"),
    _ocnli("ocnli_10k", "10k"),
    _ocnli("ocnli_3k", "3k"),
    _cluewsc("cluewsc", "test.json"),
    _cluewsc("cluewsc10", "test1.0.json"),
    _text_task("csl", _BOOLEAN, ("csl",), _files(), read_texts(keywords_and_abstract), 256),
    _questions("cmrc2018", ("cmrc2018", "cmrc"), {**_files(), "trial": ("trial.json",)}),
    _questions("drcd", ("drcd",), _files(), unanswered=()),
    _chid("chid", "test1.1.json"),
    _chid("chid10", "test1.0.json"),
    _c3("c3", "test1.1.json"),
    _c3("c310", "test1.0.json"),
    ClueTask(
        name="cluener",
        kind="entity",
        labels=_ENTITIES,
        max_length=128,
        folders=("cluener", "cluener2020"),
        files=_files(),
        reader=read_entities,
    ),
    _text_task(
        "eprstmt",
        ("Negative", "Positive"),
        ("eprstmt",),
        _eprstmt_files(),
        read_texts(one_text),
        unanswered=(TEST, "unlabeled"),
    ),
    _text_task(
        "diagnostics",
        _INFERENCE,
        ("diagnostics", "clue_diagnostics"),
        {TEST: ("diagnostics_test.json",)},
        read_texts(pair_of("premise", "hypothesis"), id_key="index"),
    ),
)

# By name; plain names have the current test set, ...10 that of 1.0.
CLUE: Mapping[str, ClueTask] = MappingProxyType({task.name: task for task in _TASKS})

# The main name for each name of a folder.
_FOLDERS = {folder: task.folders[0] for task in _TASKS for folder in task.folders}
