"""Two processes of four CPU devices each, on this machine, as one run: real `plug-jax` commands."""

from __future__ import annotations

import collections
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from plug_jax.cli.train import configure
from plug_jax.training.loop import train
from plug_jax.training.writers import read_metrics
from tests import tiny_run
from tests.two_processes import started

GIN_FILES = ["runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]
# Even on a fast machine the run must not end before the test's signal arrives and
# the processes agree on the step to stop after. The other one gets at most two steps further.
HELD_AFTER_STEP_2 = """
import time
from plug_jax.hosts.peers import _NEVER
from plug_jax.training.interrupts import Interrupts
real = Interrupts.after
def after(self, step):
    while step == 2 and self._others._last_step == _NEVER:
        time.sleep(0.05)
    return real(self, step)
Interrupts.after = after
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of text for two data streams, a third to evaluate, and a vocabulary."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name, count in (("train0", 30), ("train1", 30), ("validation", 8)):
        tiny_run.write_documents(root / f"{name}.txt", tiny_run.documents(rng, count))
    tiny_run.write_vocabulary(root / "vocab.txt")
    return root


def bindings(corpus: Path, model_dir: Path, train_files: str = "train?.txt") -> list[str]:
    """A run of six steps, masked LM in the first three."""
    return [
        f"MODEL_DIR = {str(model_dir)!r}",
        f"TRAIN_FILES = {str(corpus / train_files)!r}",
        f"VALIDATION_FILES = {str(corpus / 'validation.txt')!r}",
        f"VOCABULARY = {str(corpus / 'vocab.txt')!r}",
        "DECODER_LAYERS = 1",
        "INITIAL_CHECKPOINT = None",
        "TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}",
        "BATCH_SIZE = 8",
        "PACKING_WINDOW = 32",
        "DATA_STREAMS = 2",
        "TRAIN_STEPS = 6",
        "EVAL_EVERY = 6",
        "CHECKPOINT_EVERY = 6",
        "LOG_EVERY = 1",
        "LEARNING_RATE = 1e-2",
        *tiny_run.MODEL,
        "config.PlugConfig.scan_layers = True",
        "pretrain.palm_text.min_length = 6",
        "pretrain.palm_text.max_length = 24",
        "masked_lm.MaskedLM.until = 0.5",
    ]


def assert_close(ours: dict, theirs: dict) -> None:
    """Equal except for the rounding of sums, and times."""
    names = {name for name in theirs if "second" not in name}
    assert names == {name for name in ours if "second" not in name}
    for name in names - {"split"}:
        assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=1e-7), name


@pytest.mark.long
def test_two_processes_train_and_evaluate_as_one(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM to one process stops both after the same step; resumed, they end as one would."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(configure(GIN_FILES, bindings(corpus, alone)))

    cache = tmp_path / "compiled"
    run = [*bindings(corpus, together), f"COMPILATION_CACHE_DIR = {str(cache)!r}"]
    held = {1: HELD_AFTER_STEP_2}
    with started("train", GIN_FILES, run, tmp_path / "first", preludes=held) as pair:
        while not read_metrics(together) and all(p.poll() is None for p in pair.processes):
            time.sleep(0.05)
        pair.processes[1].send_signal(signal.SIGTERM)
        first = pair.wait()
    assert [ended.status for ended in first] == [143, 143], first
    [stopped] = (together / "checkpoints").iterdir()
    assert 1 < int(stopped.name) < 6
    assert {p.name.split("-")[0] for p in cache.iterdir()} >= {"jit_train_step", "jit_eval_step"}
    assert f"interrupted: saving the checkpoint of step {stopped.name}" in first[0].stderr
    for ended in first:
        line = rf"interrupted by SIGTERM: the checkpoint of step {stopped.name} was saved [\d.]+ s"
        assert re.search(line, ended.stderr), ended
    # Each process wrote its own data position.
    assert {p.stem for p in (stopped / "data").glob("*.index")} == {
        "stream_00000-of-00002",
        "stream_00001-of-00002",
    }

    # On another mesh: every row is on all devices, so both processes read both data streams.
    run += [f"partitioning.Partitioner.{name}" for name in ("data = 1", "fsdp = 1", "tensor = 8")]
    with started("train", GIN_FILES, run, tmp_path / "second") as pair:
        second = pair.wait()
    assert [ended.status for ended in second] == [0, 0], second
    ours, theirs = read_metrics(together), read_metrics(alone)
    assert [(r["step"], r["split"]) for r in ours] == [(r["step"], r["split"]) for r in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        assert_close(mine, its)
    assert (together / "checkpoints" / "6").is_dir()
    summaries = [json.loads((d / "summary.json").read_text()) for d in (alone, together)]
    assert summaries[1]["step"] == 6 and summaries[1].keys() == summaries[0].keys()
    # Both processes read both streams; a stream's drops count once.
    kept = [json.loads(p.read_text()) for p in (together / "checkpoints/6/data").glob("*.counts.*")]
    total: collections.Counter[str] = collections.Counter()
    for counts in kept:
        total.update(counts["dropped"])
    assert len(kept) == 2 and summaries[1]["dropped"] == dict(total) != {}
    assert "MODEL_DIR" in (together / "config.gin").read_text()
    # The second process prints and writes nothing itself.
    assert len(list((together / "tensorboard").iterdir())) == 2  # one for each start
    for ended in (first[1], second[1]):
        assert "validation at step" not in ended.stderr and "compiled in" not in ended.stderr
    assert (
        "validation at step 6" in second[0].stderr
        and "training step compiled in" in second[0].stderr
    )

    evaluation = [
        f"CHECKPOINT = {str(together)!r}",
        f"TEST_FILES = {str(corpus / 'validation.txt')!r}",
        "MIXTURE_OR_TASK_NAME = @pretrain.palm_text()",
        "TASK_FEATURE_LENGTHS = {'encoder': 32, 'decoder': 32}",
        "BATCH_SIZE = 8",
        "pipeline.DatasetConfig.packing_window = 32",
        "pretrain.palm_text.min_length = 6",
        "pretrain.palm_text.max_length = 24",
    ]
    with started(
        "evaluate",
        ["runs/evaluate.gin", "objectives/palm.gin", "mesh/cpu8.gin"],
        evaluation,
        tmp_path / "third",
    ) as pair:
        third = pair.wait()
    assert [ended.status for ended in third] == [0, 0], third
    # Gloo's threads write about their connections as well, one into the other's line.
    assert "{" not in third[1].stdout
    scores = json.loads(third[0].stdout[third[0].stdout.index("{") :])
    assert_close(scores, {k: v for k, v in ours[-1].items() if k not in ("step", "split")})


def test_an_error_of_one_process_ends_both(corpus: Path, tmp_path: Path) -> None:
    """The second data stream has no text: its process says so, and the other, which waits for it,
    ends with it."""
    (corpus / "half0.txt").write_bytes((corpus / "train0.txt").read_bytes())
    (corpus / "half1.txt").write_bytes(b"caf\xe9\n")
    run = bindings(corpus, tmp_path / "run", "half*")
    with started("train", GIN_FILES, run, tmp_path / "logs") as pair:
        while all(p.poll() is None for p in pair.processes) and "error" not in pair.stderr(1):
            time.sleep(0.05)
        failed = time.monotonic()
        ended = pair.wait()
        assert time.monotonic() - failed < 15
    assert [e.status for e in ended] == [2, 2], ended
    reason = "'palm_text' gives no example in split 'train' for data stream 1 of 2"
    assert f"plug-jax: error: {reason}" in ended[1].stderr
    assert f"plug-jax: process 1 ended the run: {reason}" in ended[0].stderr
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.long
def test_both_go_on_from_the_same_good_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """Each process hashes what it wrote; a checkpoint that one finds damaged is skipped by both."""
    model_dir = tmp_path / "run"
    run = [b.replace("_EVERY = 6", "_EVERY = 2") for b in bindings(corpus, model_dir)]
    with started("train", GIN_FILES, run, tmp_path / "first") as pair:
        ended = pair.wait()
    assert [one.status for one in ended] == [0, 0], ended
    newest = model_dir / "checkpoints" / "6"
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "checksums.sha256"],
        cwd=newest,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0
    assert "params/ocdbt.process_0/d/" in checked.stdout
    assert "params/ocdbt.process_1/d/" in checked.stdout
    assert not list(newest.rglob("checksums.process_*"))
    damaged = max((newest / "params/ocdbt.process_1/d").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with started("train", GIN_FILES, run, tmp_path / "second") as pair:
        ended = pair.wait()
    assert [one.status for one in ended] == [0, 0], ended
    assert f"DAMAGED CHECKPOINT: {damaged} has other bytes" in ended[0].stderr
    assert "GOING ON FROM STEP 4" in ended[0].stderr and "DAMAGED" not in ended[1].stderr
    names = {path.name for path in (model_dir / "checkpoints").iterdir()}
    assert names == {"2", "4", "6", "6.damaged"}
    steps = [r["step"] for r in read_metrics(model_dir) if r["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
