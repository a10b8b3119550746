"""All examples of a split in memory, as fine-tuning data are small."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Examples:
    """n examples: concatenated vectors by feature, of equal length within an example."""

    values: Mapping[str, np.ndarray]  # [v], in the smallest type that fits
    splits: np.ndarray  # int64 [n + 1]: example i has the values from splits[i] to splits[i + 1]
    records: np.ndarray  # int64 [n]: the record of each
    notes: tuple[Any, ...]  # [n]: data for the format to make answers, not seen by the model

    def __len__(self) -> int:
        return len(self.records)

    def dataset(self, *, shuffle: bool, seed: int | None) -> tf.data.Dataset:
        """int32 or float32 [e] of each feature and of `example_index`, in a new order each epoch.

        Its position can be saved: the state is a number and the order.
        """
        numbers = tf.data.Dataset.range(len(self))
        if shuffle:
            numbers = numbers.shuffle(len(self), seed=seed)
        with tf.init_scope():
            tensors = {name: tf.constant(values) for name, values in self.values.items()}
            splits = tf.constant(self.splits)

        def example(number: tf.Tensor) -> dict[str, tf.Tensor]:
            first, last = splits[number], splits[number + 1]
            vectors = {
                name: tf.cast(
                    values[first:last], tf.float32 if values.dtype.is_floating else tf.int32
                )
                for name, values in tensors.items()
            }
            index = tf.fill([last - first], tf.cast(number, tf.int32))
            return {**vectors, "example_index": index}

        return numbers.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [n]."""
        return np.diff(self.splits)


class ExamplesBuilder:
    """Collects examples."""

    def __init__(self) -> None:
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._lengths: list[int] = []
        self._records: list[int] = []
        self._notes: list[Any] = []

    def add(self, record: int, vectors: Mapping[str, np.ndarray], note: Any = None) -> None:
        """An example of a record; every example has the same features."""
        for name, vector in vectors.items():
            self._vectors.setdefault(name, []).append(_small(vector))
        self._lengths.append(len(next(iter(vectors.values()))))
        self._records.append(record)
        self._notes.append(note)

    def build(self) -> Examples:
        """What was added."""
        return Examples(
            {name: np.concatenate(vectors) for name, vectors in self._vectors.items()},
            np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64),
            np.array(self._records, np.int64),
            tuple(self._notes),
        )


def _small(vector: np.ndarray) -> np.ndarray:
    """Integers in the smallest type that fits, as training sets stay in memory."""
    if vector.dtype.kind == "f":
        return vector.astype(np.float32)
    return vector.astype(np.min_scalar_type(int(vector.max(initial=0))))
