"""Kills a run at random moments, starts it again each time, and compares what it leaves.

    python -m tests.reliability.kills --kills 50 --seed 0 --report kills.json

A tiny run of stage 2 over its phase switch, with evaluations, saves and its best checkpoint, is
done once without interruption. Then runs of the same settings are killed at moments drawn from the
seed (see `victim`) and started again until they are done; everything in their MODEL_DIR has to be
as that of the first. The same seed draws the same moments; a delay in one is of a machine's time.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.training.writers import read_metrics
from tests import tiny_run
from tests.reliability.same_files import differences

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, SWITCH = 16, 8
PHASES = ("start-up", "data", "rewrite", "step", "save", "evaluation", "switch", "end")
# The longest delay of a strike after its moment, in seconds: a signal then meets C++ code.
DELAYS = {"step": 0.05, "save": 0.3, "evaluation": 0.1, "start-up": 0.1, "data": 0.5}
SIGNALS: Mapping[str, Mapping[str, Any]] = {
    "SIGKILL": {"signal": "SIGKILL"},
    "SIGTERM": {"signal": "SIGTERM"},
    "SIGINT twice": {"signal": "SIGINT", "again": 0.1},
}
MOST_KILLS_OF_A_RUN = 6
_PATIENCE = 600.0  # seconds allowed for a process

_GIN = """
from __gin__ import dynamic_registration
from plug_jax import config
from plug_jax.tasks import pretrain
from plug_jax.objectives import masked_lm
from plug_jax.checkpoints import best
from plug_jax.training import checkpointing
from plug_jax.training import program

include 'runs/palm_pretrain.gin'
include 'models/tiny.gin'
include 'mesh/cpu1.gin'

