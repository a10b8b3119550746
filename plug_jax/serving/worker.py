"""A thread that owns a model, with a bounded queue of cancellable jobs."""

from __future__ import annotations

import abc
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from plug_jax.errors import PlugError

_log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for current work; a hanging device must not keep the process alive
_UNFINISHED = "the server stopped before the text was complete"

State = Literal["ok", "stopping", "failed"]


class QueueFullError(Exception):
    """There is currently no room for a request's texts."""


class WorkerFailedError(Exception):
    """The model failed while it worked on a text."""


class WorkerStoppedError(Exception):
    """The worker no longer accepts texts."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Task(abc.ABC):
    """One text to process. The worker's thread updates it, then calls `notify`."""

    notify: Callable[[], None]
    error: Exception | None = None
    cancelled: bool = False

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether the worker is done with it, successfully or not."""


T = TypeVar("T", bound=Task)


class Worker(abc.ABC, Generic[T]):
    """Processes jobs in its own thread.

    A context manager; on exit, current jobs fail at once unless `stop` was called before. All
    methods without a leading underscore are thread-safe.
    """

    def __init__(self, *, capacity: int) -> None:
        """At most `capacity` jobs at a time, including waiting ones."""
        self.capacity = capacity
        self._changed = threading.Condition()
        # Guarded by the lock. A job is in `_accepted` from `submit` until finished or cancelled.
        self._accepted: set[T] = set()
        self._waiting: deque[T] = deque()
        self._deadline: float | None = None
        self._refusal: str | None = None  # why jobs are no longer accepted
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @abc.abstractmethod
    def _round(self) -> None:
        """Do some work. An exception ends the worker."""

    def _busy(self) -> bool:
        """Whether there is work besides the accepted jobs."""
        return False

    def _forget(self) -> None:
        """Drop all current work."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(0)
        self._thread.join(_PATIENCE)

    @property
    def state(self) -> State:
        """ "ok" while it accepts jobs."""
        if self._failed:
            return "failed"
        return "ok" if self._refusal is None else "stopping"

    def counts(self) -> tuple[int, int]:
        """Numbers of active and waiting jobs."""
        with self._changed:
            return len(self._accepted) - len(self._waiting), len(self._waiting)

    def submit(self, jobs: Sequence[T]) -> None:
        """Queue all of the jobs, or none.

        Raises:
            QueueFullError: they would exceed `capacity`.
            WorkerStoppedError: it has failed, or is stopping.
        """
        with self._changed:
            self.ensure_room(len(jobs))
            self._accepted.update(jobs)
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def ensure_room(self, texts: int) -> None:
        """Raise what `submit` would for this many jobs."""
        with self._changed:
            if self._refusal is not None:
                raise WorkerStoppedError(self._refusal)
            if len(self._accepted) + texts > self.capacity:
                raise QueueFullError

    def cancel(self, jobs: Sequence[T]) -> None:
        """Cancel jobs that nobody reads any more, freeing their places."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._accepted.difference_update(jobs)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            self._changed.notify_all()

    def stop(self, grace: float) -> None:
        """Accept no more jobs; current ones have `grace` seconds, or an earlier call's rest."""
        with self._changed:
            deadline = time.monotonic() + grace
            self._deadline = min(deadline, self._deadline or deadline)
            self._refusal = self._refusal or "the server is stopping"
            self._changed.notify_all()

    def ending(self, overtime: float) -> bool:
        """After `stop`: whether results may still come, up to `overtime` seconds too late."""
        assert self._deadline is not None
        return self._thread.is_alive() and time.monotonic() < self._deadline + overtime

    def abandon(self) -> None:
        """Fail current jobs without waiting for the model, which may never return."""
        with self._changed:
            jobs = list(self._accepted)
        for job in jobs:
            self._finish(job, WorkerStoppedError(_UNFINISHED))

    def _run(self) -> None:
        try:
            while self._has_work():
                self._round()
        except Exception as error:
            _log.error("the model has failed; the server takes no more requests")
            self._fail_all(error)
        else:
            self._finish_all(WorkerStoppedError(_UNFINISHED))

    def _has_work(self) -> bool:
        """Wait for jobs; False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._accepted or self._busy() or self._deadline is not None
            )
            if self._deadline is None:
                return True
            return bool(self._accepted) and time.monotonic() < self._deadline

    def _finish(self, job: T, error: Exception | None = None) -> None:
        job.error = job.error or error
        with self._changed:
            self._accepted.discard(job)
        job.notify()

    def _fail_all(self, cause: Exception) -> None:
        with self._changed:
            self._failed = True
            self._refusal = "the model has failed; the server's log says why"
        self._finish_all(failure_of(cause))

    def _finish_all(self, error: Exception) -> None:
        with self._changed:
            jobs = list(self._accepted)
            self._waiting.clear()
        self._forget()
        for job in jobs:
            self._finish(job, error)


def failure_of(cause: Exception) -> Exception:
    """The exception for a job's reader: a PlugError itself, for others that they are logged."""
    if isinstance(cause, PlugError):
        return cause
    _log.error("the model failed", exc_info=cause)
    failure = WorkerFailedError("the model failed; the server's log says why")
    failure.__cause__ = cause
    return failure
