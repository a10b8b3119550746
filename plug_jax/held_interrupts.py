"""Defers Ctrl-C while it would be lost: during imports, and while objects are finalised.

If KeyboardInterrupt is raised during an import, many packages treat it as their own failure: some
print a traceback and some continue as if nothing had happened. If it is raised in a `__del__` or
during garbage collection, Python prints and drops it.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

_LONGEST = 30.0  # seconds; a longer import of a module is interrupted
_AGAIN = 0.01  # seconds between checks
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def hold_interrupts() -> None:
    """From now on SIGINT raises KeyboardInterrupt only where it takes effect.

    To be called first in a program's main thread. Unblocks a SIGINT blocked before (see
    `block_interrupts`). A SIGINT that is ignored, as in a background job, stays ignored.
    """
    held = _Held()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, held.interrupt)
        signal.signal(signal.SIGALRM, held.look)
        signal.siginterrupt(signal.SIGALRM, False)  # restart the import's system calls
        sys.unraisablehook = held.unheard
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def block_interrupts() -> None:
    """Keep SIGINT pending, also across an exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def let_interrupts_end() -> None:
    """From now on SIGINT ends the process at once and silently."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Held:
    """The pending interrupt, if any."""

    def __init__(self) -> None:
        self._error: KeyboardInterrupt | None = None
        self._modules = 0  # their number at the last check
        self._deadline = 0.0
        self._unraisable = sys.unraisablehook

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGINT."""
        self._error = self._error or KeyboardInterrupt()
        self.look(number, frame)

    def look(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGALRM: raise the pending interrupt if it takes effect now."""
        if self._error is None:
            return  # already raised when the alarm arrived
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
        """Hook for exceptions that Python would print and drop."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._error = unraisable.exc_value
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._unraisable(unraisable)


def _is_import(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or a caller."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False
