"""Profiler traces of some steps, for TensorBoard's profile plugin or xprof."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from plug_jax.checkpoints.saving import reason_of


class StepProfile:
    """Writes a trace of the steps `first` to `last` into a directory."""

    def __init__(
        self, directory: str, steps: tuple[int, int] | None, *, say: Callable[[str], None]
    ) -> None:
        """`steps`: (first, last), both traced; None for no trace.

        `say` tells the user of a trace that cannot be written, as on a full disk.
        """
        self._say = say
        self._directory = directory
        self._first, self._last = steps or (1, 0)
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The context in which step `number` is prepared and dispatched; starts a due trace."""
        if self._first <= number <= self._last and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends_at(self, number: int) -> bool:
        """Whether the trace is complete after step `number`, so that it is time to `close`."""
        return self._tracing and number >= self._last

    def close(self) -> None:
        """Write the trace, if any, without unfinished device work."""
        if self._tracing:
            self._tracing = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as error:  # no trace is worth a run
                self._say(f"the profile could not be written: {reason_of(error)}")
