"""Input rows of named fields: from JSON lines, text, or the examples of a seqio task."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.caching.files import check_token_files
from plug_jax.data.pipeline.pipeline import find_task, import_tasks
from plug_jax.data.sources.file_source import Paths, as_list, matching_files
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.record_task import RecordTask
from plug_jax.errors import PlugError, shortened, shown
from plug_jax.field_types import check_fields
from plug_jax.objectives.composition import objectives_for
from plug_jax.objectives.continuation import Continuation, prompt_and_target
from plug_jax.strict_json import integer, kind_of

if TYPE_CHECKING:
    from plug_jax.inference.model import InferenceModel

PROMPT_FIELDS = ("prompt", "text", "inputs")  # fields to look up for a prompt, in this order
TARGET_FIELDS = ("target", "targets")

_KIND = "file of rows"  # JSON lines, or text
_BYTES_A_READ = 1 << 22
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PRETOKENIZED = "_pretokenized"  # seqio's suffix for a feature's original text


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of JSON, or one example."""

    fields: dict[str, Any]
    error: str | None = None  # why the line could not be read
    # Tokens of pre-tokenised fields: prompt with [CLS] and [SEP], target without [CLS].
    ids: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)

    def text(self, names: Sequence[str]) -> str:
        """The text of the first present of these fields. PlugError without any."""
        name, value = self.first(names)
        if not isinstance(value, str):
            raise PlugError(f"field {name!r} must hold text, not {kind_of(value)}")
        return checked_text(value, name)

    def first(self, names: Sequence[str]) -> tuple[str, Any]:
        """Name and value of the first present of these fields. PlugError without any."""
        for name in names:
            if name in self.fields:
                return name, self.fields[name]
        has = shortened(", ".join(self.fields)) or "no field at all"
        raise PlugError(f"no field {' or '.join(map(repr, names))}; the row has {has}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSource:
    """JSON lines, lines of text, or a seqio task or mixture; every iteration gives the same rows.

    Files are paths or globs, also on remote file systems (gs://...); those ending in .gz are
    compressed. A line of a file ending in .txt (or .txt.gz) is {"text": the line}. Blank lines are
    skipped; a line that is not a JSON object, or not UTF-8, is a row with an error, and the line in
    its field `line`.

    An example of a stage-2 task is {"prompt": the encoder's uncorrupted text, "target": the
    decoder's}, with its original tokens and its fields besides the features, such as "id" and
    "references". A task over records gives one row per record, in its format. For any other task,
    an example has each feature as text. The tasks of a mixture are read one after the other,
    ignoring rates.

    Raises:
        PlugError: neither or both of files and task, and while reading: files that are missing or
            damaged, an unknown task or split.
    """

    files: Paths | None = None
    mixture_or_task_name: str | None = None
    module: str | None = None  # imported first, to register its tasks
    split: str = "validation"

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.files is None) == (self.mixture_or_task_name is None):
            raise PlugError(
                "name what to read: either files (--input, INPUT) or a seqio task "
                "(MIXTURE_OR_TASK_NAME)"
            )

    def __iter__(self) -> Iterator[Row]:
        """The rows, read anew."""
        if self.files is not None:
            for path in self.paths():
                yield from _rows_of_file(path)
            return
        for task in self._tasks():
            if isinstance(task, RecordTask):
                records = task.splits_of_records.records(self.split)
                yield from (Row(task.format.fields(record)) for record in records)
                continue
            check_token_files(task, self.split)
            dataset = task.get_dataset(
                None, self.split, shuffle=False, seed=0, num_epochs=1, trim_output_features=False
            )
            for example in without_autotuning(dataset).as_numpy_iterator():
                yield _example_row(example, task.output_features)

    def paths(self) -> list[str]:
        """The files that are read; none for a task."""
        if self.files is None:
            return []
        return matching_files(as_list(self.files, kind=_KIND), kind=_KIND)

    def vocabulary(self) -> PlugVocabulary | None:
        """The vocabulary of pre-tokenised rows; None for text."""
        if self.files is not None:
            return None
        features = self._tasks()[0].output_features
        return _continuation_vocabulary(features)

    def _tasks(self) -> list[seqio.Task]:
        assert self.mixture_or_task_name is not None
        if self.module is not None:
            import_tasks(self.module)
        provider = find_task(self.mixture_or_task_name)
        tasks = [task for task in seqio.get_subtasks(provider) if self.split in task.splits]
        if not tasks:
            raise PlugError(
                f"{self.mixture_or_task_name!r} has no split {self.split!r}, only "
                f"{', '.join(provider.splits)}"
            )
        return tasks


@dataclasses.dataclass(frozen=True)
class Contents:
    """A summary of a source."""

    rows: int
    sha256: str  # of every field of every row


