"""Metric writers: metrics.jsonl, TensorBoard, and progress on the terminal."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TextIO, TypeVar, cast

import tensorflow as tf
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event

from plug_jax import strict_json
from plug_jax.atomic_files import is_remote, write_whole
from plug_jax.errors import PlugError
from plug_jax.standard_error import Unfailing
from plug_jax.training.tensorboard_events import EventFiles, going_on_from, picture, scalars

METRICS_FILE = "metrics.jsonl"
_SUMMARY_FILE = "summary.json"

_log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


class MetricsWriter:
    """Appends to MODEL_DIR/metrics.jsonl and writes TensorBoard events; one process only.

    Records that cannot be written, as on a full disk, wait for the next attempt; `sync` raises.
    """

    def __init__(self, model_dir: str | os.PathLike[str], *, start_step: int) -> None:
        """Open for writing; records of an earlier run beyond `start_step` are dropped.

        These steps are repeated after the newest checkpoint, so each step is recorded once.
        """
        self._path = os.path.join(os.fspath(model_dir), METRICS_FILE)
        events = EventFiles(os.path.join(os.fspath(model_dir), "tensorboard"))
        self._events: _Backlog[Event] = _Backlog(events)
        self._lines: _Backlog[bytes] | None = None
        self.go_on_from(start_step)

    def go_on_from(self, step: int) -> None:
        """Drop records after `step`, from whose checkpoint the run resumes."""
        if self._lines is not None:
            self._lines.close()
        _cut(self._path, step)
        self._lines = _Backlog(_open_lines(self._path))
        self._events.add(going_on_from(step))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line {"step", "split", metrics...}, and the same scalars as `split/name`."""
        assert self._lines is not None
        record = strict_json.dumps({"step": step, "split": split, **values})
        self._lines.add(f"{record}\n".encode())
        self._events.add(scalars(step, {f"{split}/{k}": v for k, v in values.items()}))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values only for TensorBoard, which a repetition of the steps would not reproduce."""
        self._events.add(scalars(step, values))

    def write_image(self, step: int, name: str, png: bytes) -> None:
        """An image, only for TensorBoard."""
        self._events.add(picture(step, name, png))

    def sync(self) -> None:
        """Wait until everything is on disk, so that no checkpoint exists without its records.

        Raises:
            OSError: some of it cannot be written.
        """
        assert self._lines is not None
        for backlog in (self._lines, self._events):
            backlog.sync()

    def close(self) -> None:
        """Close the files."""
        assert self._lines is not None
        for backlog in (self._lines, self._events):
            backlog.close()


class _File(Protocol[Item]):
    """A file with atomic appends."""

    def append(self, item: Item, /) -> None:
        """Append an item, or raise OSError."""

    def sync(self) -> None:
        """Wait until everything is on disk."""

    def close(self) -> None:
        """Close the file."""


class _Backlog(Generic[T]):
    """A file, and items that wait until it is writable again."""

    def __init__(self, file: _File[T]) -> None:
        self._file = file
        self._waiting: collections.deque[T] = collections.deque()

    def add(self, item: T) -> None:
        was_waiting = bool(self._waiting)
        self._waiting.append(item)
        try:
            self._write()
        except OSError as error:
            if not was_waiting:
                _log.warning("metrics wait until they can be written: %s", error)

    def sync(self) -> None:
        self._write()
        self._file.sync()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._write()
        self._file.close()

    def _write(self) -> None:
        while self._waiting:
            self._file.append(self._waiting[0])
            self._waiting.popleft()


class _LocalLines:
    """A file of lines on a local disk."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._size = os.fstat(self._file.fileno()).st_size

    def append(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
            while written < len(line):  # the disk is nearly full, or a signal arrived
                written += self._file.write(line[written:])
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._size)
            raise OSError(error.errno, error.strerror, self._file.name) from error
        self._size += len(line)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _RemoteLines:
    """An object in a store such as gs://, rewritten by TensorFlow with each line."""

    def __init__(self, path: str) -> None:
        # For gs:// only the flush of TensorFlow's own files reaches the store.
        self._file = tf.io.gfile.GFile(path, "a")

    def append(self, line: bytes) -> None:
        self._file.write(line.decode())
        with contextlib.suppress(OSError):  # the line is kept for the next flush
            self.sync()

    def sync(self) -> None:
        try:
            self._file.flush()
        except tf.errors.OpError as error:
            raise OSError(error.error_code, error.message, self._file.name) from error

    def close(self) -> None:
        self._file.close()


