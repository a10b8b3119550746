"""Locks of local files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.errors import PlugError
from plug_jax.file_locks import alone

HOLD = """
import sys, time
from plug_jax.file_locks import alone
with alone(sys.argv[1], "a run works here"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    said = f"a run works here: process {other.pid} on .*Wait for it, or end it"
    with pytest.raises(PlugError, match=said), alone(path, "a run works here"):
        raise AssertionError("both have it")
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert path.exists()  # it could not remove it
    with alone(path, ""):
        assert path.exists()
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_created_there_is_no_lock(tmp_path: Path) -> None:
    with alone(tmp_path / "none" / "a.lock", ""):
        assert os.listdir(tmp_path) == []
