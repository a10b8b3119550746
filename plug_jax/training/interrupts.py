"""Ctrl-C, SIGTERM and maintenance notices stop a run after the same step on every process."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from plug_jax.errors import Interrupted
from plug_jax.hosts.maintenance import maintenance
from plug_jax.hosts.peers import Peers, peers


class Interrupts:
    """Whether the run should stop, and since when."""

    def __init__(self, others: Peers | None) -> None:
        self._others = others
        self._came: tuple[str, int, float] | None = None  # reason, status, time

    def note(self, reason: str, number: signal.Signals) -> None:
        """Stop after the current step, as if by this signal. The first reason counts."""
        if self._came is None:
            status = 128 + number  # as in a shell
            self._came = (reason, status, time.monotonic())
            if self._others is not None:
                self._others.stop(reason, status)

    def after(self, step: int) -> bool:
        """Whether to stop after this step; call it after each in turn.

        It is enough if one process is told; all agree on a step that none has passed.
        """
        if self._others is None:
            return self._came is not None
        note = self._others.stop_after(step)
        if note is None:
            return False
        assert note.status is not None
        self._came = self._came or (note.text, note.status, time.monotonic())
        return True

    def error(self, step: int, *, saved: bool) -> Interrupted:
        """The exception after `step`, which is not `saved` if there was nothing new to save."""
        assert self._came is not None
        reason, status, came = self._came
        return Interrupted(reason, status, step=step, came=came if saved else None)


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Within the context, signals and notices stop the run; a repeated signal acts as usual.

    Signals are only handled in the main thread; elsewhere they act as before.
    """
    made = Interrupts(peers())
    with contextlib.ExitStack() as stack:
        stack.enter_context(maintenance(lambda reason: made.note(reason, signal.SIGTERM)))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                react = functools.partial(made.note, number.name, number)
                stack.enter_context(_handled(number, react))
        yield made


@contextlib.contextmanager
def ended_by_termination() -> Iterator[None]:
    """Within the context, SIGTERM raises `Interrupted`, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end() -> None:
        raise Interrupted(signal.SIGTERM.name, 128 + signal.SIGTERM)

    with _handled(signal.SIGTERM, end):
        yield


@contextlib.contextmanager
def _handled(number: signal.Signals, react: Callable[[], None]) -> Iterator[None]:
    """The first such signal calls `react`; a second one acts as before."""

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous)
        react()

    previous = signal.signal(number, note) or signal.SIG_DFL  # None: it was not Python's
    try:
        yield
    finally:
        signal.signal(number, previous)
