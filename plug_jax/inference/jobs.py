"""Batch inference over the rows of an input: in order, on all devices and processes, resumable.

All processes of a run read the same rows and compute the same batches together, over one mesh; the
first process writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from plug_jax.atomic_files import is_remote
from plug_jax.checkpoints.saved_model import SavedModel, open_checkpoint, vocabulary_fingerprint
from plug_jax.compilation import use_compilation_cache
from plug_jax.config import ComputeDtype
from plug_jax.data.sources.file_source import as_list, literal_directories
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.file_locks import alone
from plug_jax.inference.batches import batches
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.model import InferenceModel, NoNumbersError, check_writes
from plug_jax.inference.parts import PartedOutput
from plug_jax.inference.placement import PlacedModel
from plug_jax.inference.progress import JobProgress
from plug_jax.inference.request_options import MAX_TEXTS
from plug_jax.inference.rows import Contents, Row, RowSource, contents_of
from plug_jax.partitioning import Partitioner

ERROR = "error"  # the field of a row that could not be answered
_BATCHES_A_PART = 8

Item = TypeVar("Item")
Model = TypeVar("Model", bound=PlacedModel)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result for a row."""

    fields: dict[str, Any]
    tokens: int  # generated, scored or read


class Work(Protocol[Model, Item]):
    """The work per row. An answer depends on the row and its index, not on its batch."""

    ANSWERS: ClassVar[tuple[str, ...]]  # the fields that an answer may have

    def settings(self) -> Mapping[str, Any]:
        """JSON settings that answers depend on, besides the model and the row."""

    def check(self, saved: SavedModel) -> None:
        """PlugError for an unsuitable checkpoint."""

    def load(self, saved: SavedModel, job: Job) -> Model:
        """The model, placed as the job says."""

    def prepare(self, model: Model, row: Row, index: int) -> Item:
        """The batch item of row number `index`. A PlugError is the row's, not the job's."""

    def size(self, item: Item) -> tuple[int, ...]:
        """Number of texts, then lengths. Only items with equal numbers of texts share a batch."""

    def answer(self, model: Model, items: Sequence[Item]) -> Sequence[Answer | NoNumbersError]:
        """An answer for each item of a batch, or a NoNumbersError."""


class DecoderWork:
    """Work that generates or scores texts."""

    def check(self, saved: SavedModel) -> None:
        """PlugError for a checkpoint without a decoder."""
        check_writes(saved)

    def load(self, saved: SavedModel, job: Job) -> InferenceModel:
        """The checkpoint's model."""
        return InferenceModel.load(
            saved.path, job.partitioner, job.dtype, int8=job.int8, verify=job.verify_checkpoint
        )


