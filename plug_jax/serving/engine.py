"""One thread that owns the model: texts wait in a bounded queue, share the slots, and may leave."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from plug_jax.errors import PlugError
from plug_jax.inference.generator import FinishReason, GeneratedText
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.options import GenerationOptions
from plug_jax.inference.slots import Slots
from plug_jax.serving import stops

_log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for the tokens in hand; a device that hangs must not keep the process
_UNFINISHED = "the server stopped before the text was complete"

State = Literal["ok", "stopping", "failed"]


class QueueFullError(Exception):
    """There is no room for a request's texts; later there may be."""


class EngineFailedError(Exception):
    """The model failed while it wrote a text."""


class EngineStoppedError(Exception):
    """The engine takes no texts any more."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """A text as far as it is written."""

    text: GeneratedText
    finish_reason: FinishReason | None  # None: it goes on


@dataclasses.dataclass(eq=False, kw_only=True)
class Job:
    """One text to write. The engine's thread sets what others read, then calls `notify`."""

    prompt: str
    options: GenerationOptions
    notify: Callable[[], None]
    sample: int = 0  # which of the texts that a request wants of the prompt
    stop: tuple[str, ...] = ()  # strings that end the text and are no part of it
    progress: Progress | None = None  # None: it waits
    error: Exception | None = None
    cancelled: bool = False

    @property
    def finished(self) -> bool:
        """Whether the engine is done with it, for better or worse."""
        done = self.progress is not None and self.progress.finish_reason is not None
        return done or self.error is not None


