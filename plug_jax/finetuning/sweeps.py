"""A grid of runs, each an independent and resumable `plug-jax train`."""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.checkpoints.best import sign_of
from plug_jax.errors import PlugError

SEED = "RANDOM_SEED"  # distinguishes runs of one setting
_STATE = "sweep.json"
_LOG = "train.log"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values of macros, in Python syntax."""

    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def parse(cls, axes: Sequence[str]) -> Grid:
        """Parse NAME=VALUE,VALUE,... axes. PlugError for a malformed or repeated one."""
        values: dict[str, tuple[Any, ...]] = {}
        for axis in axes:
            name, _, text = axis.partition("=")
            try:
                of_axis = ast.literal_eval(f"({text},)")
                strict_json.dumps(of_axis)  # as they are kept
            except (TypeError, ValueError, SyntaxError) as error:
                raise PlugError(
                    f"--grid {axis}: expected NAME=VALUE,VALUE, such as LEARNING_RATE=1e-5,2e-5; "
                    "strings need their own quotes"
                ) from error
            doubled = len(set(map(repr, of_axis))) < len(of_axis)
            if not name or not of_axis or name in values or doubled:
                raise PlugError(
                    f"--grid {axis}: name each macro once, with one value or more, all different"
                )
            values[name] = of_axis
        return cls(values)

    def settings(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last name changing first."""
        for combination in itertools.product(*self.values.values()):
            yield dict(zip(self.values, combination, strict=True))


def run_name(settings: Mapping[str, Any]) -> str:
    """The directory of a run: "LEARNING_RATE=1e-05,RANDOM_SEED=0"."""
    shown = (f"{name}={value}" for name, value in settings.items())
    return ",".join(shown).replace(os.sep, "_") or "run"


def _digest(name: str) -> str:
    """Digest of a gin file's text, if it is the user's."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "plug-jax's own"


@dataclasses.dataclass
class SweptRun:
    """One point of the grid."""

    name: str
    settings: dict[str, Any]
    status: str = "waiting"  # or "running", "stopped", "done", "failed"
    metrics: dict[str, float] | None = None


class Sweep:
    """Runs of a grid in a directory, and their state in DIR/sweep.json."""

    def __init__(
        self, directory: Path, *, files: Sequence[str], bindings: Sequence[str], grid: Grid
    ) -> None:
        """Begin or resume the sweep in a directory.

        Raises:
            PlugError: it has a sweep with other gin files or bindings, or two points of the grid
                would have one directory.
        """
        self.directory, self._files, self._bindings = directory, list(files), list(bindings)
        self._lock = threading.RLock()
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False
        contents = {name: _digest(name) for name in self._files}
        made_of = {"gin_files": contents, "bindings": self._bindings}
        known: dict[str, Any] = {}
        if (directory / _STATE).exists():
            state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
            if state["made_of"] != made_of:
                raise PlugError(
                    f"{directory} holds a sweep of other settings ({state['made_of']}); choose "
                    "another --output, or the same settings with more of --grid"
                )
            known = {run["name"]: run for run in state["runs"]}
        self._made_of = made_of
        self._table: Mapping[str, Any] | None = None
        self.runs: list[SweptRun] = []
        settings_of = {name: run["settings"] for name, run in known.items()}
        for settings in grid.settings():
            run = SweptRun(run_name(settings), settings)
            plain = json.loads(strict_json.dumps(settings))  # as they are kept
            if (other := settings_of.setdefault(run.name, plain)) != plain:
                raise PlugError(
                    f"--grid: {other} and {plain} would both be the run {directory / run.name}; "
                    "leave one out, or give it another --output"
                )
            before = known.pop(run.name, {})
            if before.get("status") == "done":
                run.status, run.metrics = "done", before["metrics"]
            self.runs.append(run)
        self._others = list(known.values())  # of an earlier grid; kept
        directory.mkdir(parents=True, exist_ok=True)
        self._save()

    def run(self, *, jobs: int, say: Callable[[str], None]) -> None:
        """Train the remaining runs, `jobs` at a time; a failed run does not stop the others.

        Ctrl-C ends the current runs with a checkpoint each, and raises KeyboardInterrupt.
        """
        left = [run for run in self.runs if run.status != "done"]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                for future in [pool.submit(self._train, run, say) for run in left]:
                    future.result()
            except BaseException:
                with self._lock:
                    self._stopped = True
                    for process in self._processes:
                        process.send_signal(signal.SIGINT)
                raise

    def keep_table(self, table: Mapping[str, Any]) -> None:
        """Put a comparison of the runs into DIR/sweep.json, until the sweep goes on."""
        with self._lock:
            self._table = table
            self._save()

    def _train(self, run: SweptRun, say: Callable[[str], None]) -> None:
        if self._stopped:
            return
        model_dir = self.directory / run.name
        model_dir.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "plug_jax", "train"]
        command += [f"--gin_file={file}" for file in self._files]
        command += [f"--gin.{binding}" for binding in self._bindings]
        command += [f"--gin.{name}={value!r}" for name, value in run.settings.items()]
        command += [f"--gin.MODEL_DIR={str(model_dir)!r}"]
        self._set(run, "running")
        say(f"{run.name}: training, see {model_dir / _LOG}")
        with (model_dir / _LOG).open("a", encoding="utf-8") as log:
            # A run of an earlier, killed sweep may still be active: wait for its end.
            fcntl.flock(log, fcntl.LOCK_EX)
            with self._lock:
                if self._stopped:
                    return
                # In its own session, so that it gets only our signal, not the terminal's.
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        if self._stopped and status != 0:
            self._set(run, "stopped")
            say(f"{run.name}: stopped; resumes with the sweep")
            return
        if status == 0:
            summary = json.loads((model_dir / "summary.json").read_text(encoding="utf-8"))
            run.metrics = summary.get("best", summary)["metrics"]
            self._set(run, "done")
            say(f"{run.name}: done")
            return
        self._set(run, "failed")
        # A library that crashes may write anything.
        log_text = (model_dir / _LOG).read_text(encoding="utf-8", errors="replace")
        lines = log_text.strip().splitlines() or ["no word"]
        say(f"{run.name}: failed with status {status}: {lines[-1]}")

    def _set(self, run: SweptRun, status: str) -> None:
        with self._lock:
            run.status, self._table = status, None
            self._save()

    def _save(self) -> None:
        runs = [*self._others, *map(dataclasses.asdict, self.runs)]
        state = {"made_of": self._made_of, "runs": runs, "table": self._table}
        write_whole(self.directory / _STATE, strict_json.dumps(state, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed."""

    settings: dict[str, Any]
    scores: list[float]  # of finished seeds
    runs: int

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN if none is finished."""
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; 0 for one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


def table(runs: Sequence[SweptRun], metric: str) -> list[Row]:
    """A row per setting without seeds, best mean first (lowest for a loss).

    Raises:
        PlugError: a finished run has no such metric.
    """
    rows: dict[str, Row] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name != SEED}
        row = rows.setdefault(repr(settings), Row(settings, [], 0))
        scores = list(row.scores)
        if run.metrics:  # a diverged run has none, or null
            if metric not in run.metrics:
                raise PlugError(
                    f"{run.name} has no metric {metric!r}; there are {', '.join(run.metrics)}"
                )
            if run.metrics[metric] is not None:
                scores.append(run.metrics[metric])
        rows[repr(settings)] = Row(settings, scores, row.runs + 1)
    sign = sign_of(metric)
    return sorted(rows.values(), key=lambda row: (not row.scores, -sign * row.mean))
