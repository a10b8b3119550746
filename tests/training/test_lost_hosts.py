"""Hosts that are killed, stopped or hang: two processes of four CPU devices each as one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from plug_jax.training.writers import read_metrics
from tests import tiny_run
from tests.training.program_runs import write_task
from tests.two_processes import ROOT, Ended, Pair, started

GIN_FILES = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]
LOST_AFTER = 6.0  # seconds
LOST = "is lost: no sign of life for 6 s, so it was killed, stopped or cut off, last in: "
BLOCKED = """
import itertools, time
from plug_jax.training import feed
real, calls = feed.check_positions, itertools.count(1)
def read_a_disk_that_hangs(*args):
    if next(calls) == 9:
        time.sleep(3600)
    real(*args)
feed.check_positions = read_a_disk_that_hangs
"""

pytestmark = pytest.mark.slow


def bindings(corpus: Path, model_dir: Path) -> list[str]:
    """A run of 40 steps with a checkpoint at every tenth."""
    return [
        f"MODEL_DIR = {str(model_dir)!r}",
        f"TRAIN_FILES = {str(corpus / 'text.txt')!r}",
        "EVAL_DATA = None",
        f"VOCABULARY = {str(corpus / 'vocab.txt')!r}",
        "TASK_FEATURE_LENGTHS = {'encoder': 32}",
        "MAX_LENGTH = 32",
        "BATCH_SIZE = 8",
        "PACKING_WINDOW = 32",
        "DATA_STREAMS = 2",
        "TRAIN_STEPS = 40",
        "CHECKPOINT_EVERY = 10",
        "LOG_EVERY = 1",
        f"LOST_AFTER = {LOST_AFTER}",
        *tiny_run.MODEL,
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_task(root, "of_lost_hosts")
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL_DIR of an undisturbed run."""
    root = tmp_path_factory.mktemp("whole")
    ended = run(corpus, root / "run", root / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    return root / "run"


def run(corpus: Path, model_dir: Path, logs: Path) -> list[Ended]:
    with started("train", GIN_FILES, bindings(corpus, model_dir), logs) as pair:
        return pair.wait(400)


def wait_for_step(step: int, model_dir: Path, pair: Pair) -> None:
    end = time.monotonic() + 300
    while max((r["step"] for r in read_metrics(model_dir)), default=0) < step:
        assert time.monotonic() < end and all(p.poll() is None for p in pair.processes), [
            pair.stderr(i) for i in range(2)
        ]
        time.sleep(0.02)


def arrays(item: Path) -> Any:
    """The full arrays of a checkpoint item, whatever the number of processes."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(item).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(item, restore_args=whole)


def assert_same(model_dir: Path, whole: Path) -> None:
    """Every loss, and the last step's parameters and slots, bit for bit."""
    ours, theirs = (
        [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(one)]
        for one in (model_dir, whole)
    )
    assert ours == theirs
    for item in ("params", "optimizer"):
        mine, its = (arrays(one / "checkpoints" / "40" / item) for one in (model_dir, whole))
        jax.tree.map(np.testing.assert_array_equal, mine, its)


@pytest.mark.long
def test_the_first_process_is_killed_and_the_run_goes_on_exactly(
    corpus: Path, whole: Path, tmp_path: Path
) -> None:
    """The coordinator is a separate process, without which the others would abort."""
    model_dir = tmp_path / "run"
    with started("train", GIN_FILES, bindings(corpus, model_dir), tmp_path / "first") as pair:
        wait_for_step(13, model_dir, pair)
        pair.processes[0].kill()
        killed = time.monotonic()
        pair.processes[1].wait(120)
        seconds = time.monotonic() - killed
        ended = pair.wait()[1]
    print(f"process 0 killed: the other ended {seconds:.1f} s later")
    assert ended.status == 75, ended
    assert LOST_AFTER - 2 < seconds < LOST_AFTER + 10
    assert LOST in ended.stderr and "process 0 (" in ended.stderr
    assert "Traceback" not in ended.stderr and "Check failure" not in ended.stderr, ended
    second = run(corpus, model_dir, tmp_path / "second")
    assert [one.status for one in second] == [0, 0], second
    assert_same(model_dir, whole)


def test_a_stopped_process_is_named(corpus: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "run"
    with started("train", GIN_FILES, bindings(corpus, model_dir), tmp_path / "logs") as pair:
        wait_for_step(13, model_dir, pair)
        pair.processes[1].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        pair.processes[0].wait(120)
        seconds = time.monotonic() - stopped
        pair.processes[1].send_signal(signal.SIGCONT)  # it finds the others gone
        ended = pair.wait(60)
    print(f"process 1 stopped: the other ended {seconds:.1f} s later")
    assert ended[0].status == 75 and seconds < LOST_AFTER + 10, ended
    assert LOST in ended[0].stderr and "process 1 (" in ended[0].stderr
    assert ended[1].status != 0


@pytest.mark.long
def test_stacks_of_all_when_the_data_of_one_block(corpus: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "run"
    settings = [*bindings(corpus, model_dir), "STALL_TIMEOUT = 25.0"]
    logs = tmp_path / "logs"
    with started("train", GIN_FILES, settings, logs, preludes={1: BLOCKED}) as pair:
        wait_for_step(7, model_dir, pair)
        began = time.monotonic()
        ended = pair.wait(120)
        seconds = time.monotonic() - began
    print(f"data that block: both ended {seconds:.1f} s later")
    assert [one.status for one in ended] == [75, 75], ended
    assert seconds < 25 + 15
    for one in ended:
        assert "no progress for 25 s: process 0 (" in one.stderr
        assert "process 1 (" in one.stderr and "in: waiting for the data of step 9" in one.stderr
    stacks = {
        p.name[-len("process0.txt") :]: p.read_text() for p in (model_dir / "stacks").iterdir()
    }
    assert stacks.keys() == {"process0.txt", "process1.txt"}
    assert "in read_a_disk_that_hangs" in stacks["process1.txt"]
    assert "plug_jax/training/loop.py" in stacks["process0.txt"]


@pytest.mark.long
def test_supervisors_bring_a_killed_process_back(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """Process 1 is killed once; nothing is restarted by hand."""
    model_dir = tmp_path / "run"
    settings = bindings(corpus, model_dir)
    logs = tmp_path / "logs"
    with started("train", GIN_FILES, settings, logs, options=["--restarts=5"]) as pair:
        wait_for_step(13, model_dir, pair)
        pid = pair.processes[1].pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        killed = time.monotonic()
        while not (model_dir / "summary.json").exists():
            assert time.monotonic() < killed + 200, [pair.stderr(i) for i in range(2)]
            time.sleep(0.1)
        print(f"killed: the run is done {time.monotonic() - killed:.1f} s later")
        ended = pair.wait(120)
    assert [one.status for one in ended] == [0, 0], ended
    assert LOST in ended[0].stderr and "process 1 (" in ended[0].stderr
    assert "restart 1 of 5" in ended[0].stderr and "it ended with status 75" in ended[0].stderr
    assert "restart 1 of 5" in ended[1].stderr and "it was killed by SIGKILL" in ended[1].stderr
    assert_same(model_dir, whole)


@pytest.mark.long
def test_data_that_block_end_a_run_of_one_process(corpus: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "run"
    files = [f"--gin_file={file}" for file in GIN_FILES]
    settings = [*bindings(corpus, model_dir), "STALL_TIMEOUT = 25.0"]
    gin = [f"--gin.{one.replace(' = ', '=', 1)}" for one in settings]
    program = f"{BLOCKED}\nimport sys\nfrom plug_jax.cli.main import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", *files, *gin],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_PROCESSES": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 75, done
    assert "plug-jax: no progress for 25 s in: waiting for the data of step 9\n" in done.stderr
    [stacks] = (model_dir / "stacks").iterdir()
    assert "in read_a_disk_that_hangs" in stacks.read_text()
