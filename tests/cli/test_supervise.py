"""The supervisor, with small scripts as children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from plug_jax.cli import supervise as module
from plug_jax.cli.main import main
from plug_jax.cli.supervise import _Progress, supervise
from plug_jax.hosts.supervision import VARIABLE, Start

ROOT = Path(__file__).resolve().parent.parent.parent

# Each start takes the next ending; `begun` is the step that it reports, as `train` does.
CHILD = """
import json, os, signal, sys, time
endings, path = json.loads(sys.argv[1]), sys.argv[2]
count = len(open(path).read().split()) if os.path.exists(path) else 0
open(path, "a").write(f"{os.getpid()}\\n")
end, begun = endings[min(count, len(endings) - 1)]
if begun is not None:
    from plug_jax.hosts.supervision import Start, tell
    tell(Start(begun, 1, 60.0))
if end == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    open(path, "a").write("ready\\n")
    time.sleep(30)
if isinstance(end, str):
    os.kill(os.getpid(), getattr(signal, end))
    time.sleep(30)
sys.exit(end)
"""


def child(tmp_path: Path, *endings: tuple[int | str, int | None]) -> list[str]:
    return [sys.executable, "-c", CHILD, json.dumps(endings), str(tmp_path / "starts")]


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().split())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM", 1, 75, 143])
def test_what_a_restart_mends(
    ending: int | str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(child(tmp_path, (ending, 0), (ending, 10), (0, 20)), 5) == 0
    assert starts(tmp_path) == 3
    first, second = capfd.readouterr().err.splitlines()
    killed, status = f"it was killed by {ending}", f"it ended with status {ending}"
    how = killed if isinstance(ending, str) else status
    assert first == f"plug-jax: restart 1 of 5 in 0 s: {how}, started at step 0"
    assert second.startswith("plug-jax: restart 2 of 5") and second.endswith("step 10")


@pytest.mark.parametrize("ending", [2, 65, 74, 76, 130, "SIGINT"])
def test_what_a_restart_does_not_mend(
    ending: int | str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = supervise(child(tmp_path, (ending, 0)), 5)
    assert status == (130 if ending == "SIGINT" else ending)
    assert starts(tmp_path) == 1
    assert "plug-jax: not restarted: it " in capfd.readouterr().err


def test_restarts_without_progress_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(child(tmp_path, (75, 0), (75, 40)), 50) == 75
    assert starts(tmp_path) == 6
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == (
        "plug-jax: not restarted: 5 starts in a row got no further than step 40; the last it "
        "ended with status 75"
    )


def test_restarts_run_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Starts that fail before training count towards the limit of restarts only."""
    assert supervise(child(tmp_path, (75, None)), 7) == 75
    assert starts(tmp_path) == 8
    assert capfd.readouterr().err.splitlines()[-1] == (
        "plug-jax: none of the 7 restarts is left: it ended with status 75"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_ends_it(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    def interrupt() -> None:
        while not (tmp_path / "starts").exists() or starts(tmp_path) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    assert supervise(child(tmp_path, ("wait", 0)), 5) == status
    thread.join()
    assert signal.getsignal(number) is before
    assert starts(tmp_path) == 2  # the pid and "ready"


def test_a_stopped_child_is_killed_and_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SECONDS_STOPPED", 0.5)
    assert supervise(child(tmp_path, ("SIGSTOP", 0), (0, 1)), 5) == 0
    assert "killed by SIGKILL" in capfd.readouterr().err


def test_a_child_that_ends_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only processes that have not ended can be asked whether they are stopped."""

    def waitid(kind: int, pid: int, options: int) -> None:
        raise ChildProcessError(10, "No child processes")

    monkeypatch.setattr(os, "waitid", waitid)
    slow = [sys.executable, "-c", f"import time; time.sleep(1.3); exec({CHILD!r})"]
    assert supervise([*slow, *child(tmp_path, (75, 0), (0, 1))[3:]], 5) == 0
    assert starts(tmp_path) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_the_child_is_told_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    command = child(tmp_path, ("wait", 0))
    program = f"from plug_jax.cli.supervise import supervise; supervise({command!r}, 5)"
    supervisor = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "starts").exists() or starts(tmp_path) < 2:
        time.sleep(0.01)
    supervisor.kill()
    supervisor.wait()
    pid = int((tmp_path / "starts").read_text().split()[0])
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_waits_grow_and_let_the_others_miss_a_killed_process() -> None:
    progress = _Progress()
    module._FIRST_WAIT = 5.0  # which the fixture restores
    progress.add(Start(0, 2, 60.0))
    assert progress.wait(killed=False) == 5 and progress.wait(killed=True) == 65
    progress.add(None)
    progress.add(Start(0, 2, 60.0))
    assert progress.wait(killed=False) == 20
    progress.add(Start(8, 1, 60.0))
    assert progress.wait(killed=True) == 5
    for _ in range(20):
        progress.add(None)
    assert progress.wait(killed=False) == 300


def test_train_runs_itself_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("plug_jax.cli.train.supervise", lambda *args: calls.append(args) or 75)
    command = ["train", "--restarts=3", "--gin_file=a.gin", "--gin.A='b c'", "--gin_file", "c.gin"]
    assert main(command) == 75
    files = ["--gin_file=a.gin", "--gin_file=c.gin"]
    expected = [sys.executable, "-m", "plug_jax", "train", *files, "--gin.A='b c'"]
    assert calls == [(expected, 3)]
    assert main(["train", "--restarts=-1", "--gin_file=a.gin"]) == 2


def test_the_supervisor_has_no_jax(tmp_path: Path) -> None:
    program = """
import sys
from plug_jax.cli import train
from plug_jax.cli.main import main
train.sys.executable = "/bin/true"
print(main(["train", "--restarts=1", "--gin_file=a"]), {"jax", "tensorflow"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "0 set()\n", run
    assert VARIABLE not in os.environ
