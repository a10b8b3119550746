"""Background saves, and handling of failed ones."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import jax
import orbax.checkpoint as ocp
import tensorflow as tf
from etils import epath

from plug_jax.checkpoints.save_barrier import AnotherFailed, SaveBarrier
from plug_jax.errors import PlugError
from plug_jax.hosts.processes import of_all_processes

# File system errors of Python's own functions and of TensorFlow's.
REFUSALS = (OSError, tf.errors.OpError)

_PROBE = ".can-be-written"
_PROBE_BYTES = 1 << 16  # more than the directories of a checkpoint take
_SECONDS_TO_REMOVE = 60.0
_SECONDS_TO_END = 10.0
_SECONDS_TO_ANSWER = 10.0


class CannotSave(PlugError):
    """The run ends because it cannot write; what it has written is complete, and it can resume."""

    status: ClassVar[int] = 74  # EX_IOERR of sysexits.h


class SaveHangs(CannotSave):
    """A file system does not respond; threads that wait for it keep the process from exiting."""


class Saver:
    """Saves checkpoints one at a time in the background; a failed save does not end the run.

    It is reported in one line, its leftovers on disk are removed, and the next save tries again.
    All processes must call it, and all learn whether one of them could not write.
    """

    def __init__(
        self,
        open_manager: Callable[[int, SaveBarrier], ocp.CheckpointManager],
        *,
        most_failures: int | None,
        timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """`open_manager(n, barrier)`: the manager to save with after `n` failures.

        `most_failures`: failed saves in a row that end the run; None: unlimited. `timeout`: seconds
        that a save may take. `say` prints a message.
        """
        logging.getLogger("absl").addFilter(_not_of_orbax)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._not_of_a_closed_loop
        self._open = open_manager
        self._most_failures, self._timeout, self._say = most_failures, timeout, say
        self._failures = 0  # of this process
        self._reopen()
        self._in_a_row = 0
        self._last_failure = ""
        self._under_way: int | None = None  # the step that is being written
        self._deadline = 0.0
        self._hangs = False

    def start(
        self,
        step: int,
        args: ocp.args.CheckpointArgs,
        metrics: Mapping[str, float],
        *,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start to save `step`; returns once the arrays are copied. Waits for the previous save.

        `before` is called first, on the first process: if it raises, nothing is saved.

        Raises:
            CannotSave: too many saves in a row have failed, or this one takes too long.
        """
        self.wait()
        self._under_way, self._deadline = step, time.monotonic() + self._timeout
        refused = self._attempt(lambda: self._prepare(before))
        if refused is None:
            # `force`: orbax would otherwise silently skip a step before its newest.
            refused = self._attempt(
                lambda: self.manager.save(step, args=args, metrics=metrics, force=True)
            )
        if refused is not None:
            self._failed(refused)

    def wait(self, *, last: bool = False) -> None:
        """Wait for the current save, if any.

        Raises:
            CannotSave: as `start`; also if the `last` save failed.
        """
        if self._under_way is not None:
            refused = self._attempt(self._finish)
            if refused is None:
                self._under_way, self._in_a_row = None, 0
                _release_memory()
            else:
                self._failed(refused, last=last)
        if last and self._in_a_row:
            raise CannotSave(f"{self._last_failure}. {self._remedy()}")

    def close(self) -> None:
        """Wait for the current save when a run ends early; reports if it fails."""
        sys.unraisablehook = self._unraisable
        if self._hangs:
            return
        step, self._under_way = self._under_way, None
        error = self._in_time(self.manager.close)
        if error is not None and step is not None:
            self._say(f"the checkpoint of step {step} could not be saved: {reason_of(error)}")

    def _not_of_a_closed_loop(self, unraisable: sys.UnraisableHookArgs) -> None:
        # After a failed save, tensorstore ends other writes once nobody waits for them.
        if str(unraisable.exc_value) != "Event loop is closed":
            self._unraisable(unraisable)

    def _attempt(self, call: Callable[[], object]) -> str | None:
        """Why `call` failed, on the first process where it did; None if on none."""
        error = self._in_time(call)
        if isinstance(error, TimeoutError) and error.errno is None:
            self._hangs = True
            raise SaveHangs(
                f"the checkpoint of step {self._under_way} was not written within "
                f"{self._timeout:g} s (SAVE_TIMEOUT): the file system of {self.manager.directory} "
                "does not answer, or another process could not write. The older checkpoints are "
                "as they were; the same command resumes from the newest."
            )
        if error is not None and not isinstance(error, AnotherFailed):
            self._barrier.failed(error)
        mine = None if error is None else reason_of(error)
        of_all = of_all_processes((mine, isinstance(error, AnotherFailed)))
        reasons = [(another, n, reason) for n, (reason, another) in enumerate(of_all) if reason]
        if not reasons:
            return None
        _, process, reason = min(reasons)
        return reason if len(of_all) == 1 else f"{reason} (process {process})"

    def _reopen(self) -> None:
        # Later saves must not use a barrier that a failed save did not reach.
        self._barrier = SaveBarrier(f"save{self._failures}")
        self.manager = self._open(self._failures, self._barrier)

    def _finish(self) -> None:
        """Wait, and raise this process's own error, whatever orbax turns it into."""
        try:
            self.manager.wait_until_finished()
        except Exception:
            if self._barrier.error is None:
                raise
        if self._barrier.error is not None:
            raise self._barrier.error

    def _in_time(self, call: Callable[[], object]) -> Exception | None:
        # A save that finished long ago must still be asked for its error.
        left = max(self._deadline - time.monotonic(), min(self._timeout, _SECONDS_TO_ANSWER))
        return _within(left, call)

    def _prepare(self, before: Callable[[], None] | None) -> None:
        """Fail before a byte of the checkpoint is written, if writing cannot succeed."""
        if jax.process_index() != 0:
            return
        if before is not None:
            before()
        remove_unfinished(self.manager.directory)
        probe = self.manager.directory / _PROBE
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def _failed(self, reason: str, *, last: bool = False) -> None:
        """Make the next save independent of this one, and report what happened or end the run."""
        step, self._under_way = self._under_way, None
        self._failures += 1
        self._in_a_row += 1
        directory = self.manager.directory
        # Orbax has already forgotten the older checkpoints that it would have deleted by now.
        self._reopen()
        if jax.process_index() == 0:
            _within(_SECONDS_TO_REMOVE, lambda: _remove_failed(directory))
        newest = self.manager.latest_step()
        rest = "there is none yet" if newest is None else f"the newest is that of step {newest}"
        self._last_failure = f"the checkpoint of step {step} could not be saved: {reason}; {rest}"
        if self._most_failures is not None and self._in_a_row >= self._most_failures:
            raise CannotSave(
                f"{self._last_failure}. It was number {self._in_a_row} of consecutive saves that "
                f"failed (SAVE_FAILURES = {self._most_failures}). {self._remedy()}"
            )
        if not last:
            self._say(f"{self._last_failure}. The run continues and tries again at its next save.")

    def _remedy(self) -> str:
        return (
            f"Make {self.manager.directory} writable with space for a checkpoint; the same command "
            "resumes from the newest."
        )


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Within, `what` is written at the end of a run.

    Raises:
        CannotSave: in place of what the file system raises.
    """
    try:
        yield
    except REFUSALS as error:
        raise CannotSave(
            f"{what} could not be written: {reason_of(error)}. The checkpoints are whole: once "
            "it can be written, the same command catches up."
        ) from error


def reason_of(error: BaseException) -> str:
    """The file system's own error in one line, whichever library wraps it."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}"
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    # Tensorstore: RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']
    if found := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(found[1]))
    # TensorFlow: {{function_node ...}} a/b; File too large [Op:SaveV2]
    return re.sub(r"^{{.*?}} | \[Op:\w+\]$", "", text.strip().splitlines()[0])


