"""Counts, by reason, of what the data pipeline leaves out: nothing disappears unseen."""

from __future__ import annotations

import collections
import threading
from typing import TypeVar

import numpy as np
import tensorflow as tf

T = TypeVar("T")

_lock = threading.Lock()
_counts: collections.Counter[str] = collections.Counter()


def count_drops(value: T, *, reason: str, amount: tf.Tensor | int) -> T:
    """Returns `value` unchanged; computing it adds `amount` to the count of `reason`.

    A graph op for the functions of `map`, `filter` and `flat_map`, parallel or not. It is not
    stateful to TensorFlow, so iterators stay checkpointable. Counts are per process, and cover
    what was computed: elements that wait in a prefetch buffer are counted already.

    Example (`drop_counts()` is `{"document_too_short": 2}` afterwards):

        def long_enough(document):                  # the documents: lengths 5, 1, 3, 2
            keep = tf.size(document) >= 3
            dropped = tf.where(keep, 0, 1)
            return count_drops(keep, reason="document_too_short", amount=dropped)

        dataset = dataset.filter(long_enough)       # lengths 5, 3

    Args:
      value: a tensor or a nest of tensors (ragged ones too), any dtype that NumPy knows. It has to
        be used downstream and to come from the dataset's element: TensorFlow prunes what nobody
        reads, and computes constants only once.
      reason: a short snake_case name, such as "document_too_short".
      amount: int scalar, how many were dropped; nothing is counted unless it is above 0.
    """
    components = [
        tf.convert_to_tensor(part) for part in tf.nest.flatten(value, expand_composites=True)
    ]
    amount = tf.convert_to_tensor(amount)

    def record(dropped: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with _lock:
            _counts[reason] += int(dropped)
        return arrays

    def counted() -> list[tf.Tensor]:
        # The value itself goes through Python: an op that is tied to it only by a control
        # dependency would be pruned by the graph optimizer, as it claims to be stateless.
        dtypes = [part.dtype for part in components]
        outputs = tf.numpy_function(record, [amount, *components], dtypes, stateful=False)
        outputs = tf.nest.flatten(outputs)  # eagerly, a single output comes without its list
        return [
            tf.ensure_shape(output, part.shape)
            for output, part in zip(outputs, components, strict=True)
        ]

    def untouched() -> list[tf.Tensor]:
        return [tf.identity(part) for part in components]

    passed = tf.cond(amount > 0, counted, untouched)
    return tf.nest.pack_sequence_as(value, passed, expand_composites=True)


def drop_counts() -> dict[str, int]:
    """A copy of the counts so far in this process, by reason."""
    with _lock:
        return dict(_counts)


def reset_drop_counts() -> None:
    """Forgets every count."""
    with _lock:
        _counts.clear()
