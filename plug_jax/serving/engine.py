"""The engine thread: bounded queue, batched slots, cancellation."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from plug_jax.errors import PlugError
from plug_jax.inference.generator import FinishReason, GeneratedText
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.slots import Slots
from plug_jax.serving import stops
from plug_jax.serving.worker import Task, Worker, failure_of


@dataclasses.dataclass(frozen=True)
class TextProgress:
    """A text so far."""

    text: GeneratedText
    finish_reason: FinishReason | None  # None: not finished


@dataclasses.dataclass(eq=False, kw_only=True)
class TextTask(Task):
    """One text to generate."""

    prompt: str
    options: GenerationOptions
    sample: int = 0  # index among the request's texts for the prompt
    stop: tuple[str, ...] = ()  # strings that end the text, excluded from it
    progress: TextProgress | None = None  # None: waiting

    @property
    def finished(self) -> bool:
        """Whether the engine is done with it, successfully or not."""
        done = self.progress is not None and self.progress.finish_reason is not None
        return done or self.error is not None


class Engine(Worker[TextTask]):
    """Generates texts in the slots, a few tokens at a time, in its own thread."""

    def __init__(self, slots: Slots, *, max_queue: int, steps: int = 4) -> None:
        """`max_queue` texts may wait for a slot; readers are notified every `steps` tokens.

        Raises:
            PlugError: a number is out of range.
        """
        if max_queue < 0:
            raise PlugError(f"max_queue is {max_queue}; it must be 0 (none waits) or more")
        super().__init__(capacity=slots.count + max_queue)
        self.slots = slots  # only for the thread, except their limits
        self._steps = steps
        # Used only by the engine's thread.
        self._writing: dict[int, TextTask] = {}  # by slot
        self._suspects: deque[TextTask] = deque()  # in the slots when the model failed

    def check(self, prompt: str, options: GenerationOptions) -> int:
        """Tokens of the prompt, without [CLS] and [SEP]. PlugError for an invalid request."""
        return len(self.slots.check(prompt, options)) - 2

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.slots.model.vocabulary.decode(ids)

    def _busy(self) -> bool:
        return bool(self._writing)

    def _forget(self) -> None:
        self._writing.clear()
        self._suspects.clear()

    def _round(self) -> None:
        """Release cancelled texts, admit waiting ones, generate some tokens."""
        for slot in [slot for slot, job in self._writing.items() if job.cancelled]:
            self.slots.release(slot)
            del self._writing[slot]
        while self.slots.free and (job := self._next()):
            try:
                slot = self.slots.admit(job.prompt, job.options, sample=job.sample)
            except Exception as error:
                self._finish(job, failure_of(error))
                if not self.slots.intact:
                    self._start_over()
            else:
                self._writing[slot] = job
        try:
            written = self.slots.advance(self._steps)
        except Exception as error:
            failure = failure_of(error)
            if len(self._writing) == 1:  # this one caused it
                self._finish(self._writing.popitem()[1], failure)
            self._start_over()
            return
        for slot, (text, ended) in written.items():
            self._deliver(slot, text, ended)

    def _next(self) -> TextTask | None:
        """The next to admit. Suspects are generated alone, to find the one that fails."""
        while self._suspects and (self._suspects[0].finished or self._suspects[0].cancelled):
            self._suspects.popleft()
        if self._suspects:
            return None if self._writing else self._suspects[0]
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def _start_over(self) -> None:
        """Reset slots after a failure, and queue their texts again.

        A text depends only on its request, so the parts already sent remain valid. Raises if the
        model cannot even generate a token without a prompt: then no request is at fault.
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
            failure = failure_of(error)
        if failure is None and not job.finished:
            job.notify()
            return
        if not ended:
            self.slots.release(slot)
        del self._writing[slot]
        self._finish(job, failure)

    def _progress(self, job: TextTask, text: GeneratedText, ended: bool) -> TextProgress:
        """A job's progress with this text."""
        if not text.has_numbers:
            raise NoNumbersError
        known = len(job.progress.text.ids) if job.progress else 0
        shorter = stops.cut(text, job.stop, self.decode, known=known)
        if shorter is not None:
            return TextProgress(shorter, "stop")
        return TextProgress(text, text.finish_reason if ended else None)
