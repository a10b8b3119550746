"""Where metrics go: metrics.jsonl, TensorBoard, and the person who watches."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import tensorflow as tf
from clu import metric_writers
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends to MODEL_DIR/metrics.jsonl and writes TensorBoard events; one process only."""

    def __init__(self, model_dir: str | os.PathLike[str], *, start_step: int) -> None:
        """Open for writing; what an earlier run logged beyond `start_step` is dropped.

        Those steps are trained again after the newest checkpoint, so each step stands once.
        """
        directory = epath.Path(model_dir)
        kept = [r for r in read_metrics(model_dir) if r["step"] <= start_step]
        # Of all ways to open a gs:// file, TensorFlow's is the one whose flush reaches the store.
        self._file = tf.io.gfile.GFile(os.fspath(directory / METRICS_FILE), "w")
        for record in kept:
            self._append(record)
        self._tensorboard = metric_writers.SummaryWriter(str(directory / "tensorboard"))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line {"step", "split", metrics...}, and the same scalars as `split/name`."""
        self._append({"step": step, "split": split, **values})
        self._tensorboard.write_scalars(step, {f"{split}/{k}": v for k, v in values.items()})
        self._tensorboard.flush()

    def _append(self, record: Mapping[str, float | str]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file and the event writer."""
        self._file.close()
        self._tensorboard.close()


def read_metrics(model_dir: str | os.PathLike[str]) -> list[dict]:
    """The records of MODEL_DIR/metrics.jsonl in order; empty where there is none.

    A last line that a killed run left unfinished is left out.
    """
    path = epath.Path(model_dir) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class ProgressReport:
    """A progress bar on a terminal, a line now and then elsewhere: loss, tokens/s and ETA."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self, description: str, *, total: int, start: int = 0, quiet: bool = False
    ) -> None:
        """Show `start` of `total` steps; `quiet` shows nothing (another process does)."""
        self._console = Console(file=sys.stderr, quiet=quiet)
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
