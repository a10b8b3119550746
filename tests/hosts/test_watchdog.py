"""A hanging process is detected, reported and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plug_jax.errors import PlugError
from plug_jax.hosts import watchdog
from plug_jax.hosts.activity import doing
from plug_jax.hosts.watchdog import WatchdogConfig, watched

ROOT = Path(__file__).resolve().parent.parent.parent
HANG = """
import sys, time
from plug_jax.hosts.activity import doing
from plug_jax.hosts.watchdog import WatchdogConfig, watched

def read_the_disk():
    time.sleep(60)

with watched(WatchdogConfig(stall_timeout=0.4, stall_action=sys.argv[1]), sys.argv[2]):
    for step in range(8):
        doing(f"step {step}")
        time.sleep(0.1)
    doing("waiting for the data of step 8")
    if sys.argv[1] == "end":
        read_the_disk()
    time.sleep(1.5)
print("went on")
"""


def hang(action: str, model_dir: Path, **streams: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANG, action, str(model_dir)],
        cwd=ROOT,
        env=os.environ,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
        text=True,
        timeout=60,
    )


def test_a_hang_is_shown_and_ends_the_process(tmp_path: Path) -> None:
    run = hang("end", tmp_path)
    assert run.returncode == 75 and "went on" not in run.stdout, run
    line = "no progress for 0 s in: waiting for the data of step 8"
    assert f"plug-jax: {line}\n" in run.stderr
    assert "in read_the_disk" in run.stderr
    [stacks] = (tmp_path / "stacks").iterdir()
    assert stacks.name.endswith("-process0.txt")
    text = stacks.read_text()
    assert "process 0, in: waiting for the data of step 8" in text and line in text
    assert "in read_the_disk" in text
    assert f"the stacks are in {stacks}" in run.stderr


def test_a_full_log_does_not_keep_a_hang_from_its_end(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        run = hang("end", tmp_path, stderr=full)
    assert run.returncode == 75 and "went on" not in run.stdout, run
    assert len(list((tmp_path / "stacks").iterdir())) == 1


def test_stacks_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file")
    run = hang("end", tmp_path)
    assert run.returncode == 75, run
    assert "in read_the_disk" in run.stderr and "Traceback" not in run.stderr
    assert "-process0.txt cannot be written: " in run.stderr
    assert "the stacks are in" not in run.stderr


def test_a_hang_may_only_be_reported(tmp_path: Path) -> None:
    run = hang("report", tmp_path)
    assert run.returncode == 0 and run.stdout == "went on\n", run
    assert 2 <= run.stderr.count("plug-jax: no progress") <= 3  # again after each STALL_TIMEOUT


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which a hang was detected."""
    found: list[float] = []
    monkeypatch.setattr(watchdog._Watchdog, "_stalled", lambda self: found.append(time.monotonic()))
    return found


def test_what_is_not_watched_may_take_its_time(tmp_path: Path, stalls: list[float]) -> None:
    with watched(WatchdogConfig(stall_timeout=0.1), tmp_path):
        doing("compiling", watched=False)
        time.sleep(0.4)
        assert stalls == []
        doing("step 1")
        time.sleep(0.4)
    assert stalls
    del stalls[:]
    with watched(WatchdogConfig(stall_timeout=None), tmp_path):
        doing("step 1")
        time.sleep(0.3)
    assert stalls == []
    assert not any(tmp_path.iterdir())


def test_a_file_system_that_hangs_does_not_hold_the_stacks_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "_SECONDS_TO_WRITE", 0.1)
    config = WatchdogConfig(stall_action="report")
    made = watchdog._Watchdog(config, _Hanging(tmp_path), None)  # type: ignore[arg-type]
    made._show_stacks("no progress")
    said = capfd.readouterr().err
    assert "test_a_file_system_that_hangs" in said and "cannot be written now" in said


class _Hanging(type(Path())):  # type: ignore[misc]
    def mkdir(self, *args: object, **kwargs: object) -> None:
        time.sleep(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stall_timeout": 0}, "STALL_TIMEOUT must be positive or None, got 0"),
        ({"stall_action": "stop"}, "stall_action must be"),
        ({"lost_after": 1}, "LOST_AFTER must be 5 to 1,800 seconds, got 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(PlugError, match=message):
        WatchdogConfig(**settings)
