"""Ctrl-C and SIGTERM, which end a run after a step, the same one on every process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(KeyboardInterrupt):
    """All processes stopped after the same step, and its checkpoint is written."""


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[int], bool]]:
    """A function that tells, after each step in turn, whether the run should stop there.

    A second Ctrl-C is not held back. Of several processes it is enough that one gets the signal:
    jax's coordinator tells the others, and all agree on a step that none has passed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals reach the main thread only
    elif jax.process_count() > 1:
        # jax.distributed has its own handler for SIGTERM: a notice of preemption to all processes.
        with _handled([signal.SIGINT], lambda: os.kill(os.getpid(), signal.SIGTERM)):
            yield multihost_utils.reached_preemption_sync_point
    else:
        came = threading.Event()
        with _handled([signal.SIGINT, signal.SIGTERM], came.set):
            yield lambda step: came.is_set()


@contextlib.contextmanager
def _handled(signals: list[signal.Signals], react: Callable[[], None]) -> Iterator[None]:
    """The first of `signals` that comes calls `react`; a second one of its kind does as before."""

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        react()

    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
