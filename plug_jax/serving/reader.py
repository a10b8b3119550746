"""Encodes texts in one thread, batching those that wait."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from plug_jax.errors import PlugError
from plug_jax.inference.jobs import Answer, Work
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.placement import PlacedModel
from plug_jax.inference.rows import Row
from plug_jax.serving.worker import Task, Worker, failure_of

_FIRST = "\u4e00"  # a single token in every Chinese vocabulary


@dataclasses.dataclass(frozen=True)
class Reading:
    """A kind of work and its model."""

    model: PlacedModel
    work: Work[Any, Any]

    def prepare(self, row: Row) -> Any:
        """The input for a row. PlugError for an unsuitable one."""
        return self.work.prepare(self.model, row, 0)


@dataclasses.dataclass(eq=False, kw_only=True)
class ReadJob(Task):
    """One text to read."""

    reading: Reading
    item: Any  # from `Reading.prepare`
    answer: Answer | None = None

    @property
    def finished(self) -> bool:
        """Whether it has an answer, or will have none."""
        return self.answer is not None or self.error is not None


class Reader(Worker[ReadJob]):
    """Reads up to `batch_size` texts at a time in its own thread.

    A batch has one text or `batch_size` (padded with copies), so each length bucket has two
    programs. A text's result does not depend on its neighbours.
    """

    def __init__(self, *, batch_size: int, max_queue: int) -> None:
        """`max_queue` texts may wait besides those being read.

        Raises:
            PlugError: a number is out of range.
        """
        if batch_size < 1:
            raise PlugError(f"slots is {batch_size}; it must be at least 1")
        if max_queue < 0:
            raise PlugError(f"max_queue is {max_queue}; it must be 0 (none waits) or more")
        super().__init__(capacity=batch_size + max_queue)
        self.batch_size = batch_size
        self._suspects: deque[ReadJob] = deque()  # of a failed batch; each is read alone

    def warm_up(self, readings: Sequence[Reading]) -> Iterator[str]:
        """Compile all programs that requests may need; yield a name before each bucket."""
        for reading in readings:
            for length, item in _items_of_buckets(reading):
                yield f"texts of up to {length} tokens"
                for count in sorted({1, self.batch_size}):
                    reading.work.answer(reading.model, [item] * count)

    def _forget(self) -> None:
        self._suspects.clear()

    def _round(self) -> None:
        jobs = self._next()
        if not jobs:
            return
        reading, items = jobs[0].reading, [job.item for job in jobs]
        full = items + items[-1:] * (self.batch_size - len(items) if len(items) > 1 else 0)
        try:
            answers = reading.work.answer(reading.model, full)
        except Exception as error:
            if len(jobs) > 1:
                self._suspects.extend(jobs)  # find out whether one of them is at fault
                return
            self._check_alive(reading)
            self._finish(jobs[0], failure_of(error))
            return
        for job, answer in zip(jobs, answers, strict=False):
            if isinstance(answer, NoNumbersError):
                self._finish(job, answer)
            else:
                job.answer = answer
                self._finish(job)

    def _next(self) -> list[ReadJob]:
        """Up to a batch of jobs that wait for the same reading, in order."""
        while self._suspects:
            job = self._suspects.popleft()
            if not (job.finished or job.cancelled):
                return [job]
        with self._changed:
            found: list[ReadJob] = []
            for job in self._waiting:
                if len(found) < self.batch_size and (not found or job.reading == found[0].reading):
                    found.append(job)
            self._waiting = deque(job for job in self._waiting if job not in found)
            return found

    def _check_alive(self, reading: Reading) -> None:
        """Raises if the model cannot even read one character: then no request is at fault."""
        reading.work.answer(reading.model, [reading.prepare(Row({"text": _FIRST}))])


def _items_of_buckets(reading: Reading) -> Iterator[tuple[int, Any]]:
    """A length in each bucket, and an item of about that length."""
    model, done = reading.model, 0
    for length in sorted({model.bucket(n) for n in range(1, model.longest + 1)}):
        item = reading.prepare(Row({"text": _FIRST * (length - 2)}))
        if model.bucket(reading.work.size(item)[1]) > done:
            done = model.bucket(reading.work.size(item)[1])
            yield length, item