MODEL_DIR = 'run'
TRAIN_FILES = '../train.txt'
VALIDATION_FILES = '../validation.txt'
VOCABULARY = '../vocab.txt'
DECODER_LAYERS = 1
INITIAL_CHECKPOINT = None
TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}
BATCH_SIZE = 8
PACKING_WINDOW = 32
TRAIN_STEPS = %d
EVAL_EVERY = 4
CHECKPOINT_EVERY = 3
LOG_EVERY = 1
LEARNING_RATE = 1e-2
%s
pretrain.palm_text.min_length = 6
pretrain.palm_text.max_length = 24
masked_lm.MaskedLM.until = %g
checkpointing.CheckpointConfig.keep = 2
best.Best.metric = 'decoder_loss'
best.Best.mode = 'min'
program.TrainConfig.best = @best.Best()
"""


@dataclasses.dataclass
class Kill:
    """One process that was to be killed, and its outcome."""

    run: int
    phase: str
    signal: str
    at: int
    delay: float
    status: int | None = None
    met: bool = False  # the run finished before the moment came
    seconds: float = 0.0


class Harness:
    """Runs and kills in a directory of their own."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed, self._directory, self._random = seed, directory, random.Random(seed)
        write_run(directory)
        self._counts: Mapping[str, int] = {}
        self.kills: list[Kill] = []
        self.differences: dict[int, list[str]] = {}

    def run(self, kills: int) -> None:
        """Kill this many processes, and compare each finished run."""
        counts = self._reference()
        self._counts, drawn = counts, self._draw()
        number = 0
        while (done := sum(kill.met for kill in self.kills)) < kills:
            number += 1
            self._killed_run(number, drawn, min(kills - done, self._random.randint(3, 6)))

    def _reference(self) -> dict[str, int]:
        """The uninterrupted run; moments by phase."""
        (self._directory / "0").mkdir()
        ended = self._start(0, {"counts": "../counts.json"})
        assert ended.returncode == 0, ended.stderr
        counts = json.loads((self._directory / "counts.json").read_text())
        return {"rewrite": 2, **counts}  # a new run has none

    def _draw(self) -> Iterator[tuple[str, str, float, float]]:
        """Phase, signal, and position in the phase and delay, both as fractions."""
        while True:
            pairs = [(phase, name) for phase in PHASES for name in SIGNALS]
            self._random.shuffle(pairs)
            for phase, name in pairs:
                yield phase, name, self._random.random(), self._random.random()

    def _killed_run(self, number: int, drawn: Iterator[Any], kills: int) -> None:
        (self._directory / str(number)).mkdir()
        for _ in range(kills):
            phase, name, part, delay = next(
                one for one in drawn if one[0] != "rewrite" or self._has_to_cut(number)
            )
            left = 1 - self._newest_step(number) / STEPS if phase in ("step", "save") else 1
            at = 1 + int(part * left * self._counts[phase])
            delay = delay * DELAYS.get(phase, 0.0) if delay > 0.5 else 0.0
            kill = Kill(number, phase, name, at, round(delay, 3))
            started = time.monotonic()
            struck = self._directory / "struck"
            struck.unlink(missing_ok=True)
            plan = {"phase": phase, "at": at, "delay": delay, **SIGNALS[name]}
            ended = self._start(number, {**plan, "struck": str(struck)})
            kill.seconds = round(time.monotonic() - started, 1)
            kill.status, kill.met = ended.returncode, struck.exists()
            self.kills.append(kill)
            print(kill, flush=True)
            if ended.returncode == 0:
                break
            if not kill.met:
                raise AssertionError(f"{kill} ended by itself:\n{ended.stderr}")
        else:
            ended = self._start(number, {})
            if ended.returncode:
                raise AssertionError(f"run {number} does not go on:\n{ended.stderr}")
        found = differences(self._directory / str(number) / "run", self._directory / "0" / "run")
        self.differences[number] = found
        print(f"run {number}: {found or 'the same'}", flush=True)

    def _start(self, number: int, plan: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        plan = {**plan, "switch": [SWITCH, SWITCH + 1]}
        command = [sys.executable, "-m", "tests.reliability.victim", json.dumps(plan)]
        return subprocess.run(
            [*command, "train", "--gin_file=../run.gin"],
            cwd=self._directory / str(number),
            env=environment(self._directory),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )

    def _has_to_cut(self, number: int) -> bool:
        """Whether there are records after the newest checkpoint."""
        records = read_metrics(self._directory / str(number) / "run")
        return any(record["step"] > self._newest_step(number) for record in records)

    def _newest_step(self, number: int) -> int:
        steps = (self._directory / str(number) / "run" / "checkpoints").glob("*")
        return max((int(path.name) for path in steps if path.name.isdigit()), default=0)


def write_run(directory: Path) -> None:
    """Input of the runs in subdirectories of this one: run.gin, the text and its vocabulary."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("validation", 8)):
        documents = tiny_run.documents(rng, count)
        documents[count // 2] = "短。"  # Some documents that are dropped and counted.
        tiny_run.write_documents(directory / f"{name}.txt", documents)
    tiny_run.write_vocabulary(directory / "vocab.txt")
    gin = _GIN % (STEPS, "\n".join(tiny_run.MODEL), SWITCH / STEPS)
    (directory / "run.gin").write_text(gin, encoding="utf-8")


def hear_interrupts() -> None:
    """Restore SIGINT for child processes: a shell ignores it in background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(directory: Path) -> dict[str, str]:
    """For a command on one CPU device, with its compilation cache in `directory`."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_PROCESSES": "1",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def table(kills: list[Kill]) -> str:
    """Kills by phase and signal."""
    counts = collections.Counter((kill.phase, kill.signal) for kill in kills if kill.met)
    lines = ["| phase | " + " | ".join(SIGNALS) + " |", "|---" * (1 + len(SIGNALS)) + "|"]
    for phase in PHASES:
        numbers = " | ".join(str(counts[phase, name]) for name in SIGNALS)
        lines.append(f"| {phase} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="a JSON file of all kills")
    parser.add_argument("--directory", type=Path, help="an empty one, which is kept")
    args = parser.parse_args()
    hear_interrupts()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        harness = Harness(directory.resolve(), args.seed)
        try:
            harness.run(args.kills)
        finally:  # one that is interrupted reports what it has
            _tell(harness, args.report)
    return 1 if any(harness.differences.values()) else 0


def _tell(harness: Harness, report: Path | None) -> None:
    met = [kill for kill in harness.kills if kill.met]
    different = sum(map(bool, harness.differences.values()))
    seconds = sum(kill.seconds for kill in harness.kills)
    print(table(met))
    print(
        f"{len(met)} kills of {len(harness.differences)} runs, in {seconds:.0f} s; {different} of "
        "the runs differ from the uninterrupted one"
    )
    if report:
        content = {
            "seed": harness.seed,
            "kills": [dataclasses.asdict(kill) for kill in harness.kills],
            "differences": harness.differences,
        }
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