def remove_unfinished(directory: epath.Path) -> None:
    """Remove leftovers of killed or failed saves; no save may be in progress.

    Raises:
        OSError: the file system refuses.
    """
    unfinished = ocp.path.atomicity_defaults.get_default_temporary_path_class(directory)
    for path in directory.iterdir():
        step = path.name.removesuffix(ocp.path.atomicity_types.TMP_DIR_SUFFIX)
        if not (step.isascii() and step.isdecimal()):
            continue
        with contextlib.suppress(ocp.path.atomicity_types.ValidationError):
            asyncio.run(unfinished.validate(path))
            path.rmtree()


def _release_memory() -> None:
    """Return memory that glibc keeps from the written copies to the system.

    It comes in pieces of many sizes from many threads: 312 MB after 14 saves of 128 MB.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system's libc
        ctypes.CDLL(None).malloc_trim(0)


def _remove_failed(directory: epath.Path) -> None:
    """Remove the leftovers of a save that failed before its last write."""
    deadline = time.monotonic() + _SECONDS_TO_END  # another one's thread may never end
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Its own `join` would raise its error.
            threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))
    for _ in range(3):  # and for tensorstore's threads, which Python does not know
        with contextlib.suppress(OSError):
            remove_unfinished(directory)
        time.sleep(0.1)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Drop orbax's tracebacks for each thread of an error, which is reported in one line here."""
    return "orbax" not in record.pathname


def _within(seconds: float, call: Callable[[], object]) -> Exception | None:
    """The error of `call`, run in its own thread; TimeoutError if it does not finish in time."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # orbax passes on whatever its threads met
            raised.append(error)

    thread = threading.Thread(target=run, name="plug-jax-save", daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if thread.is_alive():
        return TimeoutError()
    return raised[0] if raised else None