class EncoderWork:
    """Work that encodes texts."""

    def check(self, saved: SavedModel) -> None:
        """PlugError for a checkpoint without an encoder, or without a vocabulary."""
        if saved.config.num_encoder_layers == 0:
            raise PlugError(
                f"{saved.path} is a decoder alone, a baseline to compare PLUG with: it has no "
                "encoder to read texts with"
            )
        _ = saved.vocabulary_path

    def load(self, saved: SavedModel, job: Job) -> EncoderModel:
        """The checkpoint's encoder."""
        return EncoderModel.load(
            saved.path, job.partitioner, job.dtype, int8=job.int8, verify=job.verify_checkpoint
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A model, its input and its output."""

    checkpoint: str  # a MODEL_DIR, or one step in it
    rows: RowSource | Sequence[Row]
    output: str | None = None
    batch_size: int = 32  # texts per batch
    partitioner: Partitioner | None = None  # None: the first device
    dtype: ComputeDtype | None = None  # None: the training dtype
    int8: bool = False  # 8-bit weights
    compilation_cache_dir: str | None = None
    verify_checkpoint: bool = True  # check the arrays against their checksums

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.batch_size <= MAX_TEXTS:
            raise PlugError(f"BATCH_SIZE must be between 1 and {MAX_TEXTS}, not {self.batch_size}")
        if self.output is not None:
            object.__setattr__(self, "output", os.path.expanduser(self.output))


class Counts:
    """Numbers of rows, rows with an error, and shortened texts."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("rows", "errors", "shortened"), 0)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self._counts["rows"] += 1
        self._counts["errors"] += ERROR in row
        self._counts["shortened"] += "left_out" in row

    def fields(self) -> dict[str, Any]:
        """The counts by name."""
        return dict(self._counts)


def run(job: Job, work: Work[Any, Any]) -> Iterator[dict[str, Any]]:
    """Each row with its answer's fields, in input order; iterate to the end.

    A row without an answer has an `error` instead; input fields of these names are replaced. With
    an output, rows are saved part by part (`PartedOutput`), and those saved by an earlier run are
    not recomputed. The first process gets all rows, the others only those that they helped to
    compute.

    Raises:
        PlugError: no checkpoint or no rows, an output of another job or run, processes without
            a mesh, tokens of another vocabulary.
        NoNumbersError: outputs are not finite for any row of the first part.
    """
    use_compilation_cache(job.compilation_cache_dir)
    saved = open_checkpoint(job.checkpoint)
    contents = contents_of(job.rows)
    work.check(saved)
    _check(job, saved, contents)
    with _alone(job.output):
        yield from _results(job, work, saved, contents)


@contextlib.contextmanager
def _alone(output: str | None) -> Iterator[None]:
    """Within the context, no other run writes this output: its parts would be mixed up."""
    if output is None or jax.process_index() > 0:
        yield
        return
    if not is_remote(output):
        with contextlib.suppress(OSError):  # reported by what writes there
            os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    with alone(f"{output}.lock", f"another run is writing OUTPUT {output}"):
        yield


def _results(
    job: Job, work: Work[Any, Any], saved: SavedModel, contents: Contents
) -> Iterator[dict[str, Any]]:
    """Each row with its answer's fields, as `run`."""
    output, place = _open_output(job, work, saved, contents)
    if place.complete:
        yield from output.read_all() if output else ()
        return
    progress = JobProgress(
        contents.rows,
        done=min(place.parts_done * place.rows_per_part, contents.rows),
        shown=jax.process_index() == 0,
    )
    model: PlacedModel | None = None
    for number, part in enumerate(_chunks(enumerate(job.rows), place.rows_per_part)):
        if number < place.parts_done:
            yield from output.read(number) if output else ()
            continue
        try:
            model = model or work.load(saved, job)
            rows = _answer(model, work, part, job.batch_size, progress)
            if number == 0 and {row.get(ERROR) for row in rows} == {str(NoNumbersError())}:
                raise NoNumbersError  # for none of many rows: the model is broken
            if output is not None:
                output.write(number, rows)
        except KeyboardInterrupt:
            if output is not None:
                progress.stop(number * place.rows_per_part)
            raise
        yield from rows
    if output is not None:
        output.finish()
    progress.finish()


def _answer(
    model: Model,
    work: Work[Model, Item],
    part: Sequence[tuple[int, Row]],
    batch_size: int,
    progress: JobProgress,
) -> list[dict[str, Any]]:
    """The rows of a part with their answers, batched by length."""
    results: list[dict[str, Any]] = []
    items: list[Item] = []
    places: list[int] = []  # of the items in the part
    for index, row in part:
        results.append({k: v for k, v in row.fields.items() if k not in (ERROR, *work.ANSWERS)})
        try:
            if row.error is not None:
                raise PlugError(row.error)
            items.append(work.prepare(model, row, index))
            places.append(len(results) - 1)
        except PlugError as error:
            results[-1][ERROR] = str(error)
            progress.add(1)
    for batch, full in batches(model, items, work.size, batch_size):
        answers = work.answer(model, full)[: len(batch)]
        tokens = 0
        for item, answer in zip(batch, answers, strict=True):
            if isinstance(answer, NoNumbersError):
                results[places[item]][ERROR] = str(answer)
            else:
                results[places[item]] |= answer.fields
                tokens += answer.tokens
        progress.add(len(batch), tokens)
    return results


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a run resumes."""

    complete: bool
    parts_done: int
    rows_per_part: int


def _open_output(
    job: Job, work: Work[Any, Any], saved: SavedModel, contents: Contents
) -> tuple[PartedOutput | None, _Place]:
    """The output (on the first process), and where all processes resume."""
    rows_per_part = _BATCHES_A_PART * job.batch_size
    output, place = None, _Place(False, 0, rows_per_part)
    if job.output is None:
        return output, place
    if jax.process_index() == 0:
        settings = {
            "checkpoint": {"path": os.fspath(saved.path), "saved": _time_of(saved)},
            "input": dataclasses.asdict(contents),
            "options": {**work.settings(), "dtype": job.dtype, "int8": job.int8},
        }
        output = PartedOutput(job.output, settings, rows=contents.rows, rows_per_part=rows_per_part)
        place = _Place(output.complete, output.parts_done, output.rows_per_part)
    if jax.process_count() > 1:
        first = multihost_utils.broadcast_one_to_all(np.array(dataclasses.astuple(place), np.int32))
        place = _Place(bool(first[0]), int(first[1]), int(first[2]))
    return output, place


def _time_of(saved: SavedModel) -> str | None:
    """When orbax finished writing the checkpoint, if recorded."""
    metadata = saved.path / "_CHECKPOINT_METADATA"
    written = json.loads(metadata.read_text()) if metadata.exists() else {}
    seconds = written.get("commit_timestamp_nsecs", 0) / 1e9
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat() if seconds else None


def _check(job: Job, saved: SavedModel, contents: Contents) -> None:
    """Raises PlugError for an unsuitable checkpoint or input."""
    if isinstance(job.rows, RowSource):
        vocabulary = job.rows.vocabulary()
        if vocabulary and vocabulary_fingerprint(vocabulary) != saved.vocabulary_fingerprint:
            raise PlugError(
                f"{job.rows.mixture_or_task_name!r} has another vocabulary than the model, which "
                f"needs {saved.vocabulary_path}"
            )
        if job.output is not None and job.rows.files is not None:
            _check_apart(job.output, as_list(job.rows.files, kind="file"))
    if contents.rows == 0:
        raise PlugError("there is nothing to do: the input has no rows")
    if jax.process_count() > 1:
        if job.partitioner is None:
            raise PlugError(
                "several processes work on one mesh: name it, such as --gin_file=mesh/cpu1.gin"
            )
        digest = np.frombuffer(bytes.fromhex(contents.sha256), np.uint8)
        if len(np.unique(multihost_utils.process_allgather(digest), axis=0)) > 1:
            raise PlugError("the processes of this run read different inputs; all need the same")


def _check_apart(output: str, inputs: Sequence[str]) -> None:
    path = os.path.abspath(output)
    for pattern in inputs:
        as_pattern = os.path.abspath(literal_directories(pattern))
        if path == os.path.abspath(pattern) or PurePath(path).match(as_pattern):
            raise PlugError(
                f"OUTPUT {output} would be read as INPUT {pattern}; choose another OUTPUT"
            )


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