def _open_lines(path: str) -> _File[bytes]:
    return _RemoteLines(path) if is_remote(path) else _LocalLines(path)


def _cut(path: str, step: int) -> None:
    """Cut metrics.jsonl after `step`, if there are later records or an incomplete one."""
    file = epath.Path(path)
    if file.exists():
        kept = [r for r in read_metrics(file.parent) if r["step"] <= step]
        lines = "".join(f"{strict_json.dumps(record)}\n" for record in kept)
        if lines.encode() != file.read_bytes():
            write_whole(path, lines)


def read_metrics(model_dir: str | os.PathLike[str]) -> list[dict]:
    """The records of MODEL_DIR/metrics.jsonl in order; empty without one.

    An incomplete last line of a killed run is ignored; null is NaN. PlugError for a line that is
    not a record.
    """
    path = epath.Path(model_dir) / METRICS_FILE
    if not path.exists():
        return []
    records = []
    # An incomplete line after a machine crash may have any bytes.
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                records.append(_record(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise PlugError(
                f"{path}, line {number}, is not a record of a step: {line[:40]!r}. Take the line "
                "out; "
                "no run needs it to resume, but one that keeps its best checkpoint looks there for "
                "its scores"
            ) from error
    return records


def _record(value: Any) -> dict[str, Any]:
    """A record. ValueError for anything that `append` would not write."""
    is_record = isinstance(value, dict) and type(value.get("step")) is int and "split" in value
    if not is_record or isinstance(value.get("loss"), str | list | dict):
        raise ValueError("no record")
    return _with_nan(value)


def write_summary(model_dir: epath.Path, summary: Mapping[str, Any]) -> None:
    """Write MODEL_DIR/summary.json atomically."""
    write_whole(model_dir / _SUMMARY_FILE, strict_json.dumps(summary, indent=2) + "\n")


def read_summary(model_dir: epath.Path) -> dict[str, Any] | None:
    """What `write_summary` wrote, with null metrics as NaN; None if it is missing.

    A file that is not a valid summary counts as missing.
    """
    path = model_dir / _SUMMARY_FILE
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        return {**summary, "step": int(summary["step"]), "metrics": _with_nan(summary["metrics"])}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


class ProgressReport:
    """A progress bar on a terminal, periodic lines elsewhere: loss, tokens/s and ETA.

    What standard error does not take, as on a full disk, is dropped: the run goes on.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self, description: str, *, total: int, start: int = 0, quiet: bool = False
    ) -> None:
        """Show `start` of `total` steps; `quiet` shows nothing (another process does)."""
        self._console = Console(file=cast(TextIO, Unfailing(sys.stderr)), quiet=quiet)
        self._description, self._total, self._start = description, total, start
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(description, total=total, completed=start, status="")

    def __enter__(self) -> Self:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._bar.stop()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show the newest figures of `step`."""
        status = f"loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, status=status)
        now = time.monotonic()
        due = now - self._last_line >= self.SECONDS_BETWEEN_LINES or step == self._total
        if not self._console.is_terminal and due:
            self._last_line = now
            seconds = (now - self._started) / max(1, step - self._start) * (self._total - step)
            eta = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
            self.say(f"{self._description} {step}/{self._total}  {status}  ETA {eta}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