class Engine:
    """Writes texts in the slots, a few tokens at a time, in a thread of its own.

    Used as a context manager; on leaving it, texts in hand fail at once unless `stop` came before.
    All methods may be called from any thread.
    """

    def __init__(self, slots: Slots, *, max_queue: int, steps: int = 4) -> None:
        """`max_queue` texts may wait for a slot; every `steps` tokens readers hear of more.

        Raises:
            PlugError: a number is out of range.
        """
        if max_queue < 0:
            raise PlugError(f"max_queue is {max_queue}; it must be 0 (none waits) or more")
        self.slots = slots  # the thread's alone; their limits are for everybody
        self._steps = steps
        self.capacity = slots.count + max_queue
        self._changed = threading.Condition()
        # Under the lock. A job is in `_accepted` from `submit` until it is finished or cancelled.
        self._accepted: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._deadline: float | None = None
        self._refusal: str | None = None  # why no texts are taken any more
        self._failed = False
        # Of the engine's thread alone.
        self._writing: dict[int, Job] = {}  # by slot
        self._suspects: deque[Job] = deque()  # that were in the slots when the model failed
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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
        """ "ok" while it takes texts."""
        if self._failed:
            return "failed"
        return "ok" if self._refusal is None else "stopping"

    def counts(self) -> tuple[int, int]:
        """How many texts are being written, and how many wait."""
        with self._changed:
            return len(self._accepted) - len(self._waiting), len(self._waiting)

    def check(self, prompt: str, options: GenerationOptions) -> int:
        """Tokens of the prompt, without [CLS] and [SEP]. PlugError if it cannot be done."""
        return len(self.slots.check(prompt, options)) - 2

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.slots.model.vocabulary.decode(ids)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of the jobs, or none.

        Raises:
            QueueFullError: with them there would be more than `capacity`.
            EngineStoppedError: it has failed, or is stopping.
        """
        with self._changed:
            self.ensure_room(len(jobs))
            self._accepted.update(jobs)
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def ensure_room(self, texts: int) -> None:
        """Raise what `submit` would for so many texts."""
        with self._changed:
            if self._refusal is not None:
                raise EngineStoppedError(self._refusal)
            if len(self._accepted) + texts > self.capacity:
                raise QueueFullError

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody reads these jobs any more: their slots and places are for others."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._accepted.difference_update(jobs)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            self._changed.notify_all()

    def stop(self, grace: float) -> None:
        """Take no more texts; those in hand have `grace` seconds, or what an earlier call left."""
        with self._changed:
            deadline = time.monotonic() + grace
            self._deadline = min(deadline, self._deadline or deadline)
            self._refusal = self._refusal or "the server is stopping"
            self._changed.notify_all()

    def ending(self, overtime: float) -> bool:
        """After `stop`: whether texts may still come; not when `overtime` seconds too late."""
        assert self._deadline is not None
        return self._thread.is_alive() and time.monotonic() < self._deadline + overtime

    def abandon(self) -> None:
        """Fail what is in hand without waiting for the model, which may never come back."""
        with self._changed:
            jobs = list(self._accepted)
        for job in jobs:
            self._finish(job, EngineStoppedError(_UNFINISHED))

    def _run(self) -> None:
        try:
            while self._has_work():
                self._round()
        except Exception as error:
            _log.error("the model has failed; the server takes no more requests")
            self._fail_all(error)
        else:
            self._finish_all(EngineStoppedError(_UNFINISHED))

    def _has_work(self) -> bool:
        """Wait for jobs; False when it is time to stop."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._accepted or self._writing or self._deadline is not None
            )
            if self._deadline is None:
                return True
            return bool(self._accepted) and time.monotonic() < self._deadline

    def _round(self) -> None:
        """Let go of the cancelled, admit the waiting, write some tokens."""
        for slot in [slot for slot, job in self._writing.items() if job.cancelled]:
            self.slots.release(slot)
            del self._writing[slot]
        while self.slots.free and (job := self._next()):
            try:
                slot = self.slots.admit(job.prompt, job.options, sample=job.sample)
            except Exception as error:
                self._finish(job, _failure(error))
                if not self.slots.intact:
                    self._start_over()
            else:
                self._writing[slot] = job
        try:
            written = self.slots.advance(self._steps)
        except Exception as error:
            failure = _failure(error)
            if len(self._writing) == 1:  # it is this one's fault
                self._finish(self._writing.popitem()[1], failure)
            self._start_over()
            return
        for slot, (text, ended) in written.items():
            self._deliver(slot, text, ended)

    def _next(self) -> Job | None:
        """The next to admit. Each suspect is written alone: one that makes the model fail shows."""
        while self._suspects and (self._suspects[0].finished or self._suspects[0].cancelled):
            self._suspects.popleft()
        if self._suspects:
            return None if self._writing else self._suspects[0]
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def _start_over(self) -> None:
        """After a failure that may have spoilt the slots: what was in them is to be written again.

        A text depends on its request alone, so what was handed out of it remains right. Raises if
        the model does not even write a token without a prompt: then it is nobody's fault.
        """
        self._suspects.extend(self._writing.values())
        self._writing.clear()
        self.slots.reset()
        self.slots.admit("", GenerationOptions(max_new_tokens=1))
        self.slots.advance(1)

    def _deliver(self, slot: int, text: GeneratedText, ended: bool) -> None:
        job, failure = self._writing[slot], None
        try:
            job.progress = self._progress(job, text, ended)
        except Exception as error:
            failure = _failure(error)
        if failure is None and not job.finished:
            job.notify()
            return
        if not ended:
            self.slots.release(slot)
        del self._writing[slot]
        self._finish(job, failure)

    def _progress(self, job: Job, text: GeneratedText, ended: bool) -> Progress:
        """How far a job is with this text."""
        if not text.has_numbers:
            raise NoNumbersError
        known = len(job.progress.text.ids) if job.progress else 0
        shorter = stops.cut(text, job.stop, self.decode, known=known)
        if shorter is not None:
            return Progress(shorter, "stop")
        return Progress(text, text.finish_reason if ended else None)

    def _finish(self, job: Job, error: Exception | None = None) -> None:
        job.error = job.error or error
        with self._changed:
            self._accepted.discard(job)
        job.notify()

    def _fail_all(self, cause: Exception) -> None:
        with self._changed:
            self._failed = True
            self._refusal = "the model has failed; the server's log says why"
        self._finish_all(_failure(cause))

    def _finish_all(self, error: Exception) -> None:
        with self._changed:
            jobs = list(self._accepted)
            self._waiting.clear()
        self._writing.clear()
        self._suspects.clear()
        for job in jobs:
            self._finish(job, error)


def _failure(cause: Exception) -> Exception:
    """What a reader is told of an exception: a PlugError itself, of others that they are logged."""
    if isinstance(cause, PlugError):
        return cause
    _log.error("the model failed", exc_info=cause)
    failure = EngineFailedError("the model failed; the server's log says why")
    failure.__cause__ = cause
    return failure
