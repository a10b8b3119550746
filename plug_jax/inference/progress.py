"""Progress of a batch job on stderr: rows done, speed and time left."""

from __future__ import annotations

import time

from plug_jax.standard_error import say

_SECONDS_BETWEEN_LINES = 10.0


class JobProgress:
    """Counts rows and tokens; `shown` False counts silently."""

    def __init__(self, total: int, *, done: int = 0, shown: bool = True) -> None:
        """`done` rows of an earlier run do not count towards the speed."""
        self._total, self._before, self._shown = total, done, shown
        self._rows = self._tokens = 0  # since the start
        self._started = self._last = time.monotonic()
        if done:
            self._say(f"resuming after {done:,} of {total:,} rows")

    def add(self, rows: int, tokens: int = 0) -> None:
        """This many more are done."""
        self._rows += rows
        self._tokens += tokens
        left = self._total - self._before - self._rows
        if left and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            seconds = left * (self._last - self._started) / max(self._rows, 1)
            done = self._total - left
            self._say(
                f"{done:,} of {self._total:,} rows ({done / self._total:.0%}), {self._speed()}, "
                f"{_clock(seconds)} to go"
            )

    def stop(self, kept: int) -> None:
        """The job ends early; `kept` rows are saved."""
        self._say(
            f"stopped; {kept:,} of {self._total:,} rows are kept, and the same command resumes"
        )

    def finish(self) -> None:
        """All rows are done."""
        seconds = time.monotonic() - self._started
        self._say(f"{self._rows:,} rows in {_clock(seconds)}: {self._speed()}")

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._rows / seconds:,.1f} rows/s, {self._tokens / seconds:,.0f} tokens/s"

    def _say(self, text: str) -> None:
        if self._shown:
            say(text)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
