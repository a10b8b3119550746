"""Runs a training command as a child process and restarts it when that helps.

The supervisor imports neither jax nor tensorflow: it holds no device and little memory, and
outlives the child whatever happens to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from plug_jax.hosts.supervision import VARIABLE, Start, told
from plug_jax.standard_error import say

# Unexpected errors (1: a device or a file system may have failed), lost and hanging hosts (75), and
# SIGTERM (143) to another host or only to the child. Also fatal signals.
_RESTARTED = (1, 75, 143)
_FRUITLESS = 5  # starts in a row from the same step: a sixth would be pointless
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0  # seconds
_SECONDS_STOPPED = 60.0  # that a child may be stopped (SIGSTOP) before it is killed
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def supervise(command: Sequence[str], restarts: int) -> int:
    """Run a command, with up to `restarts` restarts; returns its last status, as a shell's.

    SIGTERM and SIGINT are passed on to the child, and then its exit is final.
    """
    with tempfile.TemporaryDirectory() as directory:
        return _Supervisor(command, restarts, Path(directory) / "start.json").run()


class _Supervisor:
    def __init__(self, command: Sequence[str], restarts: int, report: Path) -> None:
        self._command = command
        self._restarts, self._report = restarts, report
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = threading.Event()  # to end
        self._progress = _Progress()

    def run(self) -> int:
        """Run until the child exits for good."""
        with self._signals():
            for restart in range(1, self._restarts + 2):
                status = self._run_child()
                if status == 0 or self._asked.is_set():
                    return _as_of_shell(status)
                how, start = _described(status), told(self._report)
                if (status > 0 and status not in _RESTARTED) or status == -signal.SIGINT:
                    return _say(f"not restarted: {how}", status)
                self._progress.add(start)
                if self._progress.fruitless >= _FRUITLESS:
                    step = self._progress.step
                    reason = f"{_FRUITLESS} starts in a row got no further than step {step}"
                    return _say(f"not restarted: {reason}; the last {how}", status)
                if restart > self._restarts:
                    return _say(f"none of the {self._restarts} restarts is left: {how}", status)
                seconds = self._progress.wait(killed=status < 0)
                at = "" if start is None else f", started at step {start.step}"
                _say(f"restart {restart} of {self._restarts} in {seconds:.0f} s: {how}{at}", status)
                if self._asked.wait(seconds):
                    return _as_of_shell(status)
        raise AssertionError("unreachable")

    def _run_child(self) -> int:
        """The status of one run, as Popen's returncode."""
        self._report.unlink(missing_ok=True)
        self._child = subprocess.Popen(
            self._command,
            env=os.environ | {VARIABLE: str(self._report)},
            start_new_session=True,  # it gets a terminal's Ctrl-C only from us
            preexec_fn=_end_with_parent,
        )
        if self._asked.is_set():  # during the start
            self._child.terminate()
        stopped_at: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(timeout=1.0)
            event = None
            with contextlib.suppress(ChildProcessError):  # it has just ended
                options = os.WSTOPPED | os.WCONTINUED | os.WNOHANG
                event = os.waitid(os.P_PID, self._child.pid, options)
            if event is not None:
                stopped_at = time.monotonic() if event.si_code == os.CLD_STOPPED else None
            if stopped_at is not None and time.monotonic() - stopped_at > _SECONDS_STOPPED:
                self._child.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def forward(number: int, frame: FrameType | None) -> None:
            self._asked.set()
            if self._child is not None:
                self._child.send_signal(number)

        before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclasses.dataclass
class _Progress:
    """Whether restarts help."""

    step: int | None = None
    fruitless: int = 0  # starts in a row that began at `step`
    failures: int = 0  # exits in a row without progress, including those before training began
    _last: Start | None = None

    def add(self, start: Start | None) -> None:
        """Record a run's end by its start; None: it ended before training."""
        self.failures += 1
        if start is None:
            return
        if self.step is None or start.step > self.step:
            self.step, self.fruitless, self.failures = start.step, 0, 1
        self.fruitless += 1
        self._last = start

    def wait(self, *, killed: bool) -> float:
        """Seconds until the next start: doubled after each failure in a row."""
        seconds = min(_FIRST_WAIT * 2.0 ** (self.failures - 1), _LONGEST_WAIT)
        if killed and self._last is not None and self._last.processes > 1:
            # Until the others have noticed the loss, a restart would disturb them.
            seconds += self._last.lost_after
        return seconds


def _end_with_parent() -> None:
    """In the child: SIGTERM when the supervisor is killed; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _described(status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def _as_of_shell(status: int) -> int:
    return status if status >= 0 else 128 - status


def _say(text: str, status: int) -> int:
    say(f"plug-jax: {text}")
    return _as_of_shell(status)
