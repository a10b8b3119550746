"""Messages on standard error that must not fail: a full disk, or a reader that is gone, may not end
a run, nor keep it from ending.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

_REFUSALS = (OSError, ValueError)  # ValueError: it is closed


def say(text: str) -> None:
    """Print a line on standard error at once, if it takes one."""
    with contextlib.suppress(*_REFUSALS):
        print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Flush standard output and standard error, if they take it: for those who exit at once."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(*_REFUSALS):
            stream.flush()


class Unfailing:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        """Writes to `stream`."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop, a text."""
        with contextlib.suppress(*_REFUSALS):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush it, if it takes it."""
        with contextlib.suppress(*_REFUSALS):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        """All else is the stream's: its encoding, and whether it is a terminal."""
        return getattr(self._stream, name)