def contents_of(rows: Iterable[Row]) -> Contents:
    """Count and digest; reads all rows once."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        digest.update(to_json([row.fields, dict(row.ids)]) + b"\n")
        count += 1
    return Contents(count, digest.hexdigest())


def prompt_ids(model: InferenceModel, row: Row, field: str | None) -> list[int]:
    """[CLS] prompt [SEP] of a field; None: pre-tokenised, or the first present of PROMPT_FIELDS.

    Raises:
        PlugError: the prompt is missing or too long for the model.
    """
    if field is None and "prompt" in row.ids:
        ids = row.ids["prompt"]
        model.check_length("the number of the prompt's tokens", len(ids))
        return ids
    return model.prompt_ids(row.text(PROMPT_FIELDS if field is None else (field,)))


def to_json(value: Any) -> bytes:
    """JSON in UTF-8 with unescaped Chinese; lone surrogates are escaped.

    Raises ValueError for NaN and infinities.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def checked_text(text: str, name: str) -> str:
    """`text`; PlugError for invalid Unicode, which JSON can spell but files cannot store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PlugError(f"field {name!r} holds half of a surrogate pair: {shown(text)}") from error
    return text


def _rows_of_file(path: str) -> Iterator[Row]:
    read = _text_row if path.removesuffix(".gz").endswith(".txt") else _json_row
    with tf.io.gfile.GFile(path, "rb") as file:
        content = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
        try:
            for number, line in enumerate(_lines(content), start=1):
                if read is _text_row and not line.endswith(b"\n") and number == 1:
                    _check_returns(line, path)
                line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if line.strip():
                    yield read(line, f"{path}, line {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PlugError(f"{path} is damaged or not compressed by gzip: {error}") from error
        except tf.errors.OpError as error:
            raise PlugError(f"cannot read {path}: {error.message}") from error


def _lines(file: Any) -> Iterator[bytes]:
    """The lines of a file with their line feeds. TensorFlow's own lines lose carriage returns."""
    rest = b""
    while chunk := file.read(_BYTES_A_READ):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _check_returns(content: bytes, path: str) -> None:
    """PlugError for a file of several lines without line feeds."""
    if b"\r" in content.rstrip(b"\r"):
        raise PlugError(
            f"{path} ends no line with a line feed but has carriage returns, and would be one row: "
            "`tr '\\r' '\\n'` makes line feeds of them, `tr -d '\\r'` removes them"
        )


def _text_row(line: bytes, where: str) -> Row:
    try:
        return Row({"text": line.decode().rstrip("\r\n")})
    except UnicodeError:
        return Row(_undecoded(line), f"{where} is not UTF-8")


def _json_row(line: bytes, where: str) -> Row:
    raw = _undecoded(line)
    try:
        fields = json.loads(
            line.decode(), parse_constant=_finite, parse_float=_finite, parse_int=integer
        )
    except UnicodeError:
        return Row(raw, f"{where} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Row(raw, f"{where} is not JSON: {error}")
    if not isinstance(fields, dict):
        return Row(raw, f"{where} holds no JSON object but {kind_of(fields)}")
    return Row(fields)


def _undecoded(line: bytes) -> dict[str, Any]:
    """The fields of a row with an error."""
    return {"line": line.decode("utf-8", "backslashreplace").rstrip("\r\n")}


def _finite(number: str) -> float:
    """A JSON number; Python would also accept NaN and Infinity, which JSON does not allow."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(number)} is not a number that a row may hold")
    return value


def _example_row(example: Mapping[str, Any], features: Mapping[str, seqio.Feature]) -> Row:
    if (vocabulary := _continuation_vocabulary(features)) is not None:
        prompt, target = prompt_and_target(example)
        ids = {"prompt": prompt.tolist(), "target": target.tolist()}
        texts = {name: vocabulary.decode(tokens) for name, tokens in ids.items()}
        others = {
            n: _plain(np.asarray(v).tolist()) for n, v in example.items() if n not in features
        }
        return Row(others | texts, ids=ids)
    fields: dict[str, Any] = {}
    for name in sorted(example, key=lambda name: name.endswith(_PRETOKENIZED)):
        value, feature = np.asarray(example[name]), features.get(name)
        if feature is not None and value.ndim == 1 and value.dtype.kind in "iu":
            fields[name] = feature.vocabulary.decode(value.tolist())
        else:
            fields[name.removesuffix(_PRETOKENIZED)] = _plain(value.tolist())
    return Row(fields)


def _continuation_vocabulary(features: Mapping[str, seqio.Feature]) -> PlugVocabulary | None:
    """The vocabulary of a task whose decoder continues the encoder's text; None for others."""
    if not objectives_for(features, [Continuation()]):
        return None
    vocabulary = features["encoder_input_tokens"].vocabulary
    return vocabulary if isinstance(vocabulary, PlugVocabulary) else None


def _plain(value: Any) -> Any:
    """A feature as JSON, with NaN and infinities as strings such as "nan"."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
