"""Counters of what the data pipeline drops or rewrites: nothing disappears silently."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import threading
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import tensorflow as tf

T = TypeVar("T")

Amounts = Mapping[str, tf.Tensor | int]

_lock = threading.Lock()
_drops: collections.Counter[str] = collections.Counter()
_changes: collections.Counter[str] = collections.Counter()
_building: contextvars.ContextVar[DatasetCounts | None] = contextvars.ContextVar("building")


class DatasetCounts:
    """Counts of what certain datasets drop and change, in addition to the process's counts."""

    def __init__(self) -> None:
        """Starts with empty counts."""
        self._drops: collections.Counter[str] = collections.Counter()
        self._changes: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Counts the datasets built within the block, whenever they are read."""
        token = _building.set(self)
        try:
            yield
        finally:
            _building.reset(token)

    def read(self) -> dict[str, dict[str, int]]:
        """A copy of the counts so far: {"dropped": by reason, "changed": by step}."""
        with _lock:
            return {"dropped": dict(self._drops), "changed": dict(self._changes)}

    def start_from(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the counts by a result of `read`."""
        with _lock:
            for counter, name in ((self._drops, "dropped"), (self._changes, "changed")):
                counter.clear()
                counter.update(counts.get(name, {}))


def count_drops(value: T, amounts: Amounts) -> T:
    """Returns `value` unchanged; computing it adds each amount to the count of its reason.

    A graph op for functions of `map`, `filter` and `flat_map`, parallel or not. TensorFlow does not
    see it as stateful, so iterators stay checkpointable. Counts are per process, and include
    elements that wait in a prefetch buffer.

    Example (`drop_counts()` is `{"document_too_short": 2}` afterwards):

        def long_enough(document):                  # the documents: lengths 5, 1, 3, 2
            keep = tf.size(document) >= 3
            return count_drops(keep, {"document_too_short": tf.where(keep, 0, 1)})

        dataset = dataset.filter(long_enough)       # lengths 5, 3

    Args:
      value: a tensor or a nest of tensors (also ragged), of any dtype that NumPy knows. It must be
        used downstream and depend on the dataset's element: TensorFlow prunes unused values, and
        computes constants only once.
      amounts: how many were dropped, int scalars by reason, a short snake_case name such as
        "document_too_short". Only those above 0 are counted.
    """
    counts = _building.get(None)
    return _count([_drops, *([counts._drops] if counts else [])], value, amounts)


def count_changes(value: T, amounts: Amounts) -> T:
    """`count_drops` for data that were changed but kept, by step."""
    counts = _building.get(None)
    return _count([_changes, *([counts._changes] if counts else [])], value, amounts)


def drop_counts() -> dict[str, int]:
    """A copy of this process's drop counts so far, by reason."""
    with _lock:
        return dict(_drops)


def why_nothing_is_left(drops: Mapping[str, int]) -> str:
    """For an error: the documents dropped, by reason, and what to do about a missing field."""
    counts = ", ".join(f"{reason} {n}" for reason, n in sorted(drops.items()))
    text = f"Dropped on the way: {counts or 'nothing, so its source is empty'}."
    if "missing_text_key" in drops:
        text += " Name the field that has the text in TEXT_KEY, or in --text_key."
    return text


def what_was_dropped(drops: Mapping[str, int]) -> str | None:
    """A line that says how much was dropped, by reason; None if nothing was."""
    shown = ", ".join(f"{reason} {count:,}" for reason, count in sorted(drops.items()))
    return f"dropped while reading: {shown}" if shown else None


def change_counts() -> dict[str, int]:
    """A copy of this process's change counts so far, by step."""
    with _lock:
        return dict(_changes)


def reset_counts() -> None:
    """Resets every count."""
    with _lock:
        _drops.clear()
        _changes.clear()


def _count(counters: list[collections.Counter[str]], value: T, amounts: Amounts) -> T:
    components = [
        tf.convert_to_tensor(part) for part in tf.nest.flatten(value, expand_composites=True)
    ]
    names = list(amounts)
    numbers = tf.stack([tf.cast(amounts[name], tf.int64) for name in names])

    def record(numbers: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with _lock:
            for name, number in zip(names, numbers.tolist(), strict=True):
                if number > 0:
                    for counter in counters:
                        counter[name] += number
        return arrays

    def counted() -> list[tf.Tensor]:
        # The value itself passes through Python: an op tied to it only by a control dependency
        # would be pruned by the graph optimizer, as it claims to be stateless.
        dtypes = [part.dtype for part in components]
        outputs = tf.numpy_function(record, [numbers, *components], dtypes, stateful=False)
        outputs = tf.nest.flatten(outputs)  # eagerly, a single output comes without its list
        return [
            tf.ensure_shape(output, part.shape)
            for output, part in zip(outputs, components, strict=True)
        ]

    def untouched() -> list[tf.Tensor]:
        return [tf.identity(part) for part in components]

    passed = tf.cond(tf.reduce_any(numbers > 0), counted, untouched)
    return tf.nest.pack_sequence_as(value, passed, expand_composites=True)
