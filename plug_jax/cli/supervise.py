"""Runs a training command as a child process and starts it again when that helps.

The supervisor imports neither jax nor tensorflow: it holds no device, little memory, and outlives
whatever becomes of the child.
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

# Errors that nobody foresaw (1: a device or a file system may have failed), lost and hanging hosts
# (75), and SIGTERM (143) that another host or the child alone got. Signals that end the child too.
_RESTARTED = (1, 75, 143)
_FRUITLESS = 5  # starts from the same step, one after the other: there is no sense in a sixth
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0  # seconds
_SECONDS_STOPPED = 60.0  # that a child may be stopped (SIGSTOP) before it is killed
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def supervise(command: Sequence[str], restarts: int) -> int:
    """Run a command, and anew up to `restarts` times; returns its last status, as a shell has it.

    SIGTERM and SIGINT are passed on to the child, whose end is then the end.
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
        """Until the child ends for good."""
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
                    reason = f"{_FRUITLESS} starts in a row came no further than step {step}"
                    return _say(f"not restarted: {reason}; the last {how}", status)
                if restart > self._restarts:
                    return _say(f"no restarts are left of {self._restarts}: {how}", status)
                seconds = self._progress.wait(killed=status < 0)
                at = "" if start is None else f", begun at step {start.step}"
                _say(f"restart {restart} of {self._restarts} in {seconds:.0f} s: {how}{at}", status)
                if self._asked.wait(seconds):
                    return _as_of_shell(status)
        raise AssertionError("unreachable")

    def _run_child(self) -> int:
        """The status of one run, as Popen has it."""
        self._report.unlink(missing_ok=True)
        self._child = subprocess.Popen(
            self._command,
            env=os.environ | {VARIABLE: str(self._report)},
            start_new_session=True,  # it gets a terminal's Ctrl-C from us, and once
            preexec_fn=_end_with_parent,
        )
        if self._asked.is_set():  # while it was started
            self._child.terminate()
        stopped_at: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(timeout=1.0)
            event = os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
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
    failures: int = 0  # ends in a row without progress, of those that did not begin to train too
    _last: Start | None = None

    def add(self, start: Start | None) -> None:
        """A run ended that had begun so; None: before it trained."""
        self.failures += 1
        if start is None:
            return
        if self.step is None or start.step > self.step:
            self.step, self.fruitless, self.failures = start.step, 0, 1
        self.fruitless += 1
        self._last = start

    def wait(self, *, killed: bool) -> float:
        """Seconds until the next start: twice as long after each failure in a row."""
        seconds = min(_FIRST_WAIT * 2.0 ** (self.failures - 1), _LONGEST_WAIT)
        if killed and self._last is not None and self._last.processes > 1:
            # Before the others have missed this one it would disturb them.
            seconds += self._last.lost_after
        return seconds


def _end_with_parent() -> None:
    """In the child: SIGTERM when the supervisor is killed. Linux has it, others do without."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _described(status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def _as_of_shell(status: int) -> int:
    return status if status >= 0 else 128 - status


def _say(text: str, status: int) -> int:
    print(f"plug-jax: {text}", file=sys.stderr, flush=True)
    return _as_of_shell(status)
