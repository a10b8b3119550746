"""Ctrl-C waits while it would not be heard: until modules are imported, until objects have ended.

Raised in the midst of an import, KeyboardInterrupt meets code of many packages that takes it for
its own failure: some print a traceback and some go on, as if nobody had pressed a key. What is
raised in a `__del__`, or as Python collects garbage, Python prints and forgets.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

_LONGEST = 30.0  # seconds for a module to be imported; one that takes longer is interrupted
_AGAIN = 0.01  # seconds after which to look again
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def hold_interrupts() -> None:
    """From now on SIGINT raises KeyboardInterrupt once it is heard.

    For the main thread of a program, as its first act. A SIGINT that was blocked before (see
    `block_interrupts`) is no more. One that is ignored, as in a job in the background, stays so.
    """
    held = _Held()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, held.interrupt)
        signal.signal(signal.SIGALRM, held.look)
        signal.siginterrupt(signal.SIGALRM, False)  # what the import waits for goes on
        sys.unraisablehook = held.unheard
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def block_interrupts() -> None:
    """Keep a SIGINT waiting, also for the program that this process may become."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def let_interrupts_end() -> None:
    """From now on SIGINT ends the process at once, without a word."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Held:
    """The interrupt that waits, if one does."""

    def __init__(self) -> None:
        self._error: KeyboardInterrupt | None = None
        self._modules = 0  # as many as there were when it last looked
        self._deadline = 0.0
        self._unraisable = sys.unraisablehook

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """What SIGINT does."""
        self._error = self._error or KeyboardInterrupt()
        self.look(number, frame)

    def look(self, number: int, frame: FrameType | None) -> None:
        """What SIGALRM does: raise what waits, if it would be heard now."""
        if self._error is None:
            return  # the alarm was on its way when it was raised
        if _is_import(frame):
            now = time.monotonic()
            if len(sys.modules) != self._modules:
                self._modules, self._deadline = len(sys.modules), now + _LONGEST
            if now < self._deadline:
                signal.setitimer(signal.ITIMER_REAL, _AGAIN)
                return
        error, self._error, self._modules = self._error, None, 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise error

    def unheard(self, unraisable: sys.UnraisableHookArgs) -> None:
        """What Python tells of an exception that it is about to forget."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._error = unraisable.exc_value
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._unraisable(unraisable)


def _is_import(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame, or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False
