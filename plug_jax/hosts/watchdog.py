"""The watchdog: detects a hanging run, dumps the stacks of all processes, and ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Literal

from etils import epath

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.hosts.activity import current
from plug_jax.hosts.errors import HostError
from plug_jax.hosts.peers import LOST_AFTER, Peers, peers
from plug_jax.standard_error import flush_output, say

STACKS = "stacks"  # in MODEL_DIR
_SECONDS_TO_WRITE = 5.0  # at most: the file system may be what hangs
_LEAST_LOST_AFTER, _MOST_LOST_AFTER = 5.0, 1800.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """What counts as a hang, and the reaction."""

    # Seconds without a step, an evaluation batch or a save; None: no limit. Start-up, compilation
    # and restoring are not watched.
    stall_timeout: float | None = 1800.0
    stall_action: Literal["end", "report"] = "end"  # exit with status 75, or only dump the stacks
    lost_after: float = LOST_AFTER  # seconds without another process's heartbeat

    def __post_init__(self) -> None:
        check_fields(self)
        if self.stall_timeout is not None and not self.stall_timeout > 0:
            raise PlugError(f"STALL_TIMEOUT must be positive or None, got {self.stall_timeout}")
        if not _LEAST_LOST_AFTER <= self.lost_after <= _MOST_LOST_AFTER:
            raise PlugError(
                f"LOST_AFTER must be {_LEAST_LOST_AFTER:.0f} to {_MOST_LOST_AFTER:,.0f} seconds, "
                f"got {self.lost_after}"
            )


@contextlib.contextmanager
def watched(config: WatchdogConfig, model_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Detect hangs of this process within the context, by its activities (`doing`)."""
    watchdog = _Watchdog(config, epath.Path(model_dir) / STACKS, peers())
    watchdog.start()
    try:
        yield
    finally:
        watchdog.leave()


class _Watchdog(threading.Thread):
    """Checks whether this process makes progress."""

    def __init__(self, config: WatchdogConfig, directory: epath.Path, others: Peers | None) -> None:
        super().__init__(daemon=True, name="watchdog")
        self._timeout = config.stall_timeout
        self._status = HostError.status if config.stall_action == "end" else None
        self._directory, self._others = directory, others
        self._left = threading.Event()
        self._seconds = 0.0  # since the activity began or was last reported
        if others is not None:
            others.lost_after = config.lost_after
            others.show_stacks_by(self._show_stacks)

    def run(self) -> None:
        """Check until the run is over."""
        if self._timeout is None:
            return
        interval = min(1.0, self._timeout / 4)
        activity = current()
        while not self._left.wait(interval):
            # Counted, not timed: a process that was stopped and resumed does not hang.
            self._seconds += interval
            if activity is not current() or not activity.watched:
                activity, self._seconds = current(), 0.0
            elif self._seconds >= self._timeout:
                self._stalled()

    def leave(self) -> None:
        """The run is over."""
        self._left.set()
        self.join()

    def _stalled(self) -> None:
        assert self._timeout is not None
        self._seconds = 0.0
        if self._others is not None:
            with contextlib.suppress(RuntimeError):  # peers notice a missing coordinator
                self._others.stalled(seconds=self._timeout, status=self._status)
            return
        text = f"no progress for {self._timeout:,.0f} s in: {current().name}"
        say(f"plug-jax: {text}")
        self._show_stacks(text)
        if self._status is not None:
            flush_output()
            os._exit(self._status)

    def _show_stacks(self, text: str) -> None:
        """Dump all stacks to standard error and to a file in MODEL_DIR/stacks."""
        self._seconds = 0.0  # do not report the same hang again
        stacks = _stacks()
        process = 0 if self._others is None else self._others.process
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-process{process}.txt"
        head = f"{socket.gethostname()}, process {process}, in: {current().name}\n{text}\n\n"
        say(f"{head}{stacks}")

        refusals = []

        def write() -> None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                (self._directory / name).write_text(head + stacks)
            except Exception as error:  # any class, from epath's library for a store
                refusals.append(error)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(_SECONDS_TO_WRITE)
        where = self._directory / name
        if refusals:
            say(f"plug-jax: {where} cannot be written: {refusals[0]}")
        elif writer.is_alive():
            say(f"plug-jax: {where} cannot be written now")
        else:
            say(f"plug-jax: the stacks are in {where}")


def _stacks() -> str:
    """What each thread is doing."""
    try:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()
    except OSError as error:  # a full disk must not keep the run from ending
        return f"the stacks cannot be shown: {error}\n"
