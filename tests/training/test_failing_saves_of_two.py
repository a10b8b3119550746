"""Checkpoints that one of two processes, or neither, can write: real `plug-jax` commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plug_jax.training.writers import read_metrics
from tests import tiny_run
from tests.small_disk import small_disk
from tests.training.program_runs import write_task
from tests.two_processes import Ended, started

pytestmark = [pytest.mark.slow, pytest.mark.long]

GIN_FILES = ["runs/structbert_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]
# In process 1: its data position cannot be written with the checkpoint of step 4.
REFUSED = """
import errno, itertools, os
from plug_jax.training.feed import Feed
save, calls = Feed.save, itertools.count(1)
def refused(feed, directory):
    if next(calls) == 2:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    save(feed, directory)
Feed.save = refused
"""
# In process 0: another program fills the disk before the checkpoint of step 6, then cleans up.
FILLED = """
from pathlib import Path
from plug_jax.training.checkpointing import Checkpoints
from tests.small_disk import fill
save, disk = Checkpoints.save, Path({disk!r})
def on_a_full_disk(checkpoints, state, *arguments, **options):
    if int(state.step) == 6:
        checkpoints.regular_steps()  # waits for the save before
        fill(disk)
    if int(state.step) == 8:
        (disk / "filler").unlink()
    save(checkpoints, state, *arguments, **options)
Checkpoints.save = on_a_full_disk
"""
# In process 0: the commit of step 8, after both have written their parts.
UNCOMMITTED = """
import errno, os
from plug_jax.checkpoints.format import FilesHandler
def finalize(handler, directory):
    if "8" in directory.parent.name:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
FilesHandler.finalize = finalize
"""
# In process 1: from the checkpoint of step 4 on, every write to a file fails.
FORBIDDEN = """
import os, resource, subprocess
from plug_jax.training.checkpointing import Checkpoints
save = Checkpoints.save
def forbidden(checkpoints, state, *arguments, **options):
    if int(state.step) == 4:
        checkpoints.regular_steps()
        other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=2)
        os.dup2(other.stdin.fileno(), 2)  # which is a file as well
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    save(checkpoints, state, *arguments, **options)
Checkpoints.save = forbidden
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_task(root, "of_failing_saves")
    return root


def run(
    corpus: Path, model_dir: Path, logs: Path, preludes: dict[int, str], *, steps: int
) -> list[Ended]:
    """This many steps with a checkpoint at every second one."""
    bindings = [
        f"MODEL_DIR = {str(model_dir)!r}",
        f"TRAIN_FILES = {str(corpus / 'text.txt')!r}",
        "EVAL_DATA = None",
        f"VOCABULARY = {str(corpus / 'vocab.txt')!r}",
        "TASK_FEATURE_LENGTHS = {'encoder': 32}",
        "MAX_LENGTH = 32",
        "BATCH_SIZE = 8",
        "PACKING_WINDOW = 32",
        "DATA_STREAMS = 2",
        f"TRAIN_STEPS = {steps}",
        "CHECKPOINT_EVERY = 2",
        "LOG_EVERY = 1",
        *tiny_run.MODEL,
    ]
    with started("train", GIN_FILES, bindings, logs, preludes=preludes) as pair:
        return pair.wait(400)


def stored(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_both_go_on_when_one_cannot_write_and_when_none_can(corpus: Path, tmp_path: Path) -> None:
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    with small_disk(tmp_path, 12 << 10) as disk:
        (model_dir / "checkpoints").symlink_to(disk)
        preludes = {0: FILLED.format(disk=str(disk)) + UNCOMMITTED, 1: REFUSED}
        ended = run(corpus, model_dir, tmp_path / "logs", preludes, steps=12)
        assert [one.status for one in ended] == [0, 0], ended
        assert stored(disk) == ["10", "12", "2"]
    failed = "could not be saved: {}; the newest is that of step 2. The run continues"
    refused = f"of step 4 {failed.format('Disk quota exceeded (process 1)')}"
    full = f"of step 6 {failed.format('No space left on device (process 0)')}"
    uncommitted = f"of step 8 {failed.format('Input/output error (process 0)')}"
    said = ended[0].stderr
    assert refused in said and full in said and uncommitted in said
    assert said.count("could not be saved") == 3 and "could not be saved" not in ended[1].stderr
    assert all("Traceback" not in one.stderr for one in ended), ended
    assert [record["step"] for record in read_metrics(model_dir)] == list(range(1, 13))


def test_both_end_when_one_cannot_write_the_last(corpus: Path, tmp_path: Path) -> None:
    """Not even its arrays, for which the other waits in the background only as long as it must."""
    model_dir = tmp_path / "run"
    ended = run(corpus, model_dir, tmp_path / "logs", {1: FORBIDDEN}, steps=6)
    assert [one.status for one in ended] == [74, 74], ended
    said = ended[0].stderr
    failed = r"could not be saved: .*File too large \(process 1\); the newest is that of step 2\."
    assert re.search(rf"the checkpoint of step 4 {failed} The run continues", said), said
    # Process 0 says so itself, or the other, if it is first.
    ending = "(error|process 1 ended the run)"
    assert re.search(rf"{ending}: the checkpoint of step 6 {failed} Make ", said), said
    assert "Traceback" not in said
    assert stored(model_dir / "checkpoints") == ["2"]
    again = run(corpus, model_dir, tmp_path / "again", {}, steps=6)
    assert [one.status for one in again] == [0, 0], again
    assert stored(model_dir / "checkpoints") == ["2", "4", "6"]
