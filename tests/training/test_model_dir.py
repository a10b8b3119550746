"""A MODEL_DIR belongs to one run at a time, and must be writable."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.checkpoints.format import PlainPath
from plug_jax.errors import PlugError
from plug_jax.training.model_dir import LOCK_FILE, ModelDirInUse, held

HOLD = """
import sys, time
from plug_jax.checkpoints.format import PlainPath
from plug_jax.training.model_dir import held
with held(PlainPath.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_run_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    model_dir = PlainPath.of(tmp_path / "a" / "lr=[1e-4] {天}%#~")
    first = subprocess.Popen([sys.executable, "-c", HOLD, model_dir], stdout=subprocess.PIPE)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == b"held\n"
        who = f"in use by another run: process {first.pid} on {re.escape(socket.gethostname())}, s"
        with pytest.raises(ModelDirInUse, match=who) as refused, held(model_dir):
            pass
        assert refused.value.status == 76 and "\n" not in str(refused.value)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # What a killed run leaves behind does no harm, and is removed when the next one ends.
    assert (model_dir / LOCK_FILE).exists()
    with (
        held(model_dir),
        pytest.raises(ModelDirInUse, match=f"process {os.getpid()} on"),
        held(model_dir),
    ):
        pass
    assert list(model_dir.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "1", '{"pid": 3}'])
def test_a_lock_that_does_not_say_who_has_it(tmp_path: Path, text: str) -> None:
    model_dir = PlainPath.of(tmp_path)
    with held(model_dir):
        (tmp_path / LOCK_FILE).write_text(text)
        with pytest.raises(ModelDirInUse, match="it has just started"), held(model_dir):
            pass


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks its holder's name; the run's first file that must be written reports the disk."""

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    model_dir = PlainPath.of(tmp_path)
    refused = pytest.raises(ModelDirInUse, match="it has just started")
    with held(model_dir), refused, held(model_dir):
        pass
    assert not any(tmp_path.iterdir())


def test_a_lock_whose_file_is_taken_away_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous owner ends between our opening and locking of the file."""
    import fcntl

    lock, model_dir, opened = fcntl.flock, PlainPath.of(tmp_path), []

    def flock(descriptor: int, operation: int) -> None:
        opened.append(descriptor)
        if len(opened) == 1:
            os.unlink(tmp_path / LOCK_FILE)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(model_dir), pytest.raises(ModelDirInUse), held(model_dir):
        pass
    assert len(opened) == 3


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(PlainPath.of(tmp_path)):
        pass


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below" / "it"):
        refused = pytest.raises(PlugError, match=f"{path} cannot be a directory, for {file} is a f")
        with refused, held(PlainPath.of(path)):
            pass
    assert file.read_text() == ""


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "vocabulary", "metrics.jsonl"])
def test_what_is_of_the_wrong_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "metrics.jsonl":
        path.mkdir()
        kinds = "is a directory, and a run needs a file of that name"
    else:
        path.write_text("")
        kinds = "is a file, and a run needs a directory of that name"
    with pytest.raises(PlugError, match=f"{path} {kinds}"), held(PlainPath.of(tmp_path)):
        pass
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", [".", "checkpoints", "metrics.jsonl"])
def test_what_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Root may write everywhere, so the system's answer is simulated."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    closed = tmp_path / name
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    refused = pytest.raises(PlugError, match=f"{closed} is not writable for this user")
    with refused, held(PlainPath.of(tmp_path)):
        pass
